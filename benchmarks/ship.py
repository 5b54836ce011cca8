"""Makes daisy/models/daisy-mini.safetensors: float16 weights, thresholds for 60 % depth on clean dev audio, provenance.

python benchmarks/ship.py runs/denoising.safetensors
"""

from __future__ import annotations

import argparse

import torch
from common import guarded, utterances
from noise_curve import CALIBRATION_SETS, DEPTH, POLICIES

import daisy
from daisy import analysis, calibration, checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="checkpoint with trained heads")
    arguments = parser.parse_args()
    model = daisy.load(arguments.model)
    speech = utterances(CALIBRATION_SETS, "dev")
    scores = analysis.full_scores(model, [u.waveform for u in speech], ["entropy"])
    model.policies = {}
    for name in POLICIES:
        settings = calibration.for_depth(name, scores, DEPTH).to_config()
        model.policies[name] = {key: value for key, value in settings.items() if key != "name"}
    model.provenance = {
        "backbone": "small HuBERT, 12 layers of 256, second iteration on units of the first, trained to denoise",
        "heads": "fairseq_plugins/config/daisy_mini.yaml with criterion.noise_manifest: denoising targets",
        "data": "train splits of LibriSpeech, Picovoice speech-to-intent and wake-word benchmarks, 2.98 h",
        "policies": f"{DEPTH:.0%} mean depth on {len(speech)} clean dev utterances of the same sets",
        "licence": "MIT; data CC BY 4.0 and Apache-2.0, see daisy-mini.md",
    }
    path = checkpoint.MODELS / "daisy-mini.safetensors"
    daisy.save(model, path, dtype=torch.float16)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {model.policies}")


if __name__ == "__main__":
    guarded(main)
