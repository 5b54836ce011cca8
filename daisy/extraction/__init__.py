"""Many recordings to files: features of each, resumable; units for training."""
