"""Tasks that s3prl lacks: `benchmarks.minisuperb.worker` adds this folder to where s3prl looks for its tasks."""
