"""Makes daisy/assets/daisy-mini.safetensors: float16 weights, policies for 60 % depth on the dev audio, provenance.

python -m benchmarks.training.ship runs/pretrain/exits.safetensors
"""

from __future__ import annotations

from pathlib import Path

import torch

import daisy
from benchmarks.shared.full_runs import load_calibration_runs
from benchmarks.shared.script import make_parser, run_script
from daisy.calibration.depth import calibrate_depth
from daisy.calibration.families import FAMILIES
from daisy.checkpoints.format import ASSETS
from daisy.cli.demonstration import DEPTH

POLICIES = [name for name in FAMILIES if name not in ("fixed", "oracle")]


def round_digits(value: object, digits: int = 6) -> object:
    """Round a setting to some significant digits, also within lists and tuples, to keep files short."""
    if isinstance(value, list | tuple):
        return [round_digits(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, help="checkpoint with trained heads")
    arguments = parser.parse_args()
    model = daisy.load(arguments.model)
    runs = load_calibration_runs(arguments.model)
    model.policies = {}
    for name in POLICIES:
        settings = calibrate_depth(name, runs, DEPTH).policy.to_config()
        model.policies[name] = {key: round_digits(value) for key, value in settings.items() if key != "name"}
    conditions = ", ".join(dict.fromkeys(runs.conditions))
    model.provenance = {
        "backbone": "small HuBERT, 12 layers of 256, trained for exits on units of Whisper base (docs/pretraining.md)",
        "heads": "learnt with the backbone: fairseq_plugins/config/hubert_mini_exits.yaml",
        "data": "train splits of LibriSpeech, Picovoice's two benchmarks, AN4, RoboTutor, speechocean762, the words "
        "bed, cat and happy of Speech Commands, and LibriVox in French, 9.5 h",
        "policies": f"{DEPTH:.0%} mean depth on {len(runs)} runs of dev utterances of the first three: {conditions}",
        "licence": "MIT; data CC BY 4.0, Apache-2.0, AN4's and public domain, see daisy-mini.md",
    }
    path = ASSETS / "daisy-mini.safetensors"
    daisy.save(model, path, dtype=torch.float16)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, policies {', '.join(model.policies)}")


if __name__ == "__main__":
    run_script(main)
