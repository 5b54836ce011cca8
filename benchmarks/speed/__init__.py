"""Speed of the encoder, compared with other libraries' HuBERT and by itself, and its memory."""
