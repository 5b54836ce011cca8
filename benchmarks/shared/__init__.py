"""What the rooms share: recordings, results files, full runs, paired timing, peers and Markdown tables."""
