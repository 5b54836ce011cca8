"""Full runs of the recognisers on speech with text, made once and kept beside the checkpoint.

File names contain digests of the checkpoint and of the other inputs of the runs.
"""

from __future__ import annotations

from pathlib import Path

import daisy
from benchmarks.recognition.corpora import CORPORA, read_texts
from benchmarks.recognition.systems import SYSTEMS
from benchmarks.recognition.train import FOLDER, find_model
from benchmarks.shared.full_runs import digest_runs
from benchmarks.shared.recordings import SNRS_DB_COARSE, read_noises
from daisy import checkpoints
from daisy.audio import conditions
from daisy.calibration import trace_conditions, traces
from daisy.calibration.text_tracing import TextTask
from daisy.calibration.traces import Traces
from daisy.errors import UsageError
from daisy.policies.scores import SCORES, available_scores

CONDITIONS = conditions.make_conditions(("recorded",), SNRS_DB_COARSE)
NOISE_SPLIT = {"dev": "train", "test": "test"}
WITH_POSTERIOR = ("Conformer, six exits", "daisy-mini, joint", "daisy-mini, frozen")
"""The systems whose posterior is computed, which takes a beam search at every exit."""


def name_runs(name: str, split: str, model_path: Path) -> Path:
    """Return the path for a system's runs on all recordings of a split."""
    scores = set(SCORES) - (set() if name in WITH_POSTERIOR else {"posterior"})
    recordings = CORPORA[SYSTEMS[name].corpus].read_rows(split)
    digest = digest_runs(recordings, NOISE_SPLIT[split], CONDITIONS, scores)
    return model_path.with_name(f"{split}-{checkpoints.digest(model_path)[:12]}-{digest}.csv")


def load_runs(name: str, split: str, limit: int | None = None, folder: Path = FOLDER) -> Traces:
    """Load or make the runs, clean and with recorded noise: scores and errors of all exits.

    Scores of heads on units are included if the network has such heads. Runs on all recordings are kept.

    Raises:
        UsageError: if the system has not been trained.
    """
    model_path = find_model(name, folder)
    if not model_path.is_file():
        raise UsageError(f"{name}: not trained yet; python -m benchmarks.recognition.train makes {model_path}")
    path = name_runs(name, split, model_path)
    if path.is_file() and limit is None:
        return traces.read_traces(path)
    model = daisy.load(model_path)
    speech, texts = read_texts(CORPORA[SYSTEMS[name].corpus], split, limit)
    assert model.tokens is not None
    assert model.ctc is not None
    task = TextTask(
        references=[model.tokens.fold(text) for text in texts],
        with_units=model.heads is not None,
        scores=tuple(sorted(available_scores(model.ctc))) if name in WITH_POSTERIOR else None,
    )
    runs = trace_conditions.run_conditions(
        model,
        speech,
        CONDITIONS,
        {"recorded": read_noises(NOISE_SPLIT[split])},
        task=task,
    )
    if limit is None:
        traces.write_traces(runs, path)
    return runs
