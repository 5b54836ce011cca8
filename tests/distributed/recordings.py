"""Recordings and an encoder shared by all tests of extraction, including those that run it in other processes."""

import json

import soundfile
import torch

from daisy import EarlyExitEncoder, policies
from daisy.extraction import Extractor
from tests.conftest import tiny_model

NUM_RECORDINGS = 20


def write_recordings(place):
    """Write twenty recordings of 0.1 to 0.6 s."""
    generator = torch.Generator().manual_seed(0)
    (place / "sub").mkdir(parents=True)
    for index in range(NUM_RECORDINGS):
        wave = 0.1 * torch.randn(1600 + 400 * index, generator=generator) * (1 + index % 3)
        soundfile.write(place / ("sub" if index % 2 else "") / f"{index}.wav", wave.numpy(), 16000, subtype="FLOAT")
    return place


def make_extractor(out, engine=None, keep="last", **options):
    """Make an extractor whose recordings exit at layers 1 and 2."""
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Entropy(threshold=2.0), keep=keep)
    return Extractor(encoder, out, checkpoint="0" * 64, engine=engine, **{"batch_sec": 1.0, **options})


def read_journal_lines(out):
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()[1:]]
