"""What daisy calibrate sets a policy for: a mean depth, or a risk with a statistical guarantee."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from daisy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from daisy.calibration.traces import Traces
    from daisy.policies import Policy

Units = Literal["same", "clean", "both"]
"""The full model's, on the same input, on the clean recording, or a mean of the two."""
PREFIXES: dict[Units, str] = {"same": "", "clean": "clean_", "both": "mean_"}
"""What the loss in the traces that stands for each begins with."""
AGAINST_FULL_MODEL = ("disagreement", "text_disagreement")
"""Losses that are known against the full model on the clean recording too."""


MAX_DEPTH_MISS = 0.1
"""Distance to the depth that was asked for, beyond which a note says so."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A policy that was set, and the full runs that tell what it does."""

    policy: Policy
    exit_layers: Tensor
    """(n,) of those runs."""
    runs: Traces
    certified: dict[str, Any] = field(default_factory=dict)
    """The risk on those runs, as `daisy.calibration.guarantee.measure_attained` tells it; empty without one."""
    note: str = ""
    """What to say of it, where there is anything."""


@dataclass(frozen=True, kw_only=True)
class DepthGoal:
    """A mean executed share of the layers, or of their time."""

    depth: float
    in_time: bool
    units: Units = "same"
    """Whose units or text a policy that learns them is to keep."""
    loss: str = "disagreement"
    """What policies that learn a loss learn."""

    def check(self, num_speakers: int) -> None:
        """Refuse what is no depth, and units that the loss is not of.

        Raises:
            PolicyError: where it is not above 0 and at most 1.
            UsageError: on such units.
        """
        from daisy.calibration.depth import check_depth

        check_depth(self.depth)
        if self.units != "same" and self.loss not in AGAINST_FULL_MODEL:
            raise UsageError(f"--units {self.units} is of losses against the full model, not of {self.loss}")

    def calibrate(self, policy: str, traces: Traces, seed: int) -> Calibration:
        """Set a policy on full runs."""
        from daisy.calibration.depth import calibrate_depth, mean_depth

        setting = calibrate_depth(policy, traces, self.depth, PREFIXES[self.units] + self.loss)
        reached = mean_depth(setting.exit_layers, traces)
        note = ""
        if abs(reached - self.depth) > MAX_DEPTH_MISS:
            note = f"note: no setting of {policy} that was tried comes nearer to {self.depth:.0%} than {reached:.0%}"
        return Calibration(policy=setting.policy, exit_layers=setting.exit_layers, runs=traces, note=note)

    def to_json(self) -> dict[str, Any]:
        """Return what the policy file says of it."""
        goal = {"depth": self.depth, "of": "time" if self.in_time else "layers"}
        return goal if self.units == "same" else {**goal, "units": self.units}


@dataclass(frozen=True, kw_only=True)
class RiskGoal:
    """A risk that the cheapest certified setting stays below."""

    risk: float
    delta: float
    method: str
    loss: str
    ceiling: float
    """What the loss is clipped to, and divided by."""

    def check(self, num_speakers: int) -> None:
        """Refuse what no guarantee can be given for.

        Raises:
            PolicyError: on values out of range, or too few speakers.
        """
        from daisy.calibration.guarantee import check_guarantee

        check_guarantee(self.risk, self.delta, self.method, self.loss, self.ceiling, num_speakers)

    def calibrate(self, policy: str, traces: Traces, seed: int) -> Calibration:
        """Set a policy on full runs; where no setting is certified it never leaves early, and its note says so."""
        from daisy.calibration.guarantee import calibrate_risk, measure_attained

        chosen, exit_layers, runs = calibrate_risk(
            policy,
            traces,
            self.risk,
            self.delta,
            method=self.method,
            loss=self.loss,
            ceiling=self.ceiling,
            seed=seed,
        )
        note = ""
        if chosen.name == "never":
            num_speakers = len(set(runs.groups))
            bound = (
                ""
                if self.method == "conformal"
                else (f", with whom no risk below {1 - self.delta ** (1 / num_speakers):.2f} can be certified")
            )
            note = (
                f"no setting of {policy} is certified at a risk of {self.risk:g}: the file says never. "
                f"{num_speakers} speakers certify{bound}; more of them, or a larger --risk or --delta, would help"
            )
        certified = measure_attained(runs, exit_layers, self.loss, self.ceiling)
        return Calibration(policy=chosen, exit_layers=exit_layers, runs=runs, certified=certified, note=note)

    def to_json(self) -> dict[str, Any]:
        """Return what the policy file says of it."""
        goal = {"risk": self.risk, "method": self.method, "risk_of": self.loss, "ceiling": self.ceiling}
        return goal if self.method == "conformal" else {**goal, "delta": self.delta}


def choose_goal(
    *,
    depth: float | None,
    in_time: bool,
    units: Units,
    risk: float | None,
    delta: float,
    method: str,
    loss: str,
    ceiling: float,
) -> DepthGoal | RiskGoal:
    """Make the goal that the options ask for.

    Raises:
        UsageError: where they ask for none, or for two.
    """
    if (depth is None) == (risk is None):
        raise UsageError("give either --depth or --risk")
    if depth is not None:
        return DepthGoal(depth=depth, in_time=in_time, units=units, loss=loss)
    if in_time or units != "same":
        raise UsageError(f"{'--time' if in_time else '--units'} goes with --depth")
    assert risk is not None
    return RiskGoal(risk=risk, delta=delta, method=method, loss=loss, ceiling=ceiling if loss == "kl_nats" else 1.0)
