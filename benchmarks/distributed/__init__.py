"""Runs on several processes and machines: whether results stay the same, at what cost, and through which failures."""
