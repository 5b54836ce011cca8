"""Found by s3prl as a task of its own; see benchmarks/minisuperb/worker.py."""
