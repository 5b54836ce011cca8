"""Mean exit layer against signal-to-noise ratio, for policies calibrated on clean dev audio to 60 % depth.

    python benchmarks/noise_curve.py clean=clean.safetensors denoising=denoising.safetensors

Test splits of commands, keywords, digits and mboshi, clean and mixed with the noise test split. One full run per
utterance and condition; both policies are decided from its scores. Intervals resample speakers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import HERE, SNRS_DB, guarded, noises, utterances, write
from rich.progress import Progress

import daisy
from daisy import analysis, calibration, report

DEPTH = 0.6
CALIBRATION_SETS = ("librispeech", "commands", "keywords")
TEST_SETS = ("commands", "keywords", "digits", "mboshi")
POLICIES = ("entropy", "plateau")


def measure(name: str, model: daisy.Model, dev, test, bank, bar: Progress) -> tuple[list[dict], dict]:
    num_layers = model.backbone.config.num_layers
    waveforms = [utterance.waveform for utterance in test]
    speakers = [utterance.speaker for utterance in test]
    task = bar.add_task(name, total=len(dev) + len(SNRS_DB) * len(test))

    def advance(count: int) -> None:
        bar.advance(task, count)

    dev_scores = analysis.full_scores(model, [u.waveform for u in dev], ["entropy"], progress=advance)
    policies = {policy: calibration.for_depth(policy, dev_scores, DEPTH) for policy in POLICIES}
    measured, curves, reference = [], {policy: [] for policy in POLICIES}, None
    for snr_db in SNRS_DB:
        run = analysis.fidelity(model, analysis.with_noise(waveforms, bank, snr_db), reference, progress=advance)
        reference = reference or run.units
        for policy_name, policy in policies.items():
            exits = policy.exit_layers(run.scores)
            for set_name in ("all", *TEST_SETS):
                chosen = [i for i, u in enumerate(test) if set_name in ("all", u.set)]
                estimate = analysis.bootstrap(exits[chosen].tolist(), [speakers[i] for i in chosen])
                if set_name == "all":
                    curves[policy_name].append(estimate)
                measured.append(
                    {
                        "heads": name,
                        "policy": policy_name,
                        "threshold_nats": getattr(policy, "threshold", None),
                        "min_improvement": getattr(policy, "min_improvement", None),
                        "set": set_name,
                        "noise": "none" if snr_db is None else "noise test split",
                        "snr_db": snr_db,
                        "num_utterances": len(chosen),
                        "num_layers": num_layers,
                        "mean_exit_layer": estimate.mean,
                        "low": estimate.low,
                        "high": estimate.high,
                        "unit_agreement": float(analysis.at_exit(run.agreement, exits)[chosen].mean()),
                        "clean_unit_agreement": float(analysis.at_exit(run.accuracy, exits)[chosen].mean()),
                        "clean_unit_agreement_full": float(
                            sum(float((run.units[i] == reference[i]).float().mean()) for i in chosen) / len(chosen)
                        ),
                        "kl_nats": float(analysis.at_exit(run.kl, exits)[chosen].mean()),
                    }
                )
    return measured, curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--quick", action="store_true", help="a few utterances of each set; nothing is written")
    parser.add_argument("--figure", type=Path, default=HERE / "results" / "noise_curve.png")
    arguments = parser.parse_args()
    limit = 6 if arguments.quick else None
    dev = utterances(CALIBRATION_SETS, "dev", limit)
    test = utterances(TEST_SETS, "test", limit)
    bank = noises("test")
    measured, curves = [], {}
    with Progress() as bar:
        for text in arguments.models:
            name, _, path = text.partition("=")
            model = daisy.load(path)
            more, by_policy = measure(name, model, dev, test, bank, bar)
            measured += more
            curves |= {f"{policy}, {name} heads": estimates for policy, estimates in by_policy.items()}
    for label, estimates in curves.items():
        print(f"{label:28}", "  ".join(f"{e.mean:5.2f} [{e.low:.2f}, {e.high:.2f}]" for e in estimates))
    if not arguments.quick:
        write("noise_curve", measured)
        report.exit_layers_by_snr(
            arguments.figure,
            SNRS_DB,
            curves,
            num_layers=model.backbone.config.num_layers,
            title=f"{len(test)} test utterances; thresholds for {DEPTH:.0%} depth on clean dev audio",
        )


if __name__ == "__main__":
    guarded(main)
