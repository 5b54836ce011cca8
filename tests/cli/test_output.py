"""Printed output on every terminal: any encoding, any width, any characters in names; nothing is cut off."""

import csv
import os
import re
import sys

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy.checkpoints import digest
from daisy.cli import main
from tests.cli.running import read_terminal, run, run_python
from tests.conftest import tiny_model

NAME = "grüße ☂"
ASCII_NAME = r"gr\xfc\xdfe \u2602"
MODEL = ("-c", f"{NAME}.safetensors")
SCORES = ("entropy", "confidence")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    model = tiny_model()
    model.provenance = {"converted_from": NAME}
    daisy.save(model, folder / f"{NAME}.safetensors")
    state = model.backbone.state_dict()
    del state["mask_embedding"]  # what torchaudio's models do not have
    torch.save(state, folder / f"{NAME}.pth")
    generator = numpy.random.default_rng(0)
    (folder / NAME).mkdir()
    for index in range(6):
        wave = 0.1 * generator.standard_normal(8000 + 500 * index)
        soundfile.write(folder / NAME / f"{index} {NAME}.wav", wave, 16000)
    (folder / "bad").mkdir()
    (folder / "bad" / f"{NAME}.wav").write_text("no audio")
    write_traces(folder / f"{NAME}.csv")
    return folder


def write_traces(path):
    generator = numpy.random.default_rng(1)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["utterance", "group", "condition", "layer", *SCORES, f"{NAME} disagreement"])
        for utterance in range(12):
            for layer in range(1, 5):
                loss = generator.uniform() / layer
                writer.writerow([f"{NAME}{utterance}", utterance, NAME, layer, loss, 1 - loss, loss])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("extract", NAME, "bad", "-p", "entropy", "--set", "threshold=1.9", "-o", f"out {NAME}", *MODEL), 1),
        (("calibrate", NAME, "--depth", "0.6", "-p", "entropy", "-o", f"{NAME}.json", *MODEL), 0),
        (("noise-curve", NAME, "--policies", "entropy", "--depths", "0.5", "-o", f"curve {NAME}", *MODEL), 0),
        (("replay", f"{NAME}.csv", "--policies", "entropy", "--depths", "0.5", "-o", f"replay {NAME}"), 0),
        (("info", f"{NAME}.safetensors"), 0),
        (("convert", f"{NAME}.pth", f"new {NAME}.safetensors", "--set", "num_heads=4", "--overwrite"), 0),
        (("manifest", NAME, "bad", "-o", f"{NAME}.tsv"), 1),
        (("demo", *MODEL, "-o", f"demo {NAME}"), 0),
        (("info", f"gone {NAME}"), 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_every_command_prints_in_every_encoding(place, arguments, status, encoding):
    if arguments[0] == "demo":
        pytest.importorskip("matplotlib", reason="needs matplotlib")
    done = run(*arguments, cwd=place, encoding=encoding)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    shown = {"ascii": ASCII_NAME, "latin-1": r"grüße \u2602", "utf-8": NAME}[encoding]
    assert shown in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [(NAME,), ("extract", "--format", NAME, "x", "-o", "o"), ("info", f"--{NAME}")])
def test_usage_errors_end_as_such_in_ascii(place, arguments):
    """Their text is typer's, which writes UTF-8 where it is told ASCII."""
    done = run(*arguments, cwd=place, encoding="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")
    assert "Traceback" not in done.stderr


def test_labels_print_in_ascii(place):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    assert run("manifest", NAME, "-o", f"labels {NAME}.tsv", cwd=place).returncode == 0
    done = run("labels", f"labels {NAME}.tsv", "-o", f"km {NAME}", "--clusters", "4", cwd=place, encoding="ascii")
    assert done.returncode == 0, done.stderr
    assert f"labels {ASCII_NAME}.km: units of 6 recordings at 50 a second" in done.stdout


def test_a_pipe_gets_the_whole_digest(place):
    code = "from daisy.cli import main; main()"
    done = run_python(code, "info", f"{NAME}.safetensors", cwd=place, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert digest(place / f"{NAME}.safetensors").encode() in done.stdout
    assert done.stdout.count("grüße".encode("latin-1")) == 2


@pytest.mark.parametrize("columns", ["20", "200"])
def test_no_width_cuts_or_breaks_a_value(place, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    lines = run("info", f"{NAME}.safetensors", cwd=place).stdout.splitlines()
    assert all(line == line.rstrip() for line in lines)  # padding would fill a narrow terminal with empty lines
    assert f"sha256                 {digest(place / f'{NAME}.safetensors')}" in lines
    done = run("extract", NAME, "-p", "never", "-o", f"wide {columns}", *MODEL, cwd=place)
    rows = [line for line in done.stdout.splitlines() if f"5 {NAME}" in line]
    assert len(rows) == 1
    assert re.fullmatch(rf"5 {NAME} +0\.66 +4 of 4", rows[0])
    assert "…" not in done.stdout


def test_a_narrow_terminal_gets_the_whole_digest(place, monkeypatch):
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "argv", ["daisy", "info", str(place / f"{NAME}.safetensors")])
    with open(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as end:
            main()
        stream.flush()
        shown = read_terminal(ours)
    os.close(ours)
    assert end.value.code == 0
    assert digest(place / f"{NAME}.safetensors") in shown


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no text")
def test_names_that_are_no_text(place, tmp_path):
    recording = next((place / NAME).iterdir()).read_bytes()
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(recording)
    (tmp_path / os.fsdecode(b"bad\xe9.wav")).write_text("no audio")
    done = run("extract", tmp_path, "-c", place / f"{NAME}.safetensors", "-p", "never", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "caf\\udce9" in done.stdout
    assert "bad\\udce9.wav: not readable as audio" in done.stderr


def test_the_plugins_folder_is_printed_byte_for_byte(tmp_path):
    """A shell takes what is printed for a path; here a path that the output's encoding lacks."""
    plugin = tmp_path / NAME / "fairseq_plugins"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from daisy.cli import main; main()"
    done = run_python(code, plugin.parent, "user-dir", PYTHONIOENCODING="ascii")
    assert done.stdout == os.fsencode(plugin) + b"\n"
