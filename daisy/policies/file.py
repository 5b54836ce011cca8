"""Read and write calibrated policies: settings, calibration data, the model they are for, and attained values.

The file is JSON with ``format_version``, ``policy`` (name and settings), ``checkpoint`` (name and digest of its model),
``score_stride``, ``target``, ``attained`` and ``data``; the last three are for people. ``heads`` is "ctc" if the scores
are those of CTC exits; without it they are those of heads on units. ``exits`` lists the exits' layers if these are not
all layers with such heads; the file is then for these exits alone. A rule that was set at every layer may be used with
fewer exits: utterances then leave later than the file states, without its guarantee if it had one. Settings that count
exits keep their layers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daisy import _files
from daisy.errors import PolicyError
from daisy.policies.base import Policy, count_exit
from daisy.policies.registry import from_config
from daisy.policies.scores import COMPARING
from daisy.version import __version__

FORMAT_VERSION = 1
LOSSES_OF_UNITS = ("disagreement", "kl_nats")
"""Losses of guarantees that are not about texts."""


def write_policy(
    path: Path,
    policy: Policy,
    *,
    checkpoint: str,
    digest: str,
    target: dict[str, Any],
    attained: dict[str, Any],
    data: dict[str, Any],
    score_stride: int = 1,
    heads: str = "units",
    exits: Sequence[int] | None = None,
) -> None:
    """Write a policy file, atomically.

    Args:
        path: path of the file.
        policy: calibrated policy.
        checkpoint: name of the model, for people.
        digest: digest of the model's file (`daisy.checkpoints.digest`).
        target: what was asked for.
        attained: what was measured.
        data: what it was measured on: number of recordings, digest of their contents, conditions.
        score_stride: score stride of the encoder in the measurement.
        heads: heads whose scores the policy reads: "units" or "ctc".
        exits: layers at which utterances left, if these are not all layers with such heads.

    Raises:
        OutputError: where it cannot be written.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "daisy": __version__,
        "checkpoint": {"name": checkpoint, "digest": digest},
        "target": target,
        "attained": attained,
        "data": data,
        "score_stride": score_stride,
        "policy": policy.to_config(),
    }
    if heads != "units":
        content["heads"] = heads
    if exits is not None:
        content["exits"] = list(exits)
    _files.write_json(path, content)


def is_certified(path: str | Path, *, at_all_exits: bool = False, of_texts: bool = False) -> bool:
    """Tell whether a policy file was made with a guarantee; False where it cannot be read.

    Args:
        path: path of the file.
        at_all_exits: count only guarantees for exits at all layers with such heads.
        of_texts: count only guarantees about texts, which are decoded greedily.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        target = content["target"]
        is_of_units = target.get("risk_of") in LOSSES_OF_UNITS
        return "risk" in target and not (at_all_exits and "exits" in content) and not (of_texts and is_of_units)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_policy(
    path: str | Path,
    *,
    checkpoint: str,
    digest: str,
    heads: str = "units",
    exits: Sequence[int] | None = None,
    all_exits: Sequence[int] | None = None,
) -> tuple[Policy, int]:
    """Read a policy file, with the score stride that the policy was calibrated at.

    Args:
        path: path of the file.
        checkpoint: name of the model that the policy is to be used with.
        digest: digest of that model's file.
        heads: heads whose scores it is to read: "units" or "ctc".
        exits: layers at which utterances may leave, if these are not all layers with such heads.
        all_exits: all layers with such heads, which a file without ``exits`` is for.

    Returns:
        The policy and the stride.

    Raises:
        PolicyError: where it is not a policy file, of a later version, damaged, or for another model, other heads or
            other exits.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, config, made_for = content["format_version"], content["policy"], content["checkpoint"]
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise PolicyError(f"{path}: not a policy file", remedy="calibrate") from None
    if version != FORMAT_VERSION:
        raise PolicyError(f"{path}: format version {version}, this daisy reads {FORMAT_VERSION}; update daisy")
    try:
        if made_for["digest"] != digest:
            raise PolicyError(
                f"was calibrated for {made_for['name']} ({made_for['digest'][:12]}), not for {checkpoint} "
                f"({digest[:12]}): thresholds mean nothing for another model; calibrate one for it"
            )
        if (calibrated := content.get("heads", "units")) != heads:
            raise PolicyError(f"was calibrated for the scores of {calibrated} exits, not for those of {heads} exits")
        left = content.get("exits")
        if left is not None and left != (None if exits is None else list(exits)):
            raise PolicyError(f"was calibrated for exits at {_list_layers(left)}, and here they are at others")
        policy = from_config(config)
        if left is None and exits is not None and all_exits is not None and tuple(exits) != tuple(all_exits):
            policy = _keep_layers(policy, all_exits, exits)
        return policy, int(content.get("score_stride", 1))
    except PolicyError as error:
        raise PolicyError(f"{path}: {error.message}", remedy=error.remedy) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise PolicyError(f"{path}: a damaged policy file; calibrate again") from None


def _keep_layers(policy: Policy, before: Sequence[int], now: Sequence[int]) -> Policy:
    """Make a policy that was calibrated with all exits leave at the same layers with some of them."""
    if compared := policy.reads & COMPARING:
        raise PolicyError(
            f"was calibrated for exits at {_list_layers(before)}, and here they are at others: {policy.name} compares "
            f"each exit with the one before ({', '.join(compared)})"
        )
    policy.check(len(before))
    numbers = {
        setting: count_exit(policy.name, setting, before[getattr(policy, setting) - 1], now)
        for setting in policy.exit_numbers
    }
    return dataclasses.replace(policy, **numbers)


def _list_layers(layers: Sequence[int]) -> str:
    return f"layers {', '.join(map(str, layers))}"
