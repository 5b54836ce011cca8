"""The variants of the pre-training recipe, trained by fairseq, for ablations.py."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shared.script import ROOT
from daisy import _files, audio
from daisy.checkpoints import Model, save
from daisy.errors import OutputError
from daisy.models import Backbone, BackboneConfig
from fairseq_plugins.model import read_backbone

QUIET = ("task.noise_prob=0", "task.talkers_prob=0", "task.reverb_prob=0", "task.speeds=[1.0]")
WIDE, SHALLOW = "model.encoder_ffn_embed_dim=2048", "model.encoder_layers=4"
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
    "feed-forward of 2048": (WIDE,),
    "4 layers": (SHALLOW,),
    "noise and talkers only": ("task.reverb_prob=0", "task.speeds=[1.0]"),
    "MFCC units again": ("units=mfcc",),
    "front end learns": ("model.feature_grad_mult=0.1", "criterion.loss_weights=[10.0]"),
}
"""Overrides of the configuration; ``units`` and ``manifests`` name folders."""
START = "iteration 1, the start"
UNITS: dict[str, tuple[str, ...]] = {
    "raw": ("--layer", "12", "--clusters", "100"),
    "6": ("--layer", "6", "--clusters", "100", "--centre"),
    "200": ("--layer", "12", "--clusters", "200", "--centre"),
}
"""Options of ``daisy labels`` for each folder of units."""
KEPT_LAYERS = (3, 6, 9, 12)
"""Of the variant with four layers: those that hubert_mini was grown from."""


def name_folder(name: str, runs: Path) -> Path:
    """Return a variant's folder."""
    return runs / "ablations" / name.replace(",", "").replace(" ", "_")


def find_iteration1(runs: Path) -> Path:
    """Return the checkpoint that all variants go on from."""
    return runs / "pretrain" / "iteration1.safetensors"


def train_variant(name: str, runs: Path, updates: int) -> Path:
    """Train a variant, from where it stopped, and return its checkpoint.

    Raises:
        OutputError: where a command fails.
    """
    overrides = VARIANTS[name]
    folders = dict(text.split("=") for text in overrides if text.startswith(("units=", "manifests=")))
    manifests = runs / folders.get("manifests", "balanced")
    units = runs / "pretrain" / "units2"
    if "units" in folders:
        units = prepare_units(folders["units"], runs)
    if "manifests" in folders:
        units = copy_units_once(runs)
    folder = name_folder(name, runs)
    start = prepare_start(folder, overrides, manifests, units, runs)
    run_command(
        "fairseq-hydra-train", "--config-dir", str(ROOT / "fairseq_plugins" / "config"), "--config-name",
        "hubert_mini_pretraining", f"common.user_dir={ROOT / 'fairseq_plugins'}", "common.cpu=true",
        f"task.data={manifests}", f"task.label_dir={units}", f"task.noise_manifest={runs / 'data' / 'noise.tsv'}",
        f"model.warm_start={start}", f"hydra.run.dir={folder}", "dataset.max_tokens=1024000",
        "lr_scheduler.warmup_updates=30", f"lr_scheduler.total_num_update={updates}",
        f"optimization.max_update={updates}", *(text for text in overrides if text.split("=")[0] not in folders),
        log=folder / "train.log",
    )  # fmt: skip
    return folder / "checkpoints" / "checkpoint_last.pt"


def prepare_units(name: str, runs: Path) -> Path:
    """Make a variant's units where they are not there yet, and return their folder."""
    folder = runs / "ablations" / f"units_{name}"
    if name == "mfcc":
        return runs / "pretrain" / "units1"
    if not (folder / "valid.km").is_file():
        manifests = [str(runs / "balanced" / f"{split}.tsv") for split in ("train", "valid")]
        options = ["--checkpoint", str(find_iteration1(runs)), *UNITS[name], "--fit-frames", "100000"]
        run_command("daisy", "labels", *manifests, "--out", str(folder), *options)
    return folder


def copy_units_once(runs: Path) -> Path:
    """Copy the second iteration's units for the manifest that lists every recording once; return their folder."""
    folder = runs / "ablations" / "units_data"
    lines = audio.read_manifest(runs / "balanced" / "train.tsv")
    units = (runs / "pretrain" / "units2" / "train.km").read_text().splitlines()
    by_name = dict(zip((line.name for line in lines), units, strict=True))
    chosen = [by_name[line.name] for line in audio.read_manifest(runs / "data" / "train.tsv")]
    _files.write(folder / "train.km", ("\n".join(chosen) + "\n").encode())
    for name in ("valid.km", "dict.km.txt"):
        _files.write(folder / name, (runs / "pretrain" / "units2" / name).read_bytes())
    return folder


def prepare_start(folder: Path, overrides: tuple[str, ...], manifests: Path, units: Path, runs: Path) -> Path:
    """Make the checkpoint that a variant starts from, with a prediction head for its units."""
    start = folder / "start.safetensors"
    if not start.is_file():
        source = folder / "source.safetensors"
        save(reshape(read_backbone(str(find_iteration1(runs))), overrides), source)
        run_command(
            sys.executable, "-m", "fairseq_plugins.warm_start", str(source), "--recordings", "200",
            "--manifest", str(manifests / "train.tsv"), "--units", str(units / "train.km"), "--out", str(start),
        )  # fmt: skip
    return start


def run_command(*command: str, log: Path | None = None) -> None:
    """Run a command of this environment on one core; its output goes to ``log``, or nowhere.

    Raises:
        OutputError: where it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    beside = Path(sys.executable).parent / command[0]
    program = str(beside) if beside.exists() else command[0]
    with open(log or os.devnull, "a", encoding="utf-8") as stream:
        ended = subprocess.run([program, *command[1:]], stdout=stream, stderr=stream, env=environment)
    if ended.returncode:
        where = f"; see {log}" if log else ""
        raise OutputError(f"{' '.join(command[:4])} …: exit status {ended.returncode}{where}")


def reshape(model: Model, overrides: tuple[str, ...]) -> Model:
    """Bring the start into the variant's shape: a wider feed-forward computes the same at first, fewer layers do not.

    More layers need nothing: the model's ``warm_start`` spreads them.
    """
    state, config = model.backbone.state_dict(), model.backbone.config
    if WIDE in overrides:
        state, config = widen(state, config, int(WIDE.partition("=")[2]))
    if SHALLOW in overrides:
        state, config = drop_layers(state, config)
    backbone = Backbone(config)
    backbone.load_state_dict(state)
    return Model(
        backbone=backbone,
        heads=model.heads,
        final_head=model.final_head,
        policies=model.policies,
        provenance=model.provenance,
    )


def widen(state: dict[str, Tensor], config: BackboneConfig, width: int) -> tuple[dict[str, Tensor], BackboneConfig]:
    """Widen the feed-forward blocks by inputs at random whose outputs are not read at first."""
    torch.manual_seed(0)
    wider = dict(state)
    for key, value in state.items():
        added = width - config.ffn_width
        if "intermediate_dense" in key:
            wider[key] = torch.cat([value, value.std() * torch.randn(added, *value.shape[1:])])
        elif "output_dense.weight" in key:
            wider[key] = torch.cat([value, torch.zeros(len(value), added)], dim=1)
    return wider, dataclasses.replace(config, ffn_width=width)


def drop_layers(state: dict[str, Tensor], config: BackboneConfig) -> tuple[dict[str, Tensor], BackboneConfig]:
    """Drop all but `KEPT_LAYERS`."""
    places = {layer - 1: place for place, layer in enumerate(KEPT_LAYERS)}
    number = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
    kept = {}
    for key, value in state.items():
        match = number.fullmatch(key)
        if not match:
            kept[key] = value
        elif int(match[2]) in places:
            kept[f"{match[1]}{places[int(match[2])]}{match[3]}"] = value
    return kept, dataclasses.replace(config, num_layers=len(KEPT_LAYERS))
