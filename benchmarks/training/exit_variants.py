"""What losses at all layers, units and hours of speech are each worth to exits: short trainings, from the same start.

    python -m benchmarks.training.exit_variants runs --teacher whisper-base/

Every variant goes on from the same network for the same number of updates of 48 s on one CPU core (a stopped run goes
on), and `benchmarks.training.exits` then measures it beside the start. One run each: the intervals say how sure a
figure is of its network, not what another run of the same variant would give; "all layers, second seed" shows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared.results import write_result
from benchmarks.shared.script import ROOT, make_parser, parse_positive, run_command, run_script
from benchmarks.training import exits
from daisy.errors import OutputError, UsageError, unknown_name

LAYERS = 12


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe."""

    units: str = "teacher200"
    """Folder of manifests and units below ``units/``."""
    overrides: tuple[str, ...] = ()
    """Of the configuration."""


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
}
OF_THE_FIRST_SETS = ("librispeech/", "commands/", "keywords/")
"""Beginnings of the names of the three hours that the start was made from."""


def prepare_units(name: str, runs: Path, start: Path, teacher: str, layer: int) -> Path:
    """Make a variant's manifests and units where they are not there yet, and return their folder.

    Args:
        name: ``teacherK``, ``mfccK``, ``ownK`` with K clusters, or ``hours3``.
        runs: folder of benchmarks/real_run.sh, whose ``weighted`` holds the manifests.
        start: network whose last layer gives the units ``ownK``.
        teacher: as ``daisy labels`` takes it.
        layer: of the teacher.
    """
    folder = runs / "exits" / "units" / name
    if (folder / "train.km").is_file() and (folder / "valid.km").is_file():
        return folder
    if name == "hours3":
        copy_lines(prepare_units("teacher200", runs, start, teacher, layer), folder)
        return folder
    kind = name.rstrip("0123456789")
    options = {
        "teacher": ("--teacher", teacher, "--layer", str(layer)),
        "mfcc": (),
        "own": ("--teacher", str(start), "--layer", str(LAYERS), "--centre"),
    }[kind]
    options = ("--clusters", name.removeprefix(kind), "--fit-frames", "200000", *options)
    manifests = [str(runs / "weighted" / f"{split}.tsv") for split in ("train", "valid")]
    run_command("daisy", "labels", *manifests, "--out", str(folder), *options)
    for split in ("train", "valid"):
        if not (folder / f"{split}.tsv").is_file():
            (folder / f"{split}.tsv").write_bytes((runs / "weighted" / f"{split}.tsv").read_bytes())
    return folder


def copy_lines(units: Path, folder: Path) -> None:
    """Copy manifests and units, and of the training split only the recordings of the first sets."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("valid.tsv", "valid.km", "dict.km.txt"):
        (folder / name).write_bytes((units / name).read_bytes())
    root, *lines = (units / "train.tsv").read_text(encoding="utf-8").splitlines()
    labels = (units / "train.km").read_text(encoding="utf-8").splitlines()
    chosen = [index for index, line in enumerate(lines) if line.startswith(OF_THE_FIRST_SETS)]
    (folder / "train.tsv").write_text("\n".join([root, *(lines[index] for index in chosen), ""]), encoding="utf-8")
    (folder / "train.km").write_text("\n".join([*(labels[index] for index in chosen), ""]), encoding="utf-8")


def train(name: str, units: Path, runs: Path, start: Path, updates: int) -> Path:
    """Train a variant, from where it stopped, and return it as a daisy model."""
    folder = runs / "exits" / name.replace(",", "").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{updates}.safetensors"
    if model.is_file():
        return model
    plugin = ROOT / "fairseq_plugins"
    run_command(
        "fairseq-hydra-train", "--config-dir", str(plugin / "config"), "--config-name", "hubert_mini_exits",
        f"common.user_dir={plugin}", "common.cpu=true", f"task.data={units}", f"task.label_dir={units}",
        f"task.noise_manifest={runs / 'weighted' / 'noise.tsv'}", f"model.warm_start={start}",
        f"hydra.run.dir={folder}", "dataset.max_tokens=768000", "criterion.exit_weight=3.0",
        "lr_scheduler.warmup_updates=50", f"lr_scheduler.total_num_update={updates}",
        f"optimization.max_update={updates}", *VARIANTS[name].overrides,
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
    parser.add_argument("--start", type=Path, help="network that all go on from; runs/hubert_mini.safetensors")
    parser.add_argument("--teacher", default="whisper-base", help="encoder, as daisy labels takes it")
    parser.add_argument("--layer", type=parse_positive, default=4, help="of the teacher")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--updates", type=parse_positive, default=500)
    parser.add_argument("--train-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if wrong := [name for name in arguments.only if name not in VARIANTS]:
        raise UsageError(unknown_name("variant", wrong[0], VARIANTS))
    runs = arguments.runs.resolve()
    start = (arguments.start or runs / "hubert_mini.safetensors").resolve()
    networks = {}
    for name in arguments.only:
        units = prepare_units(VARIANTS[name].units, runs, start, arguments.teacher, arguments.layer)
        networks[name] = train(name, units, runs, start, arguments.updates)
    if not arguments.train_only:
        write_result("exit_variants", exits.measure_networks(networks))


if __name__ == "__main__":
    run_script(main)
