"""Savings from the cache of the s3prl upstream: intent classification on real recordings, with and without it.

    python -m benchmarks.speed.s3prl_cache

120 training and 40 dev recordings of the keywords, five epochs, the default policy. Measures the seconds of the
upstream and of the whole training, bytes on disk, and the distance of the trained weights from those without a cache.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.shared.recordings import DATA, read_index
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from s3prl_upstream import run_downstream

NUM_TRAIN, NUM_DEV, EPOCHS, BATCH = 120, 40, 5, 8
CACHES = {"none": "", "float16, filling": "float16", "float16, full": "float16", "float32, filling": "float32"}
"""Maps rows to the type of the cache; rows of the same type share a cache, which is full for the second."""


def make_corpus(folder: Path, num_train: int, num_dev: int) -> Path:
    """Make the recordings into Fluent Speech Commands' layout, and return s3prl's configuration."""
    for split, source, count in (("train", "train", num_train), ("valid", "dev", num_dev), ("test", "dev", num_dev)):
        rows = read_index("keywords", source)
        rows = rows[:: max(len(rows) // count, 1)][:count]
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["", "path", "speakerId", "transcription", "action", "object", "location"])
        for index, row in enumerate(rows):
            writer.writerow([index, row["path"], "s", "x", row["text_or_label"], "none", "none"])
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / f"{split}_data.csv").write_text(text.getvalue())
    for name in {Path(row["path"]).parts[0] for split in ("train", "dev") for row in read_index("keywords", split)}:
        os.symlink(DATA / "keywords" / name, folder / name)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(make_configuration(folder, num_train)))
    return path


def make_configuration(corpus: Path, num_train: int) -> dict[str, Any]:
    """Make s3prl's configuration for a corpus."""
    steps = EPOCHS * num_train // BATCH
    return {
        "runner": {
            "total_steps": steps,
            "gradient_clipping": 1,
            "gradient_accumulate_steps": 1,
            "log_step": 1,
            "eval_step": steps,
            "save_step": steps,
            "max_keep": 1,
            "eval_dataloaders": ["dev"],
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-3},
        "downstream_expert": {
            "datarc": {
                "file_path": str(corpus),
                "train_batch_size": BATCH,
                "eval_batch_size": BATCH,
                "num_workers": 0,
            },
            "modelrc": {
                "projector_dim": 64,
                "select": "UtteranceLevel",
                "UtteranceLevel": {"pooling": "MeanPooling"},
            },
        },
    }


def train(config: Path, out: Path, cache: Path, dtype: str) -> float:
    """Train on daisy-mini's upstream, with a cache if a type is given; return the seconds taken."""
    options = ["-m", "train", "-u", "daisy_local", "-k", "daisy-mini", "-d", "fluent_commands", "-c", str(config)]
    options += ["-p", str(out), "--device", "cpu"]
    options += ["--cache", str(cache), "--cache-dtype", dtype] if dtype else []
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        run_downstream.run(options)
    return time.perf_counter() - start


def read_weights(folder: Path) -> Tensor:
    """Read all trained weights into one row."""
    (path,) = folder.glob("states-*.ckpt")
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    parts = [checkpoint[part][key] for part in ("Featurizer", "Downstream") for key in sorted(checkpoint[part])]
    return torch.cat([part.flatten() for part in parts])


def read_upstream_seconds(folder: Path) -> float:
    """Read the seconds that the upstream took in a run."""
    (run,) = json.loads((folder / "exits_summary.json").read_text(encoding="utf-8"))["runs"]
    return sum(split["upstream_sec"] for split in run["splits"].values())


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings; nothing is written")
    quick = parser.parse_args().quick
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_corpus(folder / "corpus", *((16, 8) if quick else (NUM_TRAIN, NUM_DEV)))
        expected: Tensor | None = None
        for label, dtype in CACHES.items():
            out, cache = folder / label.replace(", ", "-"), folder / f"cache-{dtype}"
            seconds, weights = train(config, out, cache, dtype), read_weights(out)
            expected = weights if expected is None else expected
            rows.append(
                {
                    "cache": label,
                    "upstream_sec": read_upstream_seconds(out),
                    "training_sec": seconds,
                    "cache_bytes": sum(path.stat().st_size for path in cache.rglob("*.safetensors")),
                    "largest_weight_difference": float((weights - expected).abs().max()),
                }
            )
            print(rows[-1], flush=True)
    if not quick:
        write_result("s3prl_cache", rows)


if __name__ == "__main__":
    run_script(main)
