"""Discrete units at early exits: distance from the full model's, bitrate and time."""
