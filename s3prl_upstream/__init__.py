"""daisy in s3prl: an upstream in which each utterance exits at its own layer, without copying files into s3prl.

from s3prl_upstream import register
register()
s3prl.nn.S3PRLUpstream("daisy_local", path_or_url="hubert.safetensors")

On the command line ``daisy-s3prl`` takes s3prl's own options and more. It imports daisy, which does not depend on it.
"""

from s3prl_upstream.register import register

__all__ = ["register"]
