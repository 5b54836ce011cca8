"""The backbone packed for speed: packed weights, packed batches, CUDA graphs; private to the library."""
