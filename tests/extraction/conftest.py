"""Helpers shared by the tests of folders that several processes write."""

import csv
import json
from pathlib import Path

import pytest
import soundfile
import torch

from daisy import EarlyExitEncoder, audio, policies
from daisy.extraction import Extractor
from tests.conftest import tiny_model

NUM_RECORDINGS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    for index in range(NUM_RECORDINGS):
        wave = 0.1 * torch.randn(3000 + 700 * index, generator=generator)
        soundfile.write(place / f"{index}.wav", wave.numpy(), 16000, subtype="FLOAT")
    return place


def extract(folder, out, layer=2, **options):
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=layer), keep="last")
    return Extractor(encoder, out, checkpoint="0" * 64, batch_sec=0.01).run(audio.find([folder]), **options)


def read_index(out):
    index = json.loads((out / "index.json").read_text())
    outputs = [row["output"] for row in index["recordings"]]
    assert [row["output"] for row in csv.DictReader((out / "index.csv").read_text().splitlines())] == outputs
    assert index["totals"]["num_recordings"] == len(outputs) == len(set(outputs))
    return outputs, {Path(failure["path"]).name: failure["reason"] for failure in index["failed"]}


def read_files(out):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.safetensors")}


EVERYTHING = [f"{index}.safetensors" for index in range(NUM_RECORDINGS)]
