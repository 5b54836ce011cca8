"""daisy in s3prl: an upstream whose utterances leave at their own layer, without a file copied into s3prl.

from s3prl_upstream import register
register()
s3prl.nn.S3PRLUpstream("daisy_local", path_or_url="hubert.safetensors")

On the command line ``daisy-s3prl`` takes s3prl's own options and more. It imports daisy, which knows nothing of it.
"""

from s3prl_upstream.register import register

__all__ = ["register"]
