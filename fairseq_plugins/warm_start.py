"""Gives a trained HuBERT a prediction head for other units, to go on training from.

    python -m fairseq_plugins.warm_start hubert.pt --manifest train.tsv --units train.km --out start.safetensors

Each unit's embedding is the mean of what the network makes of that unit's frames when they are masked. With a head that
starts at random, the first updates undo what the network has learnt. Then: ``model.warm_start=/abs/start.safetensors``.
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from torch import Tensor

from daisy import audio, checkpoints
from daisy.errors import DaisyError, UsageError
from fairseq_plugins import masked
from fairseq_plugins.model import read_backbone


def read_units(path: Path) -> list[Tensor]:
    """Read a .km file: (T_b,) int64 units of each recording.

    Raises:
        UsageError: where it is not one.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return [torch.tensor([int(unit) for unit in line.split()]) for line in lines]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a file of units, one line a recording ({error})") from None


def count_units(dictionary: Path) -> int:
    """Count the units of a fairseq dictionary.

    Raises:
        UsageError: where it cannot be read.
    """
    try:
        return len(dictionary.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise UsageError(f"{dictionary}: cannot be read ({error.strerror}); it stands beside the units") from None


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--units", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recordings", type=int, default=300, help="recordings to look at (default 300)")
    arguments = parser.parse_args()
    try:
        model, recordings = read_backbone(arguments.source), audio.read_manifest(arguments.manifest)
        units = read_units(arguments.units)
        if not recordings or len(units) != len(recordings):
            raise UsageError(f"{arguments.units}: {len(units)} lines for {len(recordings)} recordings")
        chosen = random.Random(0).sample(range(len(recordings)), min(arguments.recordings, len(recordings)))
        waveforms = [audio.read(recordings[index].path) for index in chosen]
        states, masked_units = masked.gather_masked_frames(model, waveforms, [units[index] for index in chosen])
        unmet = masked.refit(model, states, masked_units, count_units(arguments.units.with_name("dict.km.txt")))
        checkpoints.save(model, arguments.out)
        if unmet:
            print(f"note: {unmet} units not met in {len(chosen)} recordings start at random", file=sys.stderr)
    except DaisyError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
