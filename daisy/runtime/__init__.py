"""The backbone laid out for speed: packed weights, packed batches, CUDA graphs; private to the library."""
