"""List all policies by name, and make them from configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from daisy.errors import PolicyError, unknown_name
from daisy.policies.base import Policy
from daisy.policies.baselines import Deadline, Oracle, Random, Window
from daisy.policies.rules import (
    Agreement,
    Confidence,
    Entropy,
    Fixed,
    Forecast,
    Margin,
    Never,
    Patience,
    Plateau,
    Posterior,
    Regressed,
    RegressedPlateau,
    Score,
    SentenceConfidence,
    TextPatience,
)

DEFAULT_POLICY = "forecast"
"""The policy where none is named."""
POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Entropy, Regressed, Confidence, Margin, SentenceConfidence, Posterior, Agreement, Patience, TextPatience,
        Plateau, RegressedPlateau, Forecast, Deadline, Random, Oracle, Window, Score, Fixed, Never,
    )
}  # fmt: skip


def make_policy(name: str, settings: Mapping[str, Any]) -> Policy:
    """Make a policy by name and settings.

    Args:
        name: one of `POLICIES`.
        settings: settings by name; those of a policy within it (`Deadline`'s ``then``) as its configuration.

    Returns:
        The policy.

    Raises:
        PolicyError: on an unknown name, or an unknown, missing or impossible setting.

    Example:
        >>> from daisy.policies import make_policy
        >>> make_policy("entropy", {"threshold": 1.2})
        Entropy(threshold=1.2)
        >>> make_policy("entropie", {})
        Traceback (most recent call last):
        daisy.errors.PolicyError: unknown policy 'entropie': did you mean entropy? known are ...
    """
    if name not in POLICIES:
        raise PolicyError(unknown_name("policy", name, POLICIES))
    fields = {field.name: field for field in dataclasses.fields(POLICIES[name])}
    for given in settings:
        if given not in fields:
            raise PolicyError(f"policy {name}: {unknown_name('setting', given, fields)}")
    missing = [
        field.name
        for field in fields.values()
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in settings
    ]
    if missing:
        needs = f"policy {name} needs {', '.join(missing)}, and the checkpoint brings no default"
        if "weights" in missing:
            raise PolicyError(f"{needs}: it is learnt from audio", remedy="calibrate")
        raise PolicyError(f"{needs}: give {missing[0]}")
    return POLICIES[name](**{key: from_config(v) if isinstance(v, Mapping) else v for key, v in settings.items()})


def from_config(config: Mapping[str, Any]) -> Policy:
    """Undo `Policy.to_config`.

    Args:
        config: a policy's ``name`` and its settings.

    Returns:
        The policy.

    Raises:
        PolicyError: as in `make_policy`, and where it is not a configuration.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise PolicyError(f"a policy's configuration has its name and settings, found {config!r}")
    settings = dict(config)
    return make_policy(settings.pop("name"), settings)
