"""Trains the recognisers of benchmarks/recognition/systems.py, each on one CPU core. Continues where it stopped.

    python -m benchmarks.recognition.train --jobs 2
    python -m benchmarks.recognition.train --only "daisy-mini, frozen"
    python -m benchmarks.recognition.train --device cuda

This takes about four hours on two cores, estimated from the time of an update; each training is in
runs/recognition/NAME, with its log. On a GPU a Conformer is also trained on all English sets.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.recognition.corpora import CORPORA, write_manifests
from benchmarks.recognition.systems import ON_CPUS, SYSTEMS, list_ancestors
from benchmarks.shared.script import (
    ROOT,
    RUNS,
    make_parser,
    multiplies_bfloat16,
    parse_positive,
    run_command,
    run_script,
)
from daisy import _files, checkpoints
from daisy.errors import OutputError, UsageError, unknown_name

FOLDER = RUNS / "recognition"
QUICK_FOLDER = RUNS / "recognition_quick"
QUICK_UPDATES = 3
QUICK_RECORDINGS = 4
"""Number of recordings per set."""


def find_model(name: str, folder: Path = FOLDER) -> Path:
    """Return the path of a system's checkpoint."""
    return folder / name.replace(",", "").replace(":", "").replace(" ", "_") / "model.safetensors"


def train(name: str, *, device: str = "cpu", folder: Path = FOLDER, quick: bool = False) -> Path:
    """Train or resume a system, and return its checkpoint; the system that it starts from must be trained.

    Args:
        name: name of a system in `SYSTEMS`.
        device: "cpu" or "cuda".
        folder: folder of all trainings.
        quick: whether to make a few updates on a few recordings only.

    Raises:
        OutputError: if the training fails, or was started with other settings.
    """
    system, model, plugin = SYSTEMS[name], find_model(name, folder), ROOT / "fairseq_plugins"
    start = find_model(system.start, folder) if system.start in SYSTEMS else system.start
    configuration = plugin / "config" / f"{system.config}.yaml"
    settings = asdict(system) | {"configuration": _files.digest(configuration)}
    settings |= {"bf16": multiplies_bfloat16(device)} | ({"digest": checkpoints.digest(start)} if start else {})
    check_settings(model.with_name("settings.json"), settings)
    if model.is_file():
        return model
    data = folder / "data" / system.corpus
    write_manifests(CORPORA[system.corpus], data, QUICK_RECORDINGS if quick else None)
    updates = QUICK_UPDATES if quick else system.updates
    options = [f"task.data={data}", f"hydra.run.dir={model.parent}", f"optimization.max_update={updates}"]
    if start:
        options.append(f"model.w2v_path={checkpoints.find(start)}")
    run_command(
        "fairseq-hydra-train", "--config-dir", str(plugin / "config"), "--config-name", system.config,
        f"common.user_dir={plugin}", f"common.cpu={str(device == 'cpu').lower()}",
        f"common.bf16={str(settings['bf16']).lower()}",
        *options, *system.overrides,
        log=model.with_name("train.log"),
    )  # fmt: skip
    checkpoint = model.parent / "checkpoints" / "checkpoint_best.pt"
    if not checkpoint.is_file():
        raise OutputError(f"{checkpoint}: training wrote none; see {model.with_name('train.log')}")
    run_command("daisy", "convert", str(checkpoint), str(model), "--allow-pickle")
    return model


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Store a system's training settings, and refuse to resume a training with others.

    Raises:
        OutputError: if the stored settings differ.
    """
    settings = json.loads(json.dumps(settings))
    if path.is_file() and (before := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise OutputError(f"{path.parent}: was trained with {before}: remove it, or take the settings back")
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.write_json(path, settings)


def main() -> None:
    parser = make_parser(__doc__, quick="a few updates on a few recordings, in a folder of its own")
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", help="default: all that the device can train")
    parser.add_argument("--jobs", type=parse_positive, default=1, help="parallel trainings, each on one core")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    names = arguments.only or (ON_CPUS if arguments.device == "cpu" else list(SYSTEMS))
    if wrong := [name for name in names if name not in SYSTEMS]:
        raise UsageError(unknown_name("system", wrong[0], SYSTEMS))
    chains = [list_ancestors(name) for name in names]
    last = [chain for chain in chains if not any(chain[-1] in other[:-1] for other in chains)]

    folder = QUICK_FOLDER if arguments.quick else FOLDER

    def train_chain(chain: list[str]) -> None:
        for name in chain:
            print(f"{name}: {train(name, device=arguments.device, folder=folder, quick=arguments.quick)}")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(train_chain, last))


if __name__ == "__main__":
    run_script(main)
