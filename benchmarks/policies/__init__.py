"""Exit policies: exits under noise, fidelity at a depth, and whether the risk guarantee holds."""
