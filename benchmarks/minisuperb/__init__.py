"""MiniSUPERB's tasks on early-exit upstreams, run by s3prl: ``python -m benchmarks.minisuperb.run daisy-mini``."""
