"""Model-distributed inference with exits: workers that hold some layers each, and data that leave when confident."""
