"""What each part of the pre-training recipe is worth: short trainings that differ in one thing, from the same start.

    python benchmarks/ablations.py runs

Every variant goes on from iteration 1 for the same number of updates of 64 s on one CPU core (a stopped run goes on),
then is judged by what it did not choose:

- masked prediction on 60 dev recordings: a new linear classifier of its last layer's masked frames, fitted on 150
  training recordings, on MFCC units and on those of iteration 2;
- agreement with the clean audio's units (of iteration 2) on the same dev recordings at each layer and SNR: linear
  classifiers as exit heads are, fitted on the same 150, a quarter of them clean and the others with training noise;
- the cross-validated accuracy of a keyword probe on the train split, groups of recordings held out whole.

One run each, but for further seeds of the recipe and of clean audio, which show how far two runs differ by chance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import torch
from common import HERE, guarded, noises, rows, utterances, write
from pretraining import fitted, recordings
from probes import pooled_layers
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import daisy
from daisy import _files, audio
from daisy.calibration import tracing
from daisy.errors import UsageError, unknown_name
from daisy.evaluation.figures import format_snr
from daisy.models import Backbone
from fairseq_plugins import masked
from fairseq_plugins.model import read_backbone

ROOT = HERE.parent
QUIET = ("task.noise_prob=0", "task.talkers_prob=0", "task.reverb_prob=0", "task.speeds=[1.0]")
LEARNING = ("model.feature_grad_mult=0.1", "criterion.loss_weights=[10.0]")
VARIANTS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "recipe, second seed": ("common.seed=2",),
    "recipe, third seed": ("common.seed=3",),
    "clean audio": QUIET,
    "clean audio, second seed": (*QUIET, "common.seed=2"),
    "units without centring": ("units=raw",),
    "units of layer 6": ("units=6",),
    "every recording once": ("manifests=data",),
    "200 units": ("units=200",),
    "24 layers": ("model.encoder_layers=24",),
    "feed-forward of 2048": ("model.encoder_ffn_embed_dim=2048",),
    "4 layers": ("model.encoder_layers=4",),
    "noise and talkers only": ("task.reverb_prob=0", "task.speeds=[1.0]"),
    "MFCC units again": ("units=mfcc",),
    "front end learns": LEARNING,
}
"""Overrides of the configuration; ``units`` and ``manifests`` name folders."""
UNITS: dict[str, tuple[str, ...]] = {
    "raw": ("--layer", "12", "--clusters", "100"),
    "6": ("--layer", "6", "--clusters", "100", "--centre"),
    "200": ("--layer", "12", "--clusters", "200", "--centre"),
}
FIT_RECORDINGS, DEV_RECORDINGS = 150, 60
START = "iteration 1, the start"
SNRS_DB = (None, 20.0, 10.0, 0.0)
KEPT_LAYERS = (3, 6, 9, 12)
"""Of the variant with four layers: those that hubert_mini was grown from."""


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
    _files.write(folder / "train.km", ("\n".join(wanted) + "\n").encode())
    for name in ("valid.km", "dict.km.txt"):
        _files.write(folder / name, (runs / "pretrain" / "units2" / name).read_bytes())
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
    folder = folder_of(name, runs)
    start, done = folder / "start.safetensors", folder / "checkpoints" / "checkpoint_last.pt"
    if not start.is_file():
        source = folder / "source.safetensors"
        daisy.save(reshaped(read_backbone(str(iteration1)), overrides), source)
        run(
            sys.executable, "-m", "fairseq_plugins.warm_start", str(source), "--recordings", "200",
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


def reshaped(model: daisy.Model, overrides: tuple[str, ...]) -> daisy.Model:
    """The start in the variant's shape: a wider feed-forward computes the same at first, fewer layers do not.

    More layers need nothing: the model's ``warm_start`` spreads them.
    """
    state, config = model.backbone.state_dict(), model.backbone.config
    if "model.encoder_ffn_embed_dim=2048" in overrides:
        config = dataclasses.replace(config, ffn_width=2048)
        torch.manual_seed(0)
        for key, value in list(state.items()):
            if "intermediate_dense" in key:
                state[key] = torch.cat([value, value.std() * torch.randn_like(value)])
            elif "output_dense.weight" in key:
                state[key] = torch.cat([value, torch.zeros_like(value)], dim=1)
    if "model.encoder_layers=4" in overrides:
        config = dataclasses.replace(config, num_layers=len(KEPT_LAYERS))
        places = {layer - 1: place for place, layer in enumerate(KEPT_LAYERS)}
        number = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
        matches = {key: number.fullmatch(key) for key in state}
        state = {
            f"{match[1]}{places[int(match[2])]}{match[3]}" if match else key: state[key]
            for key, match in matches.items()
            if not match or int(match[2]) in places
        }
    backbone = Backbone(config)
    backbone.load_state_dict(state)
    return dataclasses.replace(model, backbone=backbone.eval())


def judge(model: daisy.Model, runs: Path) -> dict:
    """What the docstring of this script says."""
    bank, found = noises("train"), {}
    of = {
        name: {
            split: recordings(runs / "balanced" / f"{split}.tsv", runs / "pretrain" / folder / f"{split}.km", count)
            for split, count in (("train", FIT_RECORDINGS), ("valid", DEV_RECORDINGS))
        }
        for name, folder in (("mfcc", "units1"), ("iteration2", "units2"))
    }
    for name, sets in of.items():
        num_units = 1 + max(int(line.max()) for line in sets["train"][1] + sets["valid"][1])
        classifier = fitted(*masked.masked_frames(model, *sets["train"], seed=1), num_units)
        states, targets = masked.masked_frames(model, *sets["valid"], seed=2)
        found[f"{name}_nats"] = float(torch.nn.functional.cross_entropy(classifier(states), targets))
    train_set, dev = of["iteration2"]["train"], of["iteration2"]["valid"]
    found["agreement"] = agreement(model, train_set, dev, num_units, bank)
    spoken = utterances(("keywords",), "train")
    pooled = pooled_layers(model.backbone)
    features = torch.stack([pooled(utterance.waveform) for utterance in spoken]).numpy()[:, -1]
    words, groups = [row["text_or_label"] for row in rows("keywords", "train")], [u.speaker for u in spoken]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    scores = cross_val_score(probe, features, words, groups=groups, cv=GroupKFold(5))
    return found | {"keyword_accuracy": float(numpy.mean(scores))}


def agreement(model: daisy.Model, train_set, dev, num_units: int, bank) -> dict[str, list[float]]:
    """Share of frames whose unit at each layer is the clean audio's, by condition."""
    parts = [train_set[0][offset :: len(SNRS_DB)] for offset in range(len(SNRS_DB))]
    units = [train_set[1][offset :: len(SNRS_DB)] for offset in range(len(SNRS_DB))]
    noisy = [w for part, snr_db in zip(parts, SNRS_DB, strict=True) for w in tracing.mix_noise(part, bank, snr_db)]
    states, targets = every_layer(model, noisy, [line for part in units for line in part])
    heads = [fitted(states[layer], targets, num_units) for layer in range(len(states))]
    shares = {}
    for snr_db in SNRS_DB:
        states, targets = every_layer(model, tracing.mix_noise(dev[0], bank, snr_db, seed=1), dev[1])
        shares[format_snr(snr_db)] = [
            float((head(of_layer).argmax(-1) == targets).float().mean())
            for head, of_layer in zip(heads, states, strict=True)
        ]
    return shares


def every_layer(model: daisy.Model, waveforms, units) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, S, D) states of layers 1 to L at all frames, and (S,) units."""
    encoder = daisy.EarlyExitEncoder(model.backbone, None, daisy.policies.Never())
    states, targets = [], []
    for waveform, line in zip(waveforms, units, strict=True):
        found = encoder([waveform]).states[0][1:]
        count = min(found.shape[1], len(line))
        states.append(found[:, :count])
        targets.append(line[:count])
    return torch.cat(states, dim=1), torch.cat(targets)


def folder_of(name: str, runs: Path) -> Path:
    return runs / "ablations" / name.replace(",", "").replace(" ", "_")


def conclude(name: str, updates: int, model: daisy.Model, runs: Path) -> None:
    """Judge a variant, once."""
    path = folder_of(name, runs) / "verdict.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["updates"] == updates:
        return
    verdict = {"variant": name, "updates": updates, **judge(model, runs)}
    _files.write_json(path, verdict)
    print(name, *(f"{key} {value:.3f}" for key, value in verdict.items() if isinstance(value, float)))
    print(
        *(f"{key}: {' '.join(f'{v:.2f}' for v in values)}" for key, values in verdict["agreement"].items()), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of benchmarks/real_run.sh")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), metavar="VARIANT", help="none: only the table")
    parser.add_argument("--updates", type=int, default=250)
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    conclude(START, 0, read_backbone(str(runs / "pretrain" / "iteration1.safetensors")), runs)
    for name in arguments.only:
        if name not in VARIANTS:
            raise UsageError(unknown_name("variant", name, VARIANTS))
        path = train(name, VARIANTS[name], runs, arguments.updates)
        conclude(name, arguments.updates, read_backbone(str(path)), runs)
    verdicts = [folder_of(name, runs) / "verdict.json" for name in (START, *VARIANTS)]
    write("ablations", [json.loads(path.read_text(encoding="utf-8")) for path in verdicts if path.is_file()])


if __name__ == "__main__":
    guarded(main)
