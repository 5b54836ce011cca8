"""Effects of losses at all layers, of units and of hours of speech on exits: short trainings from the same start.

    python -m benchmarks.training.exit_variants runs --teacher openai/whisper-base --beside daisy-mini=daisy-mini
    python -m benchmarks.training.exit_variants runs --only "3 hours"          # the others' rows stay

Every variant starts from the same network, with a prediction head for its units (`fairseq_plugins.warm_start`), and
runs the same number of updates of 48 s on one CPU core, in bfloat16 if the CPU multiplies it fast; a stopped run
continues. Each is measured as in `benchmarks.training.exits` as soon as it is trained, and its rows are written. There
is one run each: the intervals describe the uncertainty for that network, not for another run of the same variant; for
the latter see "all layers, second seed".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import daisy
from benchmarks.shared.results import Row, read_rows_beside, replace_rows, write_result
from benchmarks.shared.script import (
    ROOT,
    make_parser,
    multiplies_bfloat16,
    parse_pairs,
    parse_positive,
    run_command,
    run_script,
)
from benchmarks.training import exits
from daisy import _files, checkpoints
from daisy.errors import OutputError, UsageError, unknown_name

RESULT = "exit_variants"
LAYERS = 12
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Variant:
    """A variant's differences from the recipe."""

    units: str = "teacher200"
    """Folder of manifests and units, below ``units/``."""
    overrides: tuple[str, ...] = ()
    """Overrides of the configuration."""
    redrawn: Sequence[str] = ()
    """Modules of the start's layers that are initialised anew, by the ends of their names."""


VARIANTS = {
    "all layers": Variant(),
    "all layers, second seed": Variant(overrides=("common.seed=2",)),
    "last layer": Variant(overrides=("model.exit_layers=[]",)),
    "every third layer": Variant(overrides=("model.exit_layers=[3,6,9,12]",)),
    "MFCC units": Variant(units="mfcc100"),
    "own units": Variant(units="own200"),
    "100 units": Variant(units="teacher100"),
    "500 units": Variant(units="teacher500"),
    "3 hours": Variant(units="hours3"),
    "LayerDrop of 0.2": Variant(overrides=("model.encoder_layerdrop=0.2",)),
    "new layer norms": Variant(redrawn=("norm",)),
    "new layers": Variant(redrawn=("norm", "_proj", "_dense")),
}
OF_THE_FIRST_SETS = ("librispeech/", "commands/", "keywords/")
"""Prefixes of the names of the three hours that the start was trained on."""


@dataclass(frozen=True)
class Origin:
    """Inputs shared by all variants."""

    runs: Path
    """Folder of benchmarks/real_run.sh, whose ``weighted`` holds the manifests."""
    start: Path
    """Network that all variants start from, and whose last layer gives the units ``ownK``."""
    teacher: str
    """Encoder, as ``daisy labels`` takes it."""
    layer: int
    """Layer of the teacher."""
    updates: int

    @property
    def folder(self) -> Path:
        """Folder of units and trainings."""
        return self.runs / "exits"

    @property
    def training(self) -> Row:
        """Settings of the trainings, which their rows have too."""
        return {"updates": self.updates, "bf16": multiplies_bfloat16("cpu")}

    def check(self) -> None:
        """Refuse to continue with variants made from other inputs, or to put rows beside those of other trainings.

        Raises:
            OutputError: if there are such variants or rows.
            DaisyError: as in `read_rows_beside`.
        """
        path = self.folder / "settings.json"
        manifests = [self.runs / "weighted" / f"{name}.tsv" for name in ("train", "valid", "noise")]
        ours = {
            "start": checkpoints.digest(self.start),
            "teacher": self.teacher,
            "layer": self.layer,
            "manifests": [_files.digest(path) for path in manifests],
            **self.training,
        }
        if path.is_file() and (before := json.loads(path.read_text(encoding="utf-8"))) != ours:
            raise OutputError(f"{self.folder}: holds variants made with {before}; use another folder, or remove it")
        for row in read_rows_beside(RESULT, timed=False):
            if row["network"] in VARIANTS and (before := {name: row[name] for name in self.training}) != self.training:
                raise OutputError(f"results/{RESULT}.json: has variants trained with {before}; remove it")
        _files.write_json(path, ours)


def prepare_units(name: str, origin: Origin) -> Path:
    """Make a variant's manifests and units if they do not exist, and return their folder.

    Args:
        name: ``teacherK``, ``mfccK``, ``ownK`` with K clusters, or ``hours3``.
        origin: inputs of the units.
    """
    folder, weighted = origin.folder / "units" / name, origin.runs / "weighted"
    if all((folder / f"{split}.{ending}").is_file() for split in SPLITS for ending in ("tsv", "km")):
        return folder
    if name == "hours3":
        copy_lines(prepare_units("teacher200", origin), folder)
        return folder
    kind = name.rstrip("0123456789")
    options = {
        "teacher": ("--teacher", origin.teacher, "--layer", str(origin.layer)),
        "mfcc": (),
        "own": ("--teacher", str(origin.start), "--layer", str(LAYERS), "--centre"),
    }[kind]
    options = ("--clusters", name.removeprefix(kind), "--fit-frames", "200000", *options)
    manifests = [str(weighted / f"{split}.tsv") for split in SPLITS]
    folder.mkdir(parents=True, exist_ok=True)
    # Exit status 1: some recordings could not be used; the manifests of the others are then beside the units.
    run_command("daisy", "labels", *manifests, "--out", str(folder), *options, log=folder / "log", accepted=(0, 1))
    for split in SPLITS:
        if not (folder / f"{split}.tsv").is_file():
            _files.write(folder / f"{split}.tsv", (weighted / f"{split}.tsv").read_bytes())
    return folder


def copy_lines(units: Path, folder: Path) -> None:
    """Copy manifests and units; of the training split, copy only the recordings of the first sets."""
    for name in ("valid.tsv", "valid.km", "dict.km.txt"):
        _files.write(folder / name, (units / name).read_bytes())
    root, *lines = (units / "train.tsv").read_text(encoding="utf-8").splitlines()
    labels = (units / "train.km").read_text(encoding="utf-8").splitlines()
    pairs = [pair for pair in zip(lines, labels, strict=True) if pair[0].startswith(OF_THE_FIRST_SETS)]
    _files.write(folder / "train.tsv", "\n".join([root, *(line for line, _ in pairs), ""]).encode())
    _files.write(folder / "train.km", "\n".join([*(label for _, label in pairs), ""]).encode())


def redraw(start: Path, modules: Sequence[str], out: Path) -> None:
    """Write a network with some modules of its layers initialised anew, as fairseq's `init_bert_params` does."""
    model, generator = daisy.load(start), torch.Generator().manual_seed(0)
    for name, module in model.hubert.encoder.transformer.layers.named_modules():
        if not name.endswith(tuple(modules)):
            continue
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        else:
            nn.init.normal_(module.weight, std=0.02, generator=generator)
            nn.init.zeros_(module.bias)
    checkpoints.save(model, out)


def train(name: str, units: Path, origin: Origin) -> Path:
    """Train or resume a variant, and return its path as a daisy model."""
    folder = origin.folder / name.replace(",", "").replace(" ", "_")
    model, start, plugin = folder / "model.safetensors", folder / "start.safetensors", ROOT / "fairseq_plugins"
    settings, ours = folder / "variant.json", json.loads(json.dumps(asdict(VARIANTS[name])))
    if settings.is_file() and (before := json.loads(settings.read_text(encoding="utf-8"))) != ours:
        raise OutputError(f"{folder}: was trained with {before}; remove it")
    if model.is_file():
        return model
    _files.write_json(settings, ours)
    if not start.is_file():
        source = origin.start
        if redrawn := VARIANTS[name].redrawn:
            source = folder / "redrawn.safetensors"
            redraw(origin.start, redrawn, source)
        run_command(
            sys.executable, "-m", "fairseq_plugins.warm_start", str(source), "--recordings", "200",
            "--manifest", str(units / "train.tsv"), "--units", str(units / "train.km"), "--out", str(start),
            log=folder / "start.log",
        )  # fmt: skip
    run_command(
        "fairseq-hydra-train", "--config-dir", str(plugin / "config"), "--config-name", "hubert_mini_exits",
        f"common.user_dir={plugin}", "common.cpu=true", f"common.bf16={str(multiplies_bfloat16('cpu')).lower()}",
        f"task.data={units}", f"task.label_dir={units}",
        f"task.noise_manifest={origin.runs / 'weighted' / 'noise.tsv'}", f"model.warm_start={start}",
        f"hydra.run.dir={folder}", "dataset.max_tokens=768000", "lr_scheduler.warmup_updates=50",
        f"optimization.max_update={origin.updates}", *VARIANTS[name].overrides,
        log=folder / "train.log",
    )  # fmt: skip
    checkpoint = folder / "checkpoints" / "checkpoint_last.pt"
    if not checkpoint.is_file():
        raise OutputError(f"{checkpoint}: training wrote none; see {folder / 'train.log'}")
    run_command("daisy", "convert", str(checkpoint), str(model), "--allow-pickle")
    return model


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("runs", type=Path, help="folder of benchmarks/real_run.sh")
    parser.add_argument("--start", type=Path, help="network that all start from; runs/hubert_mini.safetensors")
    parser.add_argument("--teacher", default="openai/whisper-base", help="encoder, as daisy labels takes it")
    parser.add_argument("--layer", type=parse_positive, default=4, help="layer of the teacher")
    parser.add_argument("--updates", type=parse_positive, default=500)
    parser.add_argument("--only", nargs="*", metavar="VARIANT", default=list(VARIANTS), help="the others' rows stay")
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME=CHECKPOINT", help="networks measured too")
    arguments = parser.parse_args()
    if wrong := [name for name in arguments.only if name not in VARIANTS]:
        raise UsageError(unknown_name("variant", wrong[0], VARIANTS))
    runs = arguments.runs.resolve()
    start = (arguments.start or runs / "hubert_mini.safetensors").resolve()
    origin = Origin(runs, start, arguments.teacher, arguments.layer, arguments.updates)
    origin.check()
    command = [str(arguments.runs)]
    for option in ("start", "teacher", "layer", "updates"):
        if (given := getattr(arguments, option)) != parser.get_default(option):
            command += [f"--{option}", str(given)]
    for name, checkpoint in parse_pairs(arguments.beside):
        measure(name, checkpoint, {"checkpoint": checkpoint}, command)
    for name in arguments.only:
        measure(name, train(name, prepare_units(VARIANTS[name].units, origin), origin), origin.training, command)


def measure(name: str, checkpoint: Path | str, more: Row, command: Sequence[str]) -> None:
    """Measure a network on the test set, and write its rows; the stored command line is the one that makes all rows.

    Args:
        name: name of the network.
        checkpoint: its weights.
        more: fields that its rows have too.
        command: the command line without networks of ``--beside``.
    """
    measured = [{**row, **more} for row in exits.measure_networks({name: checkpoint})]
    rows = sort_rows(replace_rows(measured, RESULT, ("network",), timed=False))
    beside = list(dict.fromkeys(f"{row['network']}={row['checkpoint']}" for row in rows if "checkpoint" in row))
    write_result(RESULT, rows, [*command, *(["--beside", *beside] if beside else [])])


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by network: networks of --beside first, then variants in their order."""
    order = list(VARIANTS)
    return sorted(rows, key=lambda row: order.index(row["network"]) if row["network"] in order else -1)


if __name__ == "__main__":
    run_script(main)
