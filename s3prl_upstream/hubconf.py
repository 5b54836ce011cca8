"""The entries of ``s3prl.hub``: s3prl's runner calls them with ckpt, model_config and refresh, s3prl.nn with fewer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from daisy.errors import CheckpointError, UsageError
from s3prl_upstream.expert import UpstreamExpert

BUNDLED = "daisy-mini"
ModelConfig = str | Path | Mapping | None
"""See `s3prl_upstream.policy.resolve`."""


def daisy_local(
    ckpt: str | Path | None = None, model_config: ModelConfig = None, refresh: bool = False
) -> UpstreamExpert:
    """Load any daisy checkpoint.

    Args:
        ckpt: a path, or a bundled model's name (s3prl's ``-k`` and ``path_or_url``).
        model_config: the exit policy (s3prl's ``-g``, or ``extra_conf={"model_config": ...}``).
        refresh: s3prl's; without effect for a local file.

    Raises:
        UsageError: without a checkpoint.
        CheckpointError: where the file is not a checkpoint.
        PolicyError: on a policy that does not fit it.
    """
    if ckpt is None:
        raise UsageError(f"daisy_local needs a checkpoint: -k PATH, or -k {BUNDLED} for the bundled one")
    return UpstreamExpert(ckpt, model_config)


def daisy_url(ckpt: str | None = None, model_config: ModelConfig = None, refresh: bool = False) -> UpstreamExpert:
    """Load a daisy checkpoint from a URL, and keep it in s3prl's download folder.

    Args:
        ckpt: URL of the checkpoint.
        model_config: see `daisy_local`.
        refresh: download it again.

    Raises:
        UsageError: without a URL.
        CheckpointError: where it cannot be downloaded, or is not a checkpoint.
        PolicyError: on a policy that does not fit it.
    """
    from s3prl.util.download import _urls_to_filepaths

    if not str(ckpt).startswith(("http://", "https://")):
        raise UsageError(f"daisy_url needs an address that begins with http, found {ckpt}; files: daisy_local")
    try:
        path = _urls_to_filepaths(ckpt, refresh=refresh)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{ckpt}: cannot be downloaded ({error})") from None
    return UpstreamExpert(path, model_config)


def daisy_mini(ckpt: None = None, model_config: ModelConfig = None, refresh: bool = False) -> UpstreamExpert:
    """Load the bundled model.

    Args:
        ckpt: must be None; s3prl's runner always passes one.
        model_config: see `daisy_local`.
        refresh: s3prl's; without effect.

    Raises:
        UsageError: where a checkpoint is given.
        PolicyError: on a policy that does not fit it.
    """
    if ckpt is not None:
        raise UsageError(f"daisy_mini is the bundled model and takes no checkpoint ({ckpt}); give it to daisy_local")
    return UpstreamExpert(BUNDLED, model_config)
