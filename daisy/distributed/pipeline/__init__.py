"""Model-distributed inference with exits: each worker holds some layers, and confident utterances leave early."""
