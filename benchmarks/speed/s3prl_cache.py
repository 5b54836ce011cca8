"""What the cache of the s3prl upstream saves: intent classification on real recordings, with and without it.

    python benchmarks/s3prl_cache.py

120 training and 40 dev recordings of the keywords, five epochs, the default policy. Seconds of the upstream and of the
whole training, bytes on disk, and how far the trained weights are from those without a cache.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
import yaml
from common import SHARED, guarded, rows, write

from s3prl_upstream import run_downstream

TRAIN, DEV, EPOCHS, BATCH = 120, 40, 5, 8
CACHES = {"none": (), "float16, filling": ("float16",), "float16, full": ("float16",), "float32, filling": ("float32",)}


def corpus(folder: Path, train: int, dev: int) -> Path:
    """Fluent Speech Commands' layout around the recordings; returns the configuration."""
    for split, source, count in (("train", "train", train), ("valid", "dev", dev), ("test", "dev", dev)):
        found = rows("keywords", source)
        found = found[:: max(len(found) // count, 1)][:count]
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["", "path", "speakerId", "transcription", "action", "object", "location"])
        for i, row in enumerate(found):
            writer.writerow([i, row["path"], "s", "x", row["text_or_label"], "none", "none"])
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / f"{split}_data.csv").write_text(text.getvalue())
    for name in {Path(row["path"]).parts[0] for split in ("train", "dev") for row in rows("keywords", split)}:
        os.symlink(SHARED / "data" / "keywords" / name, folder / name)
    steps = EPOCHS * train // BATCH
    runner = {"total_steps": steps, "gradient_clipping": 1, "gradient_accumulate_steps": 1, "log_step": 1}
    runner |= {"eval_step": steps, "save_step": steps, "max_keep": 1, "eval_dataloaders": ["dev"]}
    datarc = {"file_path": str(folder), "train_batch_size": BATCH, "eval_batch_size": BATCH, "num_workers": 0}
    modelrc = {"projector_dim": 64, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}
    config = {
        "runner": runner,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-3},
        "downstream_expert": {"datarc": datarc, "modelrc": modelrc},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def weights(folder: Path) -> torch.Tensor:
    """What was trained, in one row."""
    (path,) = folder.glob("states-*.ckpt")
    found = torch.load(path, map_location="cpu", weights_only=False)
    parts = [found[part][key] for part in ("Featurizer", "Downstream") for key in sorted(found[part])]
    return torch.cat([part.flatten() for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few recordings; nothing is written")
    quick = parser.parse_args().quick
    measured: list[dict] = []
    expected = torch.empty(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = corpus(folder / "corpus", *((16, 8) if quick else (TRAIN, DEV)))
        for label, dtype in CACHES.items():
            out, cache = folder / label.replace(", ", "-"), folder / f"cache-{''.join(dtype)}"
            options = ["--cache", str(cache), "--cache-dtype", *dtype] if dtype else []
            known = ["-u", "daisy_local", "-k", "daisy-mini", "-d", "fluent_commands", "-c", str(config)]
            start = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                run_downstream.run(["-m", "train", *known, "-p", str(out), "--device", "cpu", *options])
            seconds, found = time.perf_counter() - start, weights(out)
            expected = found if not measured else expected
            measured.append(
                {
                    "cache": label,
                    "upstream_sec": upstream_seconds(out),
                    "training_sec": seconds,
                    "cache_bytes": sum(path.stat().st_size for path in cache.rglob("*.safetensors")),
                    "largest_weight_difference": float((found - expected).abs().max()),
                }
            )
            print(measured[-1], flush=True)
        shutil.rmtree(folder / "corpus")
    if not quick:
        write("s3prl_cache", measured)


def upstream_seconds(folder: Path) -> float:
    (run,) = json.loads((folder / "exits_summary.json").read_text())["runs"]
    return sum(split["upstream_sec"] for split in run["splits"].values())


if __name__ == "__main__":
    guarded(main)
