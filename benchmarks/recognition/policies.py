"""Error rate against depth and measured time, for every policy on the recognisers' exits.

    python -m benchmarks.recognition.policies

Policies are set on dev audio, clean and with noise of the train split, for 30 to 90 % of the layers, and judged on test
audio, clean and with noise of the test split. No policy learns from human transcripts. Each is compared with the static
cut, random exits and the best mixture of two static cuts at its depth, and with the static cut in the same time.
"DAISY" policies read the heads on units, which know no text. Times cover the front end, the layers and the scores that
a policy reads, on one core, relative to all layers without scores. Depths and times weight recordings as the errors do,
by their number of characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import daisy
from benchmarks.recognition.corpora import CORPORA, read_texts
from benchmarks.recognition.errors import LOSSES, sort_systems
from benchmarks.recognition.full_runs import load_runs
from benchmarks.recognition.systems import SYSTEMS
from benchmarks.recognition.train import FOLDER, find_model
from benchmarks.shared.cuts import mix_best
from benchmarks.shared.frontier import average_exits, average_time, cut_at_time, find_exits
from benchmarks.shared.policy_times import measure_policy_times
from benchmarks.shared.recordings import spread_evenly
from benchmarks.shared.results import RESULTS, Row, read_rows_beside, replace_rows, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.calibration.families import fit_family
from daisy.calibration.text_tracing import UNIT_PREFIX, choose_unit_scores
from daisy.calibration.traces import Traces
from daisy.checkpoints.model import HeadsKind
from daisy.cli.demonstration import DEPTH
from daisy.errors import UsageError
from daisy.evaluation import comparison, figures
from daisy.evaluation.captions import say_points
from daisy.evaluation.study import DEPTHS
from daisy.evaluation.style import style_axes, style_lines
from daisy.policies import DEFAULT_POLICY

LOSS = "character_errors"
LEARNT = "text_disagreement"
"""Target of the policies that learn a loss: edits to the last exit's text, which need no labels."""
JUDGED = (
    "Conformer, six exits",
    "Splitformer, six exits",
    "daisy-mini, joint",
    "daisy-mini, two-stage",
    "daisy-mini, frozen",
    "English: daisy-mini, joint",
)
DRAWN_SYSTEM = "daisy-mini, frozen"
"""Fine-tuning removes the heads on units, and with them DAISY's own exit."""
ON_TEXT = (
    "fixed", "entropy", "confidence", "sentence_confidence", "posterior", "text_patience", "plateau", "forecast",
    "oracle",
)  # fmt: skip
ON_UNITS = ("entropy", "forecast")
DRAWN = (
    DEFAULT_POLICY, "entropy", "posterior", "text_patience", "DAISY: entropy", "DAISY: forecast", "fixed", "hindsight",
)  # fmt: skip
"""The eight policies in the figure; the table has all."""
ACROSS = {"depth": "the layers", "time": "the time, of all layers without scores"}
"""Fields of rows on the horizontal axes."""
TIMED = 12
"""Number of recordings for timing the layers."""
ALL_CONDITIONS = "clean to 0 dB"


def name_policy(policy: str, heads: HeadsKind) -> str:
    """Return a policy's name with the heads that it reads."""
    return f"DAISY: {policy}" if heads == "units" else policy


def measure_frontier(
    tune: Traces, test: Traces, times: Mapping[str, Tensor], static_times: Tensor, heads: HeadsKind
) -> list[Row]:
    """Tune policies to depths, and make a row for each policy, depth and condition.

    Args:
        tune: runs that policies learn and are set on.
        test: runs that they are judged on.
        times: time until each exit, by policy; see `measure_policy_times`.
        static_times: the same for the static cut.
        heads: heads that the policies read.
    """
    rows = []
    for name, of_exits in times.items():
        family = None if name == "hindsight" else fit_family(name, tune, LEARNT)
        for target in DEPTHS:
            exits = find_exits(family, tune, test, target, LOSS)
            for evaluation in comparison.evaluate_by_condition(name_policy(name, heads), exits, test):
                condition = ALL_CONDITIONS if evaluation.condition == "all" else evaluation.condition
                row = {"policy": evaluation.policy, "condition": condition, "target_depth": target}
                row |= {"depth": evaluation.depths[LOSS], "exit_layer": evaluation.mean_exit_layer.mean}
                for field, loss in LOSSES.items():
                    row |= {field: evaluation.losses[loss].mean, f"{field}_static": evaluation.fixed[loss]}
                    row |= {f"{field}_random": evaluation.random[loss]}
                    for system, gain in (("static", evaluation.gain), ("random", evaluation.gain_over_random)):
                        mean, low, high = gain[loss]
                        row |= {f"{field}_over_{system}": mean}
                        row |= {f"{field}_over_{system}_low": low, f"{field}_over_{system}_high": high}
                judged = torch.arange(len(test)) if condition == ALL_CONDITIONS else test.rows_of(condition)
                rows.append(row | compare_with_cuts(exits[judged], test.select(judged), of_exits, static_times))
    return rows


def compare_with_cuts(exits: Tensor, runs: Traces, times: Tensor, static_times: Tensor) -> Row:
    """Compute the time of exits (B,), and the error rates of static cuts at the same depth and time.

    Args:
        exits: index of each exit, from 1.
        runs: runs that left there.
        times: (E,) time until each exit with the policy.
        static_times: (E,) the same with a static cut.
    """
    static, time = average_exits(runs, LOSS), average_time(times, exits, runs, LOSS)
    weights = runs.weights_of(LOSS).double()
    depth = float(torch.tensor(runs.layers)[exits - 1].double() @ weights / weights.sum())
    return {
        "time": time,
        "cer_mixture": mix_best(static.numpy(), depth, runs.layers),
        "cer_static_at_time": cut_at_time(static, static_times, time),
    }


def measure_system(system: str, limit: int | None = None, folder: Path = FOLDER) -> list[Row]:
    """Measure all policies on a recogniser's exits."""
    tune, test = (load_runs(system, split, limit, folder) for split in ("dev", "test"))
    model = daisy.load(find_model(system, folder))
    speech, _ = read_texts(CORPORA[SYSTEMS[system].corpus], "dev", TIMED)
    sample = spread_evenly(speech.waveforms, limit or TIMED)
    rows: list[Row] = []
    kinds: list[tuple[HeadsKind, Traces, Traces, list[str]]] = [
        ("ctc", tune, test, [*(name for name in ON_TEXT if name != "posterior" or name in test.scores), "hindsight"])
    ]
    if any(name.startswith(UNIT_PREFIX) for name in test.scores):
        kinds.append(("units", choose_unit_scores(tune), choose_unit_scores(test), list(ON_UNITS)))
    static_times = None
    for heads, of_tune, of_test, families in kinds:
        times = measure_policy_times(model.backbone, model.exit_heads(heads), sample, families, of_tune, LEARNT)
        static_times = times["fixed"] if static_times is None else static_times
        measured = measure_frontier(of_tune, of_test, times, static_times, heads)
        rows += [{"system": system, **row} for row in measured]
    return rows


def draw(rows: Sequence[Row], path: Path = RESULTS / "early_exit_asr.png") -> None:
    """Draw the figure for the recogniser that has all policies.

    Raises:
        UsageError: if its rows are missing.
    """
    if missing := set(DRAWN) - {row["policy"] for row in rows if row["system"] == DRAWN_SYSTEM}:
        raise UsageError(f"{DRAWN_SYSTEM}: no rows of {', '.join(sorted(missing))}: measure it anew")
    figures.save(make_figure(rows, DRAWN_SYSTEM), path)


def make_figure(rows: Sequence[Row], system: str) -> Figure:
    """Draw a recogniser's error rate against the share of the layers, and against the share of the time."""
    chosen = [row for row in rows if (row["system"], row["condition"]) == (system, ALL_CONDITIONS)]
    styles = style_lines([name for name in DRAWN if any(row["policy"] == name for row in chosen)])
    spoken = min(
        (row for row in chosen if row["policy"] == DEFAULT_POLICY), key=lambda row: abs(row["target_depth"] - DEPTH)
    )
    values = [(DEFAULT_POLICY, spoken["cer"]), ("static cut at its depth", spoken["cer_static"])]
    figure = Figure(figsize=(11.0, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(ACROSS), sharey=True)
    for axes, (field, meaning) in zip(panels, ACROSS.items(), strict=True):
        for name, style in styles.items():
            curve = [row for row in chosen if row["policy"] == name]
            axes.plot([row[field] for row in curve], [row["cer"] for row in curve], label=name, **style)
        axes.set_xlabel(meaning)
        title = say_points(f"of {meaning.split(',')[0]} errors are", spoken[field], values)
        axes.set_title(title, loc="left", fontsize="small")
    style_axes(panels)
    panels[0].set_ylabel("character error rate")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings of each set; nothing is written")
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", default=list(JUDGED))
    arguments = parser.parse_args()
    if not arguments.quick:
        read_rows_beside("early_exit_asr_policies")  # raises errors before anything is measured
    torch.set_num_threads(1)
    rows = []
    for system in arguments.only:
        rows += measure_system(system, 4 if arguments.quick else None)
    for row in rows:
        if row["condition"] == ALL_CONDITIONS and row["target_depth"] == 0.6:
            print(
                f"{row['system']:24} {row['policy']:22} depth {row['depth']:.3f}  time {row['time']:.3f}  CER "
                f"{row['cer']:.4f}  static {row['cer_static']:.4f}  random {row['cer_random']:.4f}  gain "
                f"{row['cer_over_static']:+.4f} [{row['cer_over_static_low']:+.4f}, {row['cer_over_static_high']:+.4f}]"
            )
    if not arguments.quick:
        rows = sort_systems(replace_rows(rows, "early_exit_asr_policies", ("system",)))
        write_result("early_exit_asr_policies", rows, ())
        if any(row["system"] == DRAWN_SYSTEM for row in rows):
            draw(rows)


if __name__ == "__main__":
    run_script(main)
