"""Tasks that s3prl lacks: `benchmarks.minisuperb.worker` adds this folder to s3prl's search path for tasks."""
