"""Where each utterance left: ``exits.jsonl`` line by line, and ``exits_summary.json`` of all runs of an experiment."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from daisy import cost, files
from daisy.encoder import EarlyExitEncoder
from daisy.errors import OutputError
from daisy.scores import WITHOUT_HEADS
from s3prl_upstream.frozen import Batch, Utterance

FORMAT_VERSION = 1
LINES = "exits.jsonl"
SUMMARY = "exits_summary.json"


@dataclass(kw_only=True)
class Split:
    """Sums over a split. Utterances count once, however often they are run; seconds count each time."""

    audio: dict[str, str] = field(default_factory=dict)
    """Utterance to the digest of its audio, the first time."""
    exits: Counter[int] = field(default_factory=Counter)
    macs: float = 0.0
    full_macs: float = 0.0
    utterances_run: int = 0
    utterances_cached: int = 0
    computed_audio_sec: float = 0.0
    computed_sec: float = 0.0
    cache_sec: float = 0.0


class ExitLog:
    """The log of one run of an experiment.

    A line for an utterance of a split is written when it is first run; an epoch more adds none. Runs follow one another
    in the files, told apart by ``run``.

    Args:
        folder: of the experiment.
        encoder: what runs.
        settings: of the run, for the summary.

    Raises:
        OutputError: where the folder cannot be written.
    """

    def __init__(self, folder: Path, encoder: EarlyExitEncoder, settings: dict):
        self.folder = folder
        self.run = f"{time.strftime('%Y-%m-%dT%H:%M:%S')}-{secrets.token_hex(3)}"
        self.settings = settings
        self.splits: dict[str, Split] = {}
        self.num_layers = encoder.backbone.config.num_layers
        self.sample_rate = encoder.backbone.config.sample_rate
        self._costs = _costs(encoder)
        self._noted_crops = False
        files.check_writable(folder / SUMMARY)

    def add(self, split: str, names: Sequence[str], batch: Batch) -> None:
        """Note a batch.

        Args:
            split: s3prl's name of it.
            names: of the batch's utterances; empty where the task tells none, whose audio is then the name.
            batch: what the upstream did.

        Raises:
            OutputError: where the log cannot be written.
        """
        sums = self.splits.setdefault(split, Split())
        sums.computed_sec += batch.computed_sec
        sums.cache_sec += batch.cache_sec
        lines = []
        for name, utterance in zip(
            names or [each.audio[:16] for each in batch.utterances], batch.utterances, strict=True
        ):
            sums.utterances_run += 1
            sums.utterances_cached += utterance.cached
            if not utterance.cached:
                sums.computed_audio_sec += utterance.num_samples / self.sample_rate
            if name not in sums.audio:
                self._count(sums, utterance)
                sums.audio[name] = utterance.audio
                lines.append(self._line(split, name, utterance))
            elif sums.audio[name] != utterance.audio:
                self._note_crops(split, name)
        if lines:
            self._append("".join(json.dumps(line) + "\n" for line in lines))

    def write_summary(self) -> None:
        """Put this run's sums into the summary, beside those of other runs.

        Raises:
            OutputError: where it cannot be written.
        """
        path = self.folder / SUMMARY
        with FileLock(self.folder / f".{SUMMARY}.lock"):
            try:
                runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
            except FileNotFoundError:
                runs = []
            except (OSError, ValueError, KeyError, TypeError):
                raise OutputError(f"{path}: not a summary of daisy's; move it away") from None
            own = {
                "run": self.run,
                **self.settings,
                "splits": {name: self._totals(split) for name, split in self.splits.items()},
            }
            runs = [run for run in runs if run["run"] != self.run]
            files.write_json(path, {"format_version": FORMAT_VERSION, "runs": [*runs, own]})

    def report(self) -> str:
        """One line for each split: mean exit layer, share of the operations, seconds."""
        return "\n".join(
            f"[daisy] {name}: mean exit layer {totals['mean_exit_layer']:.2f} of {self.num_layers}, "
            f"{totals['macs_share']:.0%} of the multiply-accumulates, upstream {totals['upstream_sec']:.1f} s, "
            f"{totals['utterances']} utterances"
            for name, totals in ((name, self._totals(split)) for name, split in self.splits.items())
        )

    def _totals(self, split: Split) -> dict:
        count = sum(split.exits.values())
        mean = sum(layer * n for layer, n in split.exits.items()) / count
        computed = split.computed_audio_sec
        return {
            "utterances": count,
            "mean_exit_layer": mean,
            "depth": mean / self.num_layers,
            "exits": [split.exits[layer] for layer in range(1, self.num_layers + 1)],
            "macs": split.macs,
            "macs_share": split.macs / split.full_macs,
            "utterances_run": split.utterances_run,
            "utterances_cached": split.utterances_cached,
            "computed_audio_sec": round(computed, 3),
            "computed_sec": round(split.computed_sec, 3),
            "cache_sec": round(split.cache_sec, 3),
            "upstream_sec": round(split.computed_sec + split.cache_sec, 3),
            "real_time_factor": split.computed_sec / computed if computed and split.computed_sec else None,
        }

    def _count(self, sums: Split, utterance: Utterance) -> None:
        front, with_heads, without = (
            sum(c * utterance.num_frames**power for power, c in enumerate(coefficients)) for coefficients in self._costs
        )
        sums.exits[utterance.exit_layer] += 1
        sums.macs += front + utterance.exit_layer * with_heads
        sums.full_macs += front + self.num_layers * without

    def _line(self, split: str, name: str, utterance: Utterance) -> dict:
        last = utterance.exit_layer
        return {
            "run": self.run,
            "split": split,
            "utterance": name,
            "audio": utterance.audio[:16],
            "duration_sec": round(utterance.num_samples / self.sample_rate, 4),
            "exit_layer": last,
            "scores": {score: _rounded(values[:last]) for score, values in utterance.scores.items()},
        }

    def _append(self, text: str) -> None:
        path = self.folder / LINES
        try:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None

    def _note_crops(self, split: str, name: str) -> None:
        if self._noted_crops:
            return
        self._noted_crops = True
        cache = ", and the cache keeps every version of it" if self.settings["cache"] else ""
        print(f"[daisy] {split}: {name} comes with other audio than before, as random crops do: logged once{cache}")


def _costs(encoder: EarlyExitEncoder) -> tuple[cost.Cost, cost.Cost, cost.Cost]:
    """Of the front end, of a layer as it runs, of a layer of the full model."""
    config, heads = encoder.backbone.config, encoder.heads
    classifies = bool(set(encoder.score_names) - WITHOUT_HEADS - {"regressed"})
    with_heads = cost.layer_macs(config, heads.config if heads and classifies else None, encoder.score_stride)
    return cost.front_end_macs(config), with_heads, cost.layer_macs(config)


def _rounded(values: Tensor) -> list[float | None]:
    """Six digits; None for what is no number, which JSON cannot hold (`change` at layer 1)."""
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]
