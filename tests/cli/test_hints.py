"""The library's error messages use Python's terms; on the command line they end with what to type."""

import argparse
import json
import re
from typing import get_args

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy import _locks
from daisy.cli.console import HINTS, explain
from daisy.errors import AudioError, CheckpointError, OutputError, Remedy, UsageError
from tests.cli.running import run
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hints")
    model = tiny_model()
    daisy.save(model, folder / "tiny.safetensors")
    state = model.backbone.state_dict()
    del state["mask_embedding"]  # what torchaudio's models do not have
    torch.save(state, folder / "plain.pth")
    beyond = {key: value * 0 + 1e5 if key.endswith("layer_norm.bias") else value for key, value in state.items()}
    torch.save(beyond, folder / "beyond.pth")
    with torch.no_grad():
        model.backbone.encoder.transformer.layers[-1].final_layer_norm.bias[0] = 1e5
    daisy.save(model, folder / "large.safetensors")
    torch.save({"args": argparse.Namespace(x=object), "model": {}}, folder / "pickled.pt")
    torch.save({"model_weight": {}}, folder / "other form.pt")
    layer = "conformer.0.conformer_layers.0."
    published = ("conv_subsample.sequential.0.", f"{layer}ffn1.sequential.1.", f"{layer}conv_module.sequential.2.")
    state = {f"{name}weight": torch.zeros(8, 4, 3) for name in (*published, "linears.0.")}
    torch.save(state, folder / "conformer.pth")
    (folder / "policy.json").write_text("{")
    generator = numpy.random.default_rng(0)
    for name, seconds in (("speech/0", 1), ("speech/1", 1.5), ("long/0", 3), ("my speech/0", 1)):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / f"{name}.wav", 0.1 * generator.standard_normal(int(16000 * seconds)), 16000)
    model = ("-c", "tiny.safetensors", "-p", "never")
    assert run("extract", "speech", *model, "-o", "made", cwd=folder).returncode == 0
    assert run("manifest", "speech", "-o", "train.tsv", cwd=folder).returncode == 0
    (folder / "units").mkdir()
    (folder / "units" / "labels.json").write_text(json.dumps({"clusters": 9}))
    (folder / "held").mkdir()
    lock = _locks.acquire(folder / "held" / "journal.jsonl.lock")
    (folder / "held" / "journal.jsonl.lock").write_text("")  # who it is is tested where there is another process
    (folder / "labelled").mkdir()
    other_lock = _locks.acquire(folder / "labelled" / "labels.json.lock")
    (folder / "labelled" / "labels.json.lock").write_text("")
    yield folder
    lock.release()
    other_lock.release()


EXTRACT = ("extract", "speech", "-c", "tiny.safetensors", "-o")
LONG = ("extract", "long", "-c", "tiny.safetensors", "-p", "never", "--max-sec", "2", "-o", "no")


@pytest.mark.parametrize(
    ("remedy", "arguments", "ending"),
    [
        ("allow_pickle", ("convert", "pickled.pt", "x.safetensors"), "from; add --allow-pickle"),
        (
            "busy",
            (*EXTRACT, "held", "-p", "never"),
            "held: is being written by another process; "
            "wait for it, use another --out, or let several share the work with --shard I/N",
        ),
        (
            "calibrate",
            (*EXTRACT, "no", "-p", "policy.json"),
            ": not a policy file; daisy calibrate makes one",
        ),
        ("convert", ("info", "other form.pt"), "; other forms are read by: daisy convert 'other form.pt' OUT"),
        ("layer", ("labels", "train.tsv", "-o", "no", "-t", "tiny.safetensors"), "must be told; add --layer N"),
        (
            "feature_rate",
            ("labels", "train.tsv", "-o", "no", "-t", "made", "--layer", "4", "--feature-rate", "20"),
            "at 20 a second make 20; add --feature-rate N, how many of them a second has",
        ),
        (
            "float32",
            ("extract", "speech", "-c", "large.safetensors", "-p", "never", "--dtype", "float16", "-o", "no"),
            "and float16 ends at 65504; use --dtype float32 with another --out",
        ),
        (
            "full_precision",
            ("convert", "beyond.pth", "x.safetensors", "--set", "num_heads=4", "--half"),
            "would not be finite in torch.float16; leave --half out",
        ),
        (
            "label_set",
            ("convert", "plain.pth", "x.safetensors", "--set", "num_heads=4", "--label-set", "2"),
            "as fairseq's and s3prl's HuBERTs have; leave --label-set out",
        ),
        (
            "make_manifest",
            ("labels", "my speech", "-o", "no"),
            "is a folder; make a manifest of it: daisy manifest 'my speech' --out NAME.tsv",
        ),
        ("max_sec", (*LONG, "--layers", "all"), "lasts 3 s, more than 2 s; split it, or raise --max-sec"),
        (
            "no_overrides",
            ("convert", "pickled.pt", "x.safetensors", "--set", "num_heads=4", "--allow-pickle"),
            "tells its own num_heads; --set is for weights without a configuration",
        ),
        (
            "num_heads",
            ("convert", "plain.pth", "x.safetensors"),
            "is none of 768, 1024, 1280, 1920; add --set num_heads=N",
        ),
        ("other_out", ("labels", "train.tsv", "-o", "units"), "another clusters; use another --out"),
        (
            "overwrite",
            (*EXTRACT, "made", "-p", "fixed", "--set", "layer=2"),
            "made: holds a run with another policy; use another --out, or --overwrite",
        ),
        ("root", ("manifest", "speech", "-o", "x.tsv", "--root", "long"), "; give another --root"),
        (
            "separate_out",
            ("extract", "speech/0.wav", "long/0.wav", "-c", "tiny.safetensors", "-p", "never", "-o", "no"),
            "would both be written to 0.safetensors; give them separate --out",
        ),
        (
            "tokens",
            ("convert", "conformer.pth", "x.safetensors"),
            "weights do not tell what they write: the SentencePiece model is wanted; add --tokens FILE",
        ),
        (
            "wait",
            ("labels", "train.tsv", "-o", "labelled"),
            "labelled: is being written by another process; wait for it, or use another --out",
        ),
        ("window", LONG, "lasts 3 s, more than 2 s; give --window SEC with another --out, or raise --max-sec"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_helps_is_named_as_it_is_typed(place, remedy, arguments, ending):
    done = run(*arguments, cwd=place)
    assert done.returncode == 2
    first = done.stderr.splitlines()[0]
    assert first.endswith(ending)
    assert HINTS[remedy].partition("{")[0] in first


def test_the_table_is_complete_and_names_options_that_exist():
    assert set(HINTS) == set(get_args(Remedy))
    commands = ("extract", "calibrate", "convert", "labels", "manifest", "train-heads")
    known = {option for name in commands for option in re.findall(r"--[a-z-]+", run(name, "--help").stdout)}
    assert set(re.findall(r"--[a-z-]+", " ".join(HINTS.values()))) <= known


def test_python_users_are_told_what_to_pass(place):
    model = daisy.load(place / "tiny.safetensors")
    with pytest.raises(CheckpointError, match="only if you trust where it comes from; pass allow_pickle=True$"):
        daisy.checkpoints.converters.convert(place / "pickled.pt")
    with pytest.raises(CheckpointError, match=r'; pass overrides=\{"num_heads": "N"\}$'):
        daisy.checkpoints.converters.convert(place / "plain.pth")
    with pytest.raises(daisy.PolicyError, match=r"learnt from audio; daisy\.calibration\.\S+ makes one$"):
        model.policy("plateau")
    with pytest.raises(ValueError, match=r"is a folder; make a manifest of it with daisy\.audio\.\S+$"):
        daisy.audio.read_manifest(place / "speech")


def test_a_hint_is_not_read_as_a_template():
    assert explain(OutputError("{x}: holds a run", remedy="overwrite")) == (
        "{x}: holds a run; use another --out, or --overwrite"
    )
    assert explain(CheckpointError("{a}: no", remedy="convert", path="{a} b")).endswith("daisy convert '{a} b' OUT")
    assert explain(AudioError("gone.wav: no such file")) == "gone.wav: no such file"
    assert explain(UsageError("both", remedy="separate_out")) == "both; give them separate --out"
