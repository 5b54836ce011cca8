"""Discrete units at early exits: how far from the full model's, at which bitrate and in what time."""
