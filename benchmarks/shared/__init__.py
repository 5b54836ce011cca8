"""Shared code: recordings, results files, full runs, paired timing, other libraries and Markdown tables."""
