"""Keywords as a task of s3prl; see `benchmarks.minisuperb.worker`."""
