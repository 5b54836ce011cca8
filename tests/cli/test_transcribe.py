import json

import numpy
import pytest
import soundfile

import daisy
from daisy import audio
from daisy.recognition import Recogniser
from tests.cli.running import run
from tests.conftest import tiny_model
from tests.recognition.conftest import tiny_recogniser

RATES = {"a": 16000, "b": 8000, "c": 44100, "d": 48000}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Recognisers, recordings at different rates, one that is broken and one that is too short."""
    folder = tmp_path_factory.mktemp("transcribe")
    for kind in ("hubert", "splitformer"):
        daisy.save(tiny_recogniser(kind, units=True), folder / f"{kind}.safetensors")
    daisy.save(tiny_model(), folder / "mute.safetensors")
    generator = numpy.random.default_rng(0)
    for index, (name, rate) in enumerate(RATES.items()):
        soundfile.write(folder / f"{name}.wav", 0.1 * generator.standard_normal(int(rate * (1 + index / 3))), rate)
    (folder / "bad").mkdir()
    (folder / "bad" / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    soundfile.write(folder / "bad" / "short.wav", 0.1 * generator.standard_normal(300), 16000)
    return folder


@pytest.mark.parametrize("kind", ["hubert", "splitformer"])
def test_recordings_become_text(kind, place):
    checkpoint, names = place / f"{kind}.safetensors", [f"{name}.wav" for name in RATES]
    how = ("-c", checkpoint, "-p", "entropy", "--set", "threshold=1.5")
    result = run("transcribe", *names, *how, "-o", f"{kind}-out", cwd=place)
    assert (result.returncode, result.stderr) == (0, "")
    written = json.loads((place / f"{kind}-out" / "transcripts.json").read_text())
    assert run("transcribe", *names, *how, cwd=place).stdout.splitlines()[:5] == result.stdout.splitlines()[:5]
    assert written["settings"]["policy"] == {"name": "entropy", "threshold": 1.5}
    assert written["settings"]["exits"] == list(tiny_recogniser(kind).ctc.config.layers)
    recogniser = Recogniser(daisy.load(checkpoint), "entropy", threshold=1.5)
    for line, name in zip(written["recordings"], names, strict=True):
        (alone,) = recogniser([audio.read(place / name)])  # the command runs them in a batch
        assert line["path"].endswith(name)
        assert (line["text"], line["exit_layer"], line["num_layers"]) == (
            alone.text,
            alone.exit_layer,
            alone.num_layers,
        )
        assert line["confidence"] == pytest.approx(alone.confidence, abs=1e-5)
        assert [(w["text"], w["start_sec"]) for w in line["words"]] == [(w.text, w.start_sec) for w in alone.words]
        assert f"{alone.exit_layer} of {alone.num_layers}" in result.stdout
        assert alone.text in result.stdout
    assert "4 recordings, 6.0 s of audio: mean exit layer" in result.stdout


def test_bad_recordings_are_named_and_others_go_on(place):
    result = run("transcribe", "a.wav", "bad", "-c", place / "hubert.safetensors", "-o", "bad-out", cwd=place)
    assert result.returncode == 1
    assert result.stderr.count("broken.wav") == 1
    assert "short.wav: too short: 300 samples at 16000 Hz, one frame needs 400 (25 ms)" in result.stderr
    assert "2 of 3 recordings failed" in result.stderr
    written = json.loads((place / "bad-out" / "transcripts.json").read_text())
    assert (len(written["recordings"]), len(written["failed"])) == (1, 2)
    assert written["settings"]["policy"] == {"name": "never"}
    assert run("transcribe", "bad", "-c", place / "hubert.safetensors", cwd=place).returncode == 2


def test_layers_are_said_as_the_networks(place):
    result = run(
        "transcribe", "a.wav", "-c", place / "splitformer.safetensors", "-p", "fixed", "--set", "layer=4", cwd=place
    )
    assert "4 of 6" in result.stdout
    result = run(
        "transcribe", "a.wav", "-c", place / "splitformer.safetensors", "-p", "fixed", "--set", "layer=3", cwd=place
    )
    assert result.returncode == 2
    assert "no exit at layer 3; exits are at 2, 4, 6" in result.stderr


def test_a_beam_writes_text_too(place):
    pytest.importorskip("flashlight.lib.text")
    result = run("transcribe", "a.wav", "-c", place / "hubert.safetensors", "--beam", "5", cwd=place)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 recordings, 1.0 s of audio" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "mute.safetensors"), "has no CTC exits, so it does not recognise speech; train them with"),
        (("-c", "hubert.safetensors", "-p", "entropy"), "policy entropy needs threshold"),
        (("-c", "hubert.safetensors", "--lexicon", "x"), "are of a beam search: give --beam too"),
        (("-c", "hubert.safetensors", "-p", "gone.json"), "gone.json"),
        (("-c", "hubert.safetensors", "--batch-sec", "0"), "batch_sec must be above 0 s and finite, found 0.0"),
    ],
)
def test_refusals(arguments, message, place):
    result = run("transcribe", "a.wav", *arguments, cwd=place)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_unit_heads_may_choose_the_exit(place):
    arguments = ("transcribe", "a.wav", "b.wav", "-c", place / "hubert.safetensors", "--heads", "units")
    result = run(*arguments, "-p", "entropy", "--set", "threshold=1.2", "--format", "json", cwd=place)
    assert result.returncode == 0
    layers = [line["exit_layer"] for line in json.loads(result.stdout)["recordings"]]
    recogniser = Recogniser(daisy.load(place / "hubert.safetensors"), "entropy", heads="units", threshold=1.2)
    waveforms = [audio.read(place / name) for name in ("a.wav", "b.wav")]
    assert layers == [transcript.exit_layer for transcript in recogniser(waveforms)]
    assert set(layers) <= {2, 3, 4}
