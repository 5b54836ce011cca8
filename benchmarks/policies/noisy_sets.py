"""Writes the test splits of all five sets, clean and with test noise, as float WAV files.

    python -m benchmarks.policies.noisy_sets runs/test   # runs/test/{clean,20dB,10dB,5dB,0dB,-5dB}/SET/NAME.wav, 720 MB

The mixtures are those of noise_curve.py, excerpt by excerpt.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.shared.recordings import TEST_SETS, read_index, read_noises, read_utterances
from benchmarks.shared.script import make_parser, run_script
from daisy import _files
from daisy.audio.files import encode_wav
from daisy.calibration import tracing
from daisy.cli.options import SNRS_DB
from daisy.evaluation.figures import format_snr


def name_folder(snr_db: float | None) -> str:
    """Return the folder of a ratio's recordings: "clean", "20dB" and so on."""
    return format_snr(snr_db).replace(" ", "")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    names = [f"{name}/{Path(row['path']).stem}.wav" for name in TEST_SETS for row in read_index(name, "test")]
    waveforms = [utterance.waveform for utterance in read_utterances(TEST_SETS, "test")]
    bank = read_noises("test")
    for snr_db in SNRS_DB:
        folder = out / name_folder(snr_db)
        for name, waveform in zip(names, tracing.mix_noise(waveforms, bank, snr_db), strict=True):
            if not (folder / name).is_file():
                _files.write(folder / name, encode_wav(waveform))


if __name__ == "__main__":
    run_script(main)
