"""Decide from the scores so far which utterances leave: pure, vectorised over the batch, usable without a model.

A trajectory is (B, l): the score at exits 1 to l. Exits are counted from 1 to E; if every layer has one, exit l is
at layer l. A policy sees only executed exits; the last exit, at the last layer, always ends the run, whatever the
policy says. docs/policies.md has a table of all policies.
"""

from daisy.policies.base import Policy
from daisy.policies.baselines import Deadline, Oracle, Random, Window
from daisy.policies.file import read_policy, write_policy
from daisy.policies.registry import DEFAULT_POLICY, POLICIES, from_config, make_policy
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
from daisy.policies.scores import SCORES, HeadOutputs

__all__ = [
    "Agreement",
    "Confidence",
    "DEFAULT_POLICY",
    "Deadline",
    "Entropy",
    "Fixed",
    "Forecast",
    "HeadOutputs",
    "Margin",
    "Never",
    "Oracle",
    "POLICIES",
    "Patience",
    "Plateau",
    "Policy",
    "Posterior",
    "Random",
    "Regressed",
    "RegressedPlateau",
    "SCORES",
    "Score",
    "SentenceConfidence",
    "TextPatience",
    "Window",
    "from_config",
    "make_policy",
    "read_policy",
    "write_policy",
]
