"""Log each utterance's exit in ``exits.jsonl``, line by line, and all runs' sums in ``exits_summary.json``."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from daisy import _files, _locks
from daisy.calibration import cost
from daisy.encoder import EarlyExitEncoder
from daisy.errors import OutputError
from daisy.policies.scores import WITHOUT_HEADS, to_json
from s3prl_upstream.frozen import Batch, Utterance

FORMAT_VERSION = 1
LINES = "exits.jsonl"
SUMMARY = "exits_summary.json"


@dataclass(kw_only=True)
class Split:
    """Sums over a split. Utterances count once, however often they run; seconds count each time."""

    audio: dict[str, set[str]] = field(default_factory=dict)
    """Digests of the logged audio by name; several where a corpus gives several utterances one name."""
    met: Counter[str] = field(default_factory=Counter)
    """Number of occurrences in this pass, by name."""
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

    An utterance of a split gets a line when it first runs, and none in later epochs. Of an utterance that
    has other audio in a later pass through the data (random crops, augmentation), the first version counts.
    The files hold one run after the other, distinguished by ``run``.

    Args:
        folder: folder of the experiment.
        encoder: encoder that runs.
        settings: settings of the run, for the summary.

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
        self.crops = False
        """Whether utterances recur with other audio."""
        _files.check_writable(folder / LINES)
        with self._lock():
            _files.whole_lines(folder / LINES)  # drops an unfinished line of a killed run
        self.write_summary()

    def new_pass(self, split: str) -> None:
        """Start a new pass through a split."""
        self.splits.setdefault(split, Split()).met.clear()

    def _lock(self) -> AbstractContextManager[None]:
        return _locks.hold(self.folder / f".{SUMMARY}.lock")

    def add(self, split: str, names: Sequence[str], batch: Batch) -> None:
        """Log a batch.

        Args:
            split: s3prl's name of the split.
            names: names of the batch's utterances; empty where the task gives none, and the audio's digest is used.
            batch: result of the upstream.

        Raises:
            OutputError: where the log cannot be written.
        """
        sums = self.splits.setdefault(split, Split())
        sums.computed_sec += batch.computed_sec
        sums.cache_sec += batch.cache_sec
        lines = []
        for name, utterance in zip(
            names or [utterance.audio[:16] for utterance in batch.utterances], batch.utterances, strict=True
        ):
            sums.utterances_run += 1
            sums.utterances_cached += utterance.cached
            if not utterance.cached:
                sums.computed_audio_sec += utterance.num_samples / self.sample_rate
            sums.met[name] += 1
            known = sums.audio.setdefault(name, set())
            if utterance.audio in known:
                continue
            if sums.met[name] > len(known):
                self._count(sums, utterance)
                known.add(utterance.audio)
                lines.append(self._line(split, name, utterance))
            else:
                self._note_crops(split, name)
        if lines:
            _files.append(self.folder / LINES, "".join(json.dumps(line) + "\n" for line in lines))

    def write_summary(self) -> None:
        """Write this run's sums, if any, to the summary beside those of other runs.

        Raises:
            OutputError: where the summary cannot be written.
        """
        path = self.folder / SUMMARY
        with self._lock():
            try:
                runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
                others = [run for run in runs if run["run"] != self.run]
            except FileNotFoundError:
                others = []
            except (OSError, ValueError, KeyError, TypeError):
                raise OutputError(f"{path}: not a summary of daisy's; move it away") from None
            totals = self.totals()
            this_run = [{"run": self.run, **self.settings, "splits": totals}] if totals else []
            _files.write_json(path, {"format_version": FORMAT_VERSION, "runs": [*others, *this_run]})

    def report(self) -> str:
        """Report one line for each split: mean exit layer, share of the operations, seconds."""
        return "\n".join(
            f"[daisy] {name}: mean exit layer {totals['mean_exit_layer']:.2f} of {self.num_layers}, "
            f"{totals['macs_share']:.0%} of the multiply-accumulates, upstream {totals['upstream_sec']:.1f} s, "
            f"{totals['utterances']} utterances"
            for name, totals in self.totals().items()
        )

    def totals(self) -> dict[str, dict]:
        """Return the sums of each split that was run."""
        return {name: self._totals(split) for name, split in self.splits.items() if split.utterances_run}

    def _totals(self, split: Split) -> dict:
        count = sum(split.exits.values())
        mean = sum(layer * n for layer, n in split.exits.items()) / count
        computed, leaves = split.computed_audio_sec, not self.settings.get("recorded_to_the_end")
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
            "real_time_factor": split.computed_sec / computed if computed and split.computed_sec and leaves else None,
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
            "scores": {score: to_json(values[:last]) for score, values in utterance.scores.items()},
        }

    def _note_crops(self, split: str, name: str) -> None:
        if self.crops:
            return
        self.crops = True
        cache = "; such training audio is no longer added to the cache" if self.settings["cache"] else ""
        print(f"[daisy] {split}: {name} comes back with other audio, as random crops do: logged once{cache}")


def _costs(encoder: EarlyExitEncoder) -> tuple[cost.Cost, cost.Cost, cost.Cost]:
    """Compute the costs of the front end, of a layer with its heads, and of a layer of the full model."""
    config, heads = encoder.backbone.config, encoder.heads
    classifies = bool(set(encoder.score_names) - WITHOUT_HEADS - {"regressed"})
    with_heads = cost.count_layer_macs(config, heads.config if heads and classifies else None, encoder.score_stride)
    return cost.count_front_end_macs(config), with_heads, cost.count_layer_macs(config)
