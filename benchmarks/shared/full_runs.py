"""Full runs of the shared recordings under noise, made once and kept in runs/traces, named by a digest of their inputs.

    python -m benchmarks.shared.full_runs daisy-mini [--parts recorded white]  # several at once, given enough cores

Calibration: dev splits of librispeech, commands and keywords, clean and with noise of the train split. Test: the test
splits of all five sets, clean, with noise of the test split, with white, pink and babble noise, in rooms and clipped.
Groups are speakers, or groups of recordings in their place (pseudo-speakers).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.progress import Progress

import daisy
from benchmarks.shared.recordings import TEST_SETS, TRAINING_SETS, read_index, read_noises, read_utterances
from benchmarks.shared.results import Row
from benchmarks.shared.script import RUNS, make_parser, run_script
from daisy import checkpoints
from daisy.audio import conditions, mixing
from daisy.audio.conditions import Condition
from daisy.calibration import trace_conditions, traces, tracing
from daisy.calibration.trace_conditions import Speech
from daisy.calibration.traces import Traces
from daisy.cli.options import SNRS_DB
from daisy.policies.scores import SCORES

NOISE_KINDS = ("recorded", *conditions.GENERATED)
NOISY_SNRS_DB = tuple(snr_db for snr_db in SNRS_DB if snr_db is not None)
CACHE = RUNS / "traces"
PARTS: dict[str, list[Condition]] = {
    "recorded": conditions.make_conditions(("recorded",), SNRS_DB),
    **{kind: conditions.make_conditions((kind,), NOISY_SNRS_DB) for kind in conditions.GENERATED},
    "rooms": conditions.make_conditions((), (), (0.3, 0.6), (1.0, 10.0)),
}
"""Conditions that are run and kept together."""


def load_calibration_runs(model: Path | str, limit: int | None = None, parts: Iterable[str] = NOISE_KINDS) -> Traces:
    """Load runs of dev audio, clean and with the noise of some `PARTS`; recorded noise is of the train split."""
    return traces.join_traces([_load_part(model, TRAINING_SETS, "dev", "train", part, limit) for part in parts])


def load_test_runs(model: Path | str, limit: int | None = None, parts: Iterable[str] = tuple(PARTS)) -> Traces:
    """Load runs of test audio in all conditions, or in those of some `PARTS`."""
    return traces.join_traces([_load_part(model, TEST_SETS, "test", "test", part, limit) for part in parts])


def digest_runs(
    recordings: Iterable[tuple[str, Row]], noise_split: str | None, heard: Sequence[Condition], scores: Iterable[str]
) -> str:
    """Compute a digest, 12 hexadecimal digits, of everything that decides full runs besides the checkpoint.

    Args:
        recordings: set of each recording, and its line of the index, which has path, length and speaker.
        noise_split: split of the recorded noise; None if there is none.
        heard: conditions. The source code that makes them is included, as are their names and levels.
        scores: names of the computed scores.
    """
    content = {
        "daisy": daisy.__version__,
        "recordings": [[name, row] for name, row in recordings],
        "noise": read_index("noise", noise_split) if noise_split else [],
        "conditions": [repr(condition) for condition in heard],
        "code": [inspect.getsource(module) for module in (conditions, mixing)],
        "scores": sorted(scores),
        "losses": tracing.LOSSES,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def name_calibration_runs(model: Path | str, part: str) -> str:
    """Return the name of the runs of dev audio for one of `PARTS`; different runs have different names."""
    return _name_part(model, TRAINING_SETS, "dev", "train", part).stem


def _name_part(model: Path | str, sets: Sequence[str], split: str, noise_split: str, part: str) -> Path:
    """Return the path for a part's runs on all recordings."""
    recordings = [(name, row) for name in sets for row in read_index(name, split)]
    digest = digest_runs(recordings, noise_split, PARTS[part], SCORES)
    return CACHE / f"{checkpoints.digest(model)[:12]}-{split}-{part}-{digest}.csv"


def _load_part(
    model: Path | str, sets: Sequence[str], split: str, noise_split: str, part: str, limit: int | None
) -> Traces:
    """Load earlier runs, or make them; runs on all recordings are kept."""
    path = _name_part(model, sets, split, noise_split, part)
    if path.is_file() and limit is None:
        return traces.read_traces(path)
    utterances = read_utterances(sets, split, limit)
    speech = Speech(
        waveforms=[utterance.waveform for utterance in utterances],
        names=[f"{utterance.set}/{index}" for index, utterance in enumerate(utterances)],
        groups=[utterance.speaker for utterance in utterances],
        failed={},
    )
    with Progress() as bar:
        task = bar.add_task(f"{split}, {part}", total=len(utterances) * len({conditions.CLEAN, *PARTS[part]}))
        runs = trace_conditions.run_conditions(
            daisy.load(model),
            speech,
            PARTS[part],
            {"recorded": read_noises(noise_split)},
            progress=lambda count: bar.advance(task, count),
        )
    if limit is None:
        traces.write_traces(runs, path)
    return runs


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    arguments = parser.parse_args()
    load_calibration_runs(arguments.model)
    for part in arguments.parts:
        print(f"{part}: {len(load_test_runs(arguments.model, parts=[part]))} runs")


if __name__ == "__main__":
    run_script(main)
