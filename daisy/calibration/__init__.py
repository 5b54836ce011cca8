"""Unlabelled audio to policies: full runs, thresholds for a depth or a guaranteed risk, and what layers cost."""
