"""What each part of the pre-training recipe is worth: short trainings that differ in one thing, from the same start.

    python benchmarks/ablations.py runs

Every variant is trained for the same number of updates of 64 s on one CPU core (a stopped run goes on), then judged by
what it did not choose: a new linear classifier of its last layer's masked frames, fitted on 300 training recordings
(loss on dev, on MFCC units and on those of the second iteration), how far that classifier's decisions on noisy audio
at 10 dB agree with those on clean audio, and the cross-validated accuracy of a keyword probe, groups of recordings held
out whole. Single runs with one seed: differences of a percent mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import torch
from common import HERE, guarded, noises, rows, utterances, write
from pretraining import fitted, heard, recordings
from probes import pooled_layers
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import daisy
from daisy import audio, files, frames, masked
from fairseq_plugins.model import read_backbone

ROOT = HERE.parent
QUIET = ("task.noise_prob=0", "task.talkers_prob=0", "task.reverb_prob=0", "task.speeds=[1.0]")
LEARNING = ("model.feature_grad_mult=0.1", "criterion.loss_weights=[10.0]")
VARIANTS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "clean audio": QUIET,
    "noise and talkers only": ("task.reverb_prob=0", "task.speeds=[1.0]"),
    "every recording once": ("manifests=data",),
    "units without centring": ("units=raw",),
    "units of layer 6": ("units=6",),
    "200 units": ("units=200",),
    "MFCC units again": ("units=mfcc",),
    "front end learns": LEARNING,
}
"""Overrides of the configuration; ``units`` and ``manifests`` name folders."""
UNITS: dict[str, tuple[str, ...]] = {
    "raw": ("--layer", "12", "--clusters", "100"),
    "6": ("--layer", "6", "--clusters", "100", "--centre"),
    "200": ("--layer", "12", "--clusters", "200", "--centre"),
}
PROBED_LAYERS = (3, 6, 9, 12)


def prepare_units(name: str, runs: Path, iteration1: Path) -> Path:
    """Folder of a variant's units, made where it is not there yet."""
    folder = runs / "ablations" / f"units_{name}"
    if name == "mfcc":
        return runs / "pretrain" / "units1"
    if not (folder / "valid.km").is_file():
        manifests = [str(runs / "balanced" / f"{split}.tsv") for split in ("train", "valid")]
        options = ["--checkpoint", str(iteration1), *UNITS[name], "--fit-frames", "100000"]
        run("daisy", "labels", *manifests, "--out", str(folder), *options)
    return folder


def once_each(runs: Path) -> Path:
    """The second iteration's units for the manifest that lists every recording once."""
    folder = runs / "ablations" / "units_data"
    lines = audio.read_manifest(runs / "balanced" / "train.tsv")
    units = (runs / "pretrain" / "units2" / "train.km").read_text().splitlines()
    known = dict(zip((line.name for line in lines), units, strict=True))
    wanted = [known[line.name] for line in audio.read_manifest(runs / "data" / "train.tsv")]
    files.write(folder / "train.km", ("\n".join(wanted) + "\n").encode())
    for name in ("valid.km", "dict.km.txt"):
        files.write(folder / name, (runs / "pretrain" / "units2" / name).read_bytes())
    return folder


def train(name: str, overrides: tuple[str, ...], runs: Path, updates: int) -> Path:
    """A variant's checkpoint."""
    own = dict(text.split("=") for text in overrides if text.startswith(("units=", "manifests=")))
    iteration1 = runs / "pretrain" / "iteration1.safetensors"
    manifests = runs / own.get("manifests", "balanced")
    units = runs / "pretrain" / "units2"
    if "units" in own:
        units = prepare_units(own["units"], runs, iteration1)
    if "manifests" in own:
        units = once_each(runs)
    folder = runs / "ablations" / name.replace(" ", "_")
    start, done = folder / "start.safetensors", folder / "checkpoints" / "checkpoint_last.pt"
    if not start.is_file():
        run(
            sys.executable, "-m", "fairseq_plugins.warm_start", str(iteration1), "--recordings", "200",
            "--manifest", str(manifests / "train.tsv"), "--units", str(units / "train.km"), "--out", str(start),
        )  # fmt: skip
    run(
        "fairseq-hydra-train", "--config-dir", str(ROOT / "fairseq_plugins" / "config"), "--config-name",
        "hubert_mini_pretraining", f"common.user_dir={ROOT / 'fairseq_plugins'}", "common.cpu=true",
        f"task.data={manifests}", f"task.label_dir={units}", f"task.noise_manifest={runs / 'data' / 'noise.tsv'}",
        f"model.warm_start={start}", f"hydra.run.dir={folder}", "dataset.max_tokens=1024000",
        "lr_scheduler.warmup_updates=30", f"lr_scheduler.total_num_update={updates}",
        f"optimization.max_update={updates}", *(text for text in overrides if text.split("=")[0] not in own),
        log=folder / "train.log",
    )  # fmt: skip
    return done


def run(*command: str, log: Path | None = None) -> None:
    """A command of this environment, on one core; its output goes to ``log``, or nowhere."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    beside = Path(sys.executable).parent / command[0]
    program = str(beside) if beside.exists() else command[0]
    with open(log or os.devnull, "a", encoding="utf-8") as stream:
        done = subprocess.run([program, *command[1:]], stdout=stream, stderr=stream, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} …: exit status {done.returncode}" + (f"; see {log}" if log else ""))


def judge(model: daisy.Model, runs: Path) -> dict:
    """What the docstring of this script says."""
    bank, found = noises("train"), {}
    for units_name, folder in (("mfcc", "units1"), ("iteration2", "units2")):
        train_set = recordings(runs / "balanced" / "train.tsv", runs / "pretrain" / folder / "train.km", 300)
        dev = recordings(runs / "balanced" / "valid.tsv", runs / "pretrain" / folder / "valid.km")
        num_units = 1 + max(int(line.max()) for line in train_set[1] + dev[1])
        classifier = fitted(*masked.masked_frames(model, *train_set, seed=1), num_units)
        for condition in ("clean", "10 dB"):
            states, targets = masked.masked_frames(model, heard(condition, dev[0], bank), dev[1], seed=2)
            loss = torch.nn.functional.cross_entropy(classifier(states), targets)
            found[f"{units_name}_{condition.replace(' ', '_').lower()}_nats"] = float(loss)
        decided = [
            torch.cat([classifier(unmasked(model, waveform)).argmax(-1) for waveform in heard(condition, dev[0], bank)])
            for condition in ("clean", "10 dB")
        ]
        found[f"{units_name}_agreement_10_db"] = float((decided[0] == decided[1]).float().mean())
    spoken = utterances(("keywords",), "train")
    pooled = pooled_layers(model.backbone)
    features = torch.stack([pooled(utterance.waveform) for utterance in spoken]).numpy()
    words, groups = keyword_labels(), [utterance.speaker for utterance in spoken]
    for layer in PROBED_LAYERS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        scores = cross_val_score(probe, features[:, layer], words, groups=groups, cv=GroupKFold(5))
        found[f"keyword_accuracy_layer_{layer}"] = float(numpy.mean(scores))
    return found


def unmasked(model: daisy.Model, waveform: torch.Tensor) -> torch.Tensor:
    num_frames = frames.num_frames(len(waveform), model.backbone.config.conv_layers)
    return masked.states(model, waveform, torch.zeros(num_frames, dtype=torch.bool))


def keyword_labels() -> list[str]:
    return [row["text_or_label"] for row in rows("keywords", "train")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of benchmarks/real_run.sh")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--updates", type=int, default=200)
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    for name in arguments.only:
        path = train(name, VARIANTS[name], runs, arguments.updates)
        verdict = {"variant": name, "updates": arguments.updates, **judge(read_backbone(str(path)), runs)}
        files.write_json(path.parent.parent / "verdict.json", verdict)
        print(name, *(f"{key} {value:.3f}" for key, value in verdict.items() if isinstance(value, float)), flush=True)
    verdicts = [runs / "ablations" / name.replace(" ", "_") / "verdict.json" for name in VARIANTS]
    write("ablations", [json.loads(path.read_text(encoding="utf-8")) for path in verdicts if path.is_file()])


if __name__ == "__main__":
    guarded(main)
