"""Give a trained HuBERT a prediction head for other units, to continue training from.

    python -m fairseq_plugins.warm_start hubert.pt --manifest train.tsv --units train.km --out start.safetensors

Each unit's embedding is the mean of the network's states of that unit's frames when they are masked. With a randomly
initialised head, the first updates undo earlier learning. Then use ``model.warm_start=/abs/start.safetensors``.
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from fairseq.data import Dictionary
from torch import Tensor

from daisy import audio, checkpoints
from daisy.errors import DaisyError, UsageError
from fairseq_plugins import masked
from fairseq_plugins.label_files import check_units
from fairseq_plugins.model import read_backbone


def read_dictionary(units: Path) -> Dictionary:
    """Read the fairseq dictionary beside a file of units.

    Raises:
        UsageError: where it is not a dictionary, or has no units.
    """
    path = units.with_name(f"dict{units.suffix}.txt")
    try:
        dictionary = Dictionary.load(str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); it stands beside the units") from None
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: not a dictionary of fairseq's ({error})") from None
    if len(dictionary) == dictionary.nspecial:
        raise UsageError(f"{path}: has no units")
    return dictionary


def read_lines(path: Path, dictionary: Dictionary) -> list[str]:
    """Read the lines of a .km file, one per recording.

    Raises:
        UsageError: where it is not such a file, or has labels that are not units of the dictionary.
    """
    check_units(path, dictionary)
    with open(path, encoding="utf-8") as stream:
        return list(stream)


def encode_line(line: str, dictionary: Dictionary) -> Tensor:
    """Turn labels into (T_b,) int64 units, numbered in the order of the dictionary."""
    units = [dictionary.index(label) - dictionary.nspecial for label in line.split()]
    return torch.tensor(units, dtype=torch.int64)


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
        dictionary = read_dictionary(arguments.units)
        lines = read_lines(arguments.units, dictionary)
        if not recordings or len(lines) != len(recordings):
            raise UsageError(f"{arguments.units}: {len(lines)} lines for {len(recordings)} recordings")
        chosen = random.Random(0).sample(range(len(recordings)), min(arguments.recordings, len(recordings)))
        rate = model.backbone.config.sample_rate
        waveforms = [audio.read(recordings[index].path, rate) for index in chosen]
        units = [encode_line(lines[index], dictionary) for index in chosen]
        states, masked_units = masked.gather_masked_frames(model, waveforms, units)
        unmet = masked.refit(model, states, masked_units, len(dictionary) - dictionary.nspecial)
        checkpoints.save(model, arguments.out)
        if unmet:
            print(f"note: {unmet} units not met in {len(chosen)} recordings start at random", file=sys.stderr)
    except DaisyError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
