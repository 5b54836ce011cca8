"""Damaged checkpoints: each is refused with a one-line message, or gives a model with all weights right.

    python -m benchmarks.robustness.checkpoints --count 200 --seed 0

Bytes are changed, cut off and zeroed; tensors are dropped, renamed, retyped, reshaped and filled with NaN or infinity;
configurations are changed. This is done to daisy's own files, current and older, and to the sources of `daisy convert`.
Prints a table and all problems; the exit status is 1 if there were any.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import torch

import daisy
from benchmarks.robustness.checkpoint_forms import FORMS, Form
from benchmarks.shared.script import make_parser, parse_positive, run_script
from daisy.checkpoints import Model, convert
from daisy.errors import DaisyError

HALF_PRECISION = 2**-8
"""Tolerance for weights that were retyped to float16 or bfloat16, relative to the largest weight."""


def main() -> None:
    """Damage checkpoints, have them read, and print the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=parse_positive, default=200, help="Number of checkpoints.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the damage.")
    parser.add_argument("--keep", type=Path, help="Folder for the files, which are then kept.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, problems = run(arguments.keep or Path(folder), arguments.count, arguments.seed)
    print_table(counts)
    print("\n".join(problems))
    print(f"{arguments.count} damaged checkpoints, seed {arguments.seed}: {len(problems)} problems")
    sys.exit(1 if problems else 0)


def run(folder: Path, count: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Damage checkpoints of all forms in turn, and read them.

    Args:
        folder: folder to work in.
        count: number of checkpoints.
        seed: seed of the damage.

    Returns:
        The number of checkpoints by form and outcome, and a line for each problem.
    """
    counts: Counter[tuple[str, str]] = Counter()
    problems = []
    for index in range(count):
        form = FORMS[index % len(FORMS)](torch.Generator().manual_seed(1_000_003 * seed + index))
        path = folder / f"{index:04}"
        damage = form.write_damaged(path)
        outcome, problem = judge(form, path)
        counts[form.name, outcome] += 1
        if problem:
            problems.append(f"{path}: {form.name}, {damage}: {problem}")
    return counts, problems


def judge(form: Form, folder: Path) -> tuple[str, str]:
    """Read a damaged checkpoint; return the outcome and what is wrong with it, if anything."""
    path = form.find(folder)
    try:
        model = convert(path, overrides=form.overrides) if form.is_converted else daisy.load(path)
    except DaisyError as error:
        text = str(error)
        whole = text.startswith(f"{path}: ") and len(text.splitlines()) == 1
        return "refused", "" if whole else f"refused with {text!r}"
    except Exception:
        return "traceback", traceback.format_exc()
    return "read", find_wrong_weights(form, model) or find_wrong_states(model)


def find_wrong_weights(form: Form, model: Model) -> str:
    """Describe what is wrong with a model's weights; empty if nothing is."""
    weights = model.state_dict()
    if wrong := [name for name, weight in weights.items() if not bool(weight.isfinite().all())]:
        return f"not finite: {wrong[0]}"
    if form.hides_damage:  # in forms without checksums: other numbers, in a model that computes
        return ""
    for name, weight in weights.items():
        if name == "backbone.mask_embedding" and not bool(weight.any()):
            continue  # a source may lack it, with a message; only training with masks reads it
        original = form.weights[name]
        if weight.shape != original.shape:
            return f"{name} is {tuple(weight.shape)}"
        tolerance = HALF_PRECISION * float(original.abs().max()) if form.is_rounded else 0.0
        if float((weight - original).abs().max()) > tolerance:
            return f"{name} has other values"
    return ""


@torch.no_grad()
def find_wrong_states(model: Model) -> str:
    """Name the model's states of noise input that are not finite."""
    num_samples = max(4000, 3 * model.backbone.config.frame_span)
    waveform = 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    states = model.encoder("never")([waveform]).states[0]
    wrong = [layer for layer, layer_states in enumerate(states) if not bool(layer_states.isfinite().all())]
    return f"states of layers {wrong} are not finite" if wrong else ""


def print_table(counts: Counter[tuple[str, str]]) -> None:
    """Print how many of each form were read and refused, and how many ended in a traceback."""
    outcomes = ("read", "refused", "traceback")
    print(f"{'':16}" + "".join(f"{outcome:>11}" for outcome in outcomes))
    for name in dict.fromkeys(form.name for form in FORMS):
        print(f"{name:16}" + "".join(f"{counts[name, outcome]:11}" for outcome in outcomes))


if __name__ == "__main__":
    run_script(main)
