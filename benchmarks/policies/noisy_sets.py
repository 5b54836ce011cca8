"""Writes the test splits of commands, keywords, digits and mboshi, clean and with test noise, as float WAV files.

    python benchmarks/noisy_sets.py runs/test        # runs/test/{clean,20dB,10dB,5dB,0dB,-5dB}/SET/NAME.wav, 720 MB

The mixtures are those of noise_curve.py, excerpt by excerpt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import SNRS_DB, guarded, noises, rows, utterances
from noise_curve import TEST_SETS

from daisy import _files
from daisy.audio.files import encode_wav
from daisy.calibration import tracing
from daisy.evaluation.figures import format_snr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    names = [f"{name}/{Path(row['path']).stem}.wav" for name in TEST_SETS for row in rows(name, "test")]
    waveforms = [utterance.waveform for utterance in utterances(TEST_SETS, "test")]
    bank = noises("test")
    for snr_db in SNRS_DB:
        folder = out / format_snr(snr_db).replace(" ", "")
        for name, waveform in zip(names, tracing.mix_noise(waveforms, bank, snr_db), strict=True):
            if not (folder / name).is_file():
                _files.write(folder / name, encode_wav(waveform))


if __name__ == "__main__":
    guarded(main)
