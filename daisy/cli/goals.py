"""Goals of daisy calibrate: a mean depth, or a risk with a statistical guarantee."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from daisy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from daisy.calibration.traces import Traces
    from daisy.policies import Policy

Units = Literal["same", "clean", "both"]
"""The full model's units: on the same input, on the clean recording, or a mean of the two."""
PREFIXES: dict[Units, str] = {"same": "", "clean": "clean_", "both": "mean_"}
"""Prefix of the corresponding loss in the traces."""
AGAINST_FULL_MODEL = ("disagreement", "text_disagreement")
"""Losses that are also known against the full model on the clean recording."""


MAX_DEPTH_MISS = 0.1
"""Distance to the requested depth above which a note is printed."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibrated policy, and the full runs that show its effect."""

    policy: Policy
    exit_layers: Tensor
    """Exit layers in those runs, (n,)."""
    runs: Traces
    certified: dict[str, Any] = field(default_factory=dict)
    """The risk on those runs, as returned by `daisy.calibration.guarantee.measure_attained`; empty without one."""
    note: str = ""
    """Note for the user; may be empty."""


@dataclass(frozen=True, kw_only=True)
class DepthGoal:
    """A mean executed share of the layers, or of their time."""

    depth: float
    in_time: bool
    units: Units = "same"
    """The full model's units or text that a policy learns to keep, if it learns them."""
    loss: str = "disagreement"
    """Loss that policies learn, if they learn one."""

    def check(self, num_speakers: int) -> None:
        """Reject an invalid depth, or units that do not go with the loss.

        Raises:
            PolicyError: if the depth is not above 0 and at most 1.
            UsageError: if the units do not go with the loss.
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
        """Return the goal as written to the policy file."""
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
    """Value to which the loss is clipped, and by which it is divided."""

    def check(self, num_speakers: int) -> None:
        """Reject a goal for which no guarantee can be given.

        Raises:
            PolicyError: if values are out of range, or there are too few speakers.
        """
        from daisy.calibration.guarantee import check_guarantee

        check_guarantee(self.risk, self.delta, self.method, self.loss, self.ceiling, num_speakers)

    def calibrate(self, policy: str, traces: Traces, seed: int) -> Calibration:
        """Set a policy on full runs; if no setting is certified, it never exits early, and its note says so."""
        from daisy.calibration.guarantee import calibrate_risk, measure_attained
        from daisy.calibration.risk import find_least_risk

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
            least = find_least_risk(num_speakers, self.delta, self.method)
            note = (
                f"no setting of {policy} is certified at a risk of {self.risk:g}: the file says never. "
                f"{num_speakers} speakers certify, with whom no risk below {least:.2f} can be certified; more of them, "
                "or a larger --risk or --delta, would help"
            )
        certified = measure_attained(runs, exit_layers, self.loss, self.ceiling)
        return Calibration(policy=chosen, exit_layers=exit_layers, runs=runs, certified=certified, note=note)

    def to_json(self) -> dict[str, Any]:
        """Return the goal as written to the policy file."""
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
    """Create the goal that the options ask for.

    Raises:
        UsageError: if they ask for none, or for two.
    """
    if (depth is None) == (risk is None):
        raise UsageError("give either --depth or --risk")
    if depth is not None:
        return DepthGoal(depth=depth, in_time=in_time, units=units, loss=loss)
    if in_time or units != "same":
        raise UsageError(f"{'--time' if in_time else '--units'} goes with --depth")
    assert risk is not None
    return RiskGoal(risk=risk, delta=delta, method=method, loss=loss, ceiling=ceiling if loss == "kl_nats" else 1.0)
