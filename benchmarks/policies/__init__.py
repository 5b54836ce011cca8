"""What exit policies do: exits under noise, fidelity at a depth, and whether the risk guarantee holds."""
