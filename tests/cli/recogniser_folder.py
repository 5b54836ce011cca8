"""A recogniser and recordings with texts, for tests of the command line."""

import importlib.util
import json

import numpy
import pytest
import soundfile

import daisy
from tests.conftest import tiny_model
from tests.recognition.conftest import tiny_recogniser

NUM_RECORDINGS = 10
LABELS = ("--reference", "text.csv")
needs_jiwer = pytest.mark.skipif(importlib.util.find_spec("jiwer") is None, reason="needs jiwer")


def make_recogniser_folder(folder):
    """Write a recogniser, a network without text, recordings and their texts into a folder."""
    model = tiny_recogniser("hubert", units=True)
    for classifier in model.ctc.classifiers.values():
        classifier.bias.data.zero_()
        classifier.bias.data[:4] -= 3  # all exits write something
    daisy.save(model, folder / "hubert.safetensors")
    daisy.save(tiny_model(), folder / "mute.safetensors")
    (folder / "speech").mkdir()
    generator = numpy.random.default_rng(0)
    lines = ["path,text"]
    for index in range(NUM_RECORDINGS):
        loud = 0.02 * 1.6**index
        soundfile.write(folder / f"speech/{index}.wav", loud * generator.standard_normal(4000 + 700 * index), 16000)
        lines.append(f"speech/{index}.wav,{'abc de' if index % 2 else 'b'}")
    (folder / "text.csv").write_text("\n".join(lines) + "\n")
    (folder / "half.csv").write_text("path,text\nspeech/1.wav,a\n")


def read_json(path):
    return json.loads(path.read_text())
