"""Every policy at every depth: fidelity beside the static cut, chance, oracle and hindsight.

    python benchmarks/policies.py daisy-mini

Also the other forms of plateau, the window of the published code by batch size, and what a decision costs. Tuned on dev
audio (librispeech, commands, keywords; clean and with noise of the train split), judged on test audio of five sets,
clean and with recorded, white, pink and babble noise at 20 to -5 dB (benchmarks/full_runs.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch
from common import RESULTS, guarded, write
from full_runs import KINDS, calibration_runs, judged_runs
from torch import Tensor

from daisy import policies
from daisy.calibration.depth import FAMILIES, PolicyFamily, calibrate_depth, find_quantile, fit_family, fit_window
from daisy.calibration.traces import Traces
from daisy.evaluation import comparison, figures
from daisy.policies.base import Policy, Trajectories

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCHES = (1, 8, 32)
LOSS = "disagreement"


@dataclass(frozen=True, kw_only=True)
class NaivePlateau(Policy):
    """Leaves when the predicted loss fell by less than a share of itself over the last layers."""

    name: ClassVar[str] = "plateau, naive"
    scores: ClassVar[tuple[str, ...]] = ("entropy",)
    min_improvement: float
    patience: int = 2

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        loss = trajectories["entropy"]
        if layer <= self.patience:
            return torch.zeros(len(loss), dtype=torch.bool)
        before = loss[:, -1 - self.patience]
        return before - loss[:, -1] < self.min_improvement * before


@dataclass(frozen=True, kw_only=True)
class TypicalPlateau(Policy):
    """Leaves when the predicted loss fell by so many deviations less than is usual at this layer."""

    name: ClassVar[str] = "plateau, against what is usual"
    scores: ClassVar[tuple[str, ...]] = ("entropy",)
    deviations: float
    means: tuple[float, ...]
    spreads: tuple[float, ...]

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        loss = trajectories["entropy"]
        if layer < 2:
            return torch.zeros(len(loss), dtype=torch.bool)
        fall = loss[:, -2] - loss[:, -1]
        return (fall - self.means[layer - 1]) / self.spreads[layer - 1] < self.deviations


@dataclass(frozen=True, kw_only=True)
class LevelPlateau(NaivePlateau):
    """The naive form, and the predicted loss is low as well."""

    name: ClassVar[str] = "plateau and level"
    level: float

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        return super().decide(trajectories, layer) & (trajectories["entropy"][:, -1] < self.level)


def candidates(tune: Traces) -> dict[str, PolicyFamily]:
    """Other forms of plateau, each with one knob from 0 (safe) to 1."""
    entropy = tune.scores["entropy"]
    falls = torch.cat([torch.zeros(len(tune), 1), entropy[:, :-1] - entropy[:, 1:]], dim=1)
    means, spreads = tuple(falls.mean(0).tolist()), tuple((falls.std(0) + 1e-6).tolist())
    low, high = float(entropy.min()), float(entropy.max())

    def family(at: Callable[[float], Policy]) -> PolicyFamily:
        return PolicyFamily(at, lambda place: at(place).exit_layers(tune.scores))

    return {
        "plateau, naive": family(lambda x: NaivePlateau(min_improvement=2 * x - 1)),
        "plateau, against what is usual": family(
            lambda x: TypicalPlateau(deviations=12 * x - 6, means=means, spreads=spreads)
        ),
        "plateau and level": family(lambda x: LevelPlateau(min_improvement=0.1, level=low + x * (high - low) + 1e-6)),
    }


def mixed(runs: Traces) -> Traces:
    """Clean and noisy runs, without rooms and clipping."""
    wanted = ("clean", *KINDS)
    return runs.select([i for i, condition in enumerate(runs.conditions) if condition.split()[0] in wanted])


def frontier(tune: Traces, test: Traces) -> list[dict]:
    names = [name for name in FAMILIES if name in comparison.list_families(tune, LOSS)]
    verdicts = comparison.trace_frontier(tune, test, [*names, "hindsight"], DEPTHS, LOSS)
    for found in candidates(tune).values():
        for target in DEPTHS:
            policy = found.at(find_quantile(found, tune, target))
            verdicts.append((target, comparison.evaluate(policy.name, policy.exit_layers(test.scores), test)))
    return [row(target, verdict) for target, verdict in verdicts]


def on_dev(tune: Traces) -> list[dict]:
    """What the default was chosen by: the audio that policies are set on, those that learn being cross-fitted."""
    measured = []
    for name in FAMILIES:
        found = fit_family(name, tune)
        for target in DEPTHS:
            exits = found.exit_layers(find_quantile(found, tune, target))
            measured.append(row(target, comparison.evaluate(name, exits, tune)))
    return measured


def row(target: float, verdict: comparison.Evaluation) -> dict:
    loss, gain = verdict.losses[LOSS], verdict.gain[LOSS]
    return {
        "policy": verdict.policy,
        "target_depth": target,
        "depth": verdict.depth,
        "unit_agreement": 1 - loss.mean,
        "low": 1 - loss.high,
        "high": 1 - loss.low,
        "fixed_unit_agreement": 1 - verdict.fixed[LOSS],
        "random_unit_agreement": 1 - verdict.random[LOSS],
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "clean_unit_agreement": 1 - verdict.losses["clean_disagreement"].mean,
        "clean_gain": verdict.gain["clean_disagreement"].mean,
        "kl_nats": verdict.losses["kl_nats"].mean,
        "num_runs": verdict.num_runs,
    }


def by_itself(rule: policies.Window, runs: Traces) -> Tensor:
    """(B,) exits of a window when every utterance is a batch."""
    layers = range(1, runs.num_layers + 1)
    inside = tuple(rule.threshold if rule.first <= layer < rule.last else 0.0 for layer in layers)
    return policies.Entropy(threshold=inside).exit_layers(runs.scores).clamp(max=rule.last)


def windows(tune: Traces, test: Traces, depth: float = 0.6) -> list[dict]:
    """The published form against exits of each utterance: one entropy threshold, batches as they come."""
    threshold = calibrate_depth("entropy", tune, depth).policy.to_config()["threshold"]
    alone = policies.Entropy(threshold=threshold)
    order = numpy.random.default_rng(0).permutation(len(test))
    histogram = numpy.zeros(test.num_layers)
    everywhere = policies.Window(threshold=threshold, first=1, last=test.num_layers)
    for batch in numpy.array_split(numpy.random.default_rng(1).permutation(len(tune)), len(tune) // 32):
        part = {name: values[batch] for name, values in tune.scores.items()}
        histogram[int(everywhere.exit_layers(part)[0]) - 1] += 1
    measured = []
    for kind in ("each utterance", "avg", "min-max", "threshold"):
        rule = alone if kind == "each utterance" else fit_window(threshold, histogram.tolist(), kind)
        single = alone.exit_layers(test.scores) if isinstance(rule, policies.Entropy) else by_itself(rule, test)
        for size in BATCHES:
            exits = single.clone()
            for start in range(0, len(test) if size > 1 and rule is not alone else 0, size):
                batch = order[start : start + size]
                exits[batch] = rule.exit_layers({name: values[batch] for name, values in test.scores.items()})
            verdict = comparison.evaluate(f"daisy_window, {kind}" if rule is not alone else "entropy", exits, test)
            looked = "" if isinstance(rule, policies.Entropy) else f"{rule.first} to {rule.last}"
            changed = float((exits != single).float().mean())
            measured.append({"batch": size, "layers": looked, "other_than_alone": changed, **row(depth, verdict)})
    return measured


def decision_cost(tune: Traces, num_utterances: int = 32) -> list[dict]:
    """Microseconds an utterance to decide at all layers, by batch size; heads not included."""
    found = []
    chosen = {name: calibrate_depth(name, tune, 0.6).policy for name in FAMILIES if name != "oracle"}
    flat = (1.0, 1.0, 0.001)
    chosen["deadline"] = policies.Deadline(budget=1e3, front_cost=flat, layer_cost=flat)
    chosen["random"] = policies.Random(histogram=(1.0,) * tune.num_layers)
    chosen["daisy_window"] = policies.Window(threshold=chosen["entropy"].to_config()["threshold"], first=6, last=8)
    for name, policy in chosen.items():
        for size in (1, num_utterances):
            scores = {score: values[:size] for score, values in tune.scores.items()}
            seconds = []
            for _ in range(200):
                start = time.perf_counter()
                for layer in range(1, tune.num_layers):
                    policy.decide({score: scores[score][:, :layer] for score in policy.reads}, layer)
                seconds.append((time.perf_counter() - start) / size)
            low, middle, high = numpy.quantile(seconds, [0.25, 0.5, 0.75]) * 1e6
            found.append({"policy": name, "batch": size, "decision_us": middle, "low_us": low, "high_us": high})
    return found


def draw(rows: list[dict], path) -> None:
    """Fidelity against depth."""
    curves = {}
    for line in rows:
        curves.setdefault(line["policy"], []).append((line["depth"], line["unit_agreement"]))
    chance = [(line["depth"], line["random_unit_agreement"]) for line in rows if line["policy"] == "plateau"]
    figure = figures.draw_lines(
        {**curves, "chance, of plateau's histogram": chance},
        across="executed share of the layers",
        up="units that are the full model's",
        title=f"{rows[0]['num_runs']} runs of test audio, clean to -5 dB",
        black=("fixed", "oracle", "hindsight", "chance, of plateau's histogram"),
    )
    figures.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quick", action="store_true", help="a few utterances of each set; nothing is written")
    arguments = parser.parse_args()
    limit = 6 if arguments.quick else None
    tune, test = calibration_runs(arguments.model, limit), mixed(judged_runs(arguments.model, limit))
    rows = frontier(tune, test)
    for line in rows:
        print(
            f"{line['policy']:32} {line['target_depth']:.0%}  depth {line['depth']:.3f}  agreement "
            f"{line['unit_agreement']:.4f}  fixed {line['fixed_unit_agreement']:.4f}  chance "
            f"{line['random_unit_agreement']:.4f}  gain {line['gain']:+.4f} [{line['gain_low']:+.4f}, "
            f"{line['gain_high']:+.4f}]  clean {line['clean_unit_agreement']:.4f} {line['clean_gain']:+.4f}"
        )
    by_batch, costs = windows(tune, test), decision_cost(tune)
    for line in by_batch:
        print(
            f"{line['policy']:28} batch {line['batch']:2}  layers {line['layers']:8}  depth {line['depth']:.3f}  "
            f"agreement {line['unit_agreement']:.4f}  gain {line['gain']:+.4f}  exits unlike alone "
            f"{line['other_than_alone']:.3f}"
        )
    for line in costs:
        print(f"{line['policy']:20} batch {line['batch']:2}  {line['decision_us']:.1f} us an utterance")
    if not arguments.quick:
        write("policies", rows)
        write("policies_dev", on_dev(tune))
        write("windows", by_batch)
        write("decisions", costs)
        draw(rows, RESULTS / "policies.png")


if __name__ == "__main__":
    guarded(main)
