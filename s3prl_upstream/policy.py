"""Read s3prl's model_config (``-g``), which selects the exit policy of an upstream."""

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
    """Make a policy, and return it with the stride of its scores.

    Args:
        model: model for which it decides.
        checkpoint: source of the model.
        given: a policy file of ``daisy calibrate``, whose checkpoint must be this one; a JSON file (or mapping) with a
            name and settings, such as ``{"name": "fixed", "layer": 7}``, with ``score_stride`` if wanted; a
            policy's name, with the checkpoint's default settings; or None: the default policy if the checkpoint
            has settings for it, else the first for which it has settings, else ``never``.

    Raises:
        PolicyError: where the value is none of these, or does not fit the model.
        CheckpointError: where the policy reads heads, but the model has none.
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
