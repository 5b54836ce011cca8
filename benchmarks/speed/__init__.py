"""How fast the encoder is, beside other people's HuBERT and by itself, and how much memory it takes."""
