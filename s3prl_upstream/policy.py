"""s3prl's model_config (``-g``): which exit policy an upstream follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from daisy import checkpoints
from daisy.checkpoints import Model
from daisy.errors import PolicyError, unknown_name
from daisy.policies import DEFAULT_POLICY, POLICIES, Policy, read_policy

FOR_COMPARISONS = ("oracle", "score")


def resolve(model: Model, checkpoint: str | Path, given: str | Path | Mapping | None) -> tuple[Policy, int]:
    """Make a policy, and find the stride of its scores.

    Args:
        model: what it decides for.
        checkpoint: where the model came from.
        given: a policy file of ``daisy calibrate``, whose checkpoint must be this one; a JSON file (or a mapping) of a
            name and settings, such as ``{"name": "fixed", "layer": 7}``, with ``score_stride`` among them if wanted; a
            policy's name, with the checkpoint's default settings; or None: the default one where the checkpoint
            brings settings for it, else the first that it brings, else ``never``.

    Raises:
        PolicyError: where it is none of these, or does not fit the model.
        CheckpointError: where it reads heads, and the model has none.
    """
    if given is None:
        stored = [name for name in (DEFAULT_POLICY, *model.policies) if model.heads and name in model.policies]
        return model.policy(stored[0] if stored else "never"), 1
    if isinstance(given, Mapping):
        return _plain(model, given, "model_config")
    if not Path(given).is_file():
        if str(given) in POLICIES:
            return _plain(model, {"name": str(given)}, str(given))
        if Path(given).suffix or Path(given).name != str(given):
            raise PolicyError(f"{given}: no such policy file; daisy calibrate makes one")
        raise PolicyError(f"no such policy file, and {unknown_name('policy', str(given), POLICIES)}")
    try:
        content = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"{given}: not a policy file ({error}): daisy calibrate makes one, or give JSON or a policy's name"
        ) from None
    if isinstance(content, dict) and "name" in content:
        return _plain(model, content, str(given))
    return read_policy(given, checkpoint=Path(checkpoint).stem, digest=checkpoints.digest(checkpoint))


def _plain(model: Model, config: Mapping, where: str) -> tuple[Policy, int]:
    settings = dict(config)
    name, stride = settings.pop("name", None), settings.pop("score_stride", 1)
    if name in FOR_COMPARISONS:
        raise PolicyError(f"{where}: policy {name} is for comparisons: daisy noise-curve, daisy replay")
    if not isinstance(stride, int) or isinstance(stride, bool):
        raise PolicyError(f"{where}: score_stride must be a whole number of frames, found {stride!r}")
    try:
        return model.policy(str(name), **settings), stride
    except PolicyError as error:
        raise PolicyError(f"{where}: {error.message}", remedy=error.remedy, path=error.path) from None
