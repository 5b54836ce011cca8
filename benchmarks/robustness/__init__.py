"""What damaged files, and kills at any moment, do to a run: seeded, many cases, and an exit status that tells."""
