"""Full runs of the shared recordings with the units of every layer's head, without repetitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor

from benchmarks.shared.recordings import SNRS_DB_COARSE, count_seconds, read_noises, read_utterances
from daisy import Model
from daisy.calibration.traces import Traces, join_traces
from daisy.calibration.tracing import mix_noise, trace
from daisy.evaluation.figures import format_snr
from daisy.models.heads import SPECIAL_SYMBOLS
from daisy.policies.scores import HeadOutputs
from daisy.policies.texts import edit_distance
from daisy.runtime.exit_output import ExitOutput
from daisy.units import HeadUnits, deduplicate

LOSSES = {"unit_errors": "the full model's units", "final_head_unit_errors": "those of HuBERT's own prediction head"}
"""Edit distances per unit of the reference, and the reference of each."""


@dataclass(frozen=True)
class UnitRuns:
    """Full runs, and the units from every layer's head."""

    traces: Traces
    """Full runs with `LOSSES`, in addition to those of `daisy.calibration.tracing.trace`."""
    sequences: list[list[list[int]]]
    """Units without repetitions, by run and layer."""
    seconds: float
    """Duration of the audio."""

    def of_exits(self, exits: Iterable[int]) -> list[list[int]]:
        """Return each run's units at its exit, 1 to L."""
        return [layers[layer - 1] for layers, layer in zip(self.sequences, exits, strict=True)]


def run_units(
    model: Model,
    sets: Sequence[str],
    split: str,
    noise_split: str,
    limit: int | None = None,
    snrs_db: Sequence[float | None] = SNRS_DB_COARSE,
) -> UnitRuns:
    """Run all recordings of a split, clean and with recorded noise."""
    utterances = read_utterances(sets, split, limit)
    clean = [utterance.waveform for utterance in utterances]
    noises, parts = read_noises(noise_split), []
    with Progress() as bar:
        task = bar.add_task(split, total=len(snrs_db) * len(clean))
        for snr_db in snrs_db:
            parts.append(
                run_condition(
                    model,
                    mix_noise(clean, noises, snr_db),
                    [f"{utterance.set}/{index}" for index, utterance in enumerate(utterances)],
                    [utterance.speaker for utterance in utterances],
                    format_snr(snr_db),
                    progress=lambda count: bar.advance(task, count),
                )
            )
    return UnitRuns(
        traces=join_traces([part.traces for part in parts]),
        sequences=[sequence for part in parts for sequence in part.sequences],
        seconds=count_seconds(clean) * len(snrs_db),
    )


def run_condition(
    model: Model,
    waveforms: Sequence[Tensor],
    names: Sequence[str],
    groups: Sequence[str],
    condition: str,
    progress: object = None,
) -> UnitRuns:
    """Run recordings in one condition."""
    assert model.heads is not None
    classifier = HeadUnits(model.heads)
    sequences: list[list[list[int]]] = [[] for _ in waveforms]

    def note(indices: list[int], out: ExitOutput, layers: list[HeadOutputs]) -> None:
        for outputs in layers:
            units = classifier.classify(outputs.layer, outputs.all_features)
            for index, of_utterance in zip(indices, units.split(out.num_frames.tolist()), strict=True):
                sequences[index].append(deduplicate(of_utterance.tolist())[0])

    told = {} if progress is None else {"progress": progress}
    traces, teacher = trace(model, waveforms, names, groups, condition=condition, observe=note, **told)
    finals = [deduplicate((units - SPECIAL_SYMBOLS).tolist())[0] for units in teacher]
    references = {"unit_errors": [layers[-1] for layers in sequences], "final_head_unit_errors": finals}
    losses, weights = {}, {}
    for name, wanted in references.items():
        errors = [
            [edit_distance(units, reference) / len(reference) for units in layers]
            for layers, reference in zip(sequences, wanted, strict=True)
        ]
        losses[name], weights[name] = torch.tensor(errors), torch.tensor([len(units) for units in wanted]).float()
    return UnitRuns(
        traces=dataclasses.replace(traces, losses={**traces.losses, **losses}, weights_by_loss=weights),
        sequences=sequences,
        seconds=count_seconds(waveforms),
    )
