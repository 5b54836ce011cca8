"""A file that torchaudio cannot read gives a one-line message with its name, with libsndfile or FFmpeg as the backend.

FFmpeg is included if its libraries are on the machine (Debian: apt-get install ffmpeg). Its error messages are also
simulated for torchaudio's dispatcher, which asks the first backend of a table, so that this is tested everywhere.
"""

import functools
import shutil
import struct
import zlib

import numpy
import pytest
import soundfile
import torch
import torchaudio
from torchaudio._backend.soundfile import SoundfileBackend
from torchaudio._backend.utils import get_available_backends

from daisy.errors import AudioError
from s3prl_upstream import reading

pytestmark = pytest.mark.filterwarnings("ignore")

AVAILABLE = torchaudio.list_audio_backends()
FFMPEG = pytest.param(
    "ffmpeg",
    marks=pytest.mark.skipif(
        "ffmpeg" not in AVAILABLE, reason="needs FFmpeg's libraries, where torchaudio finds them (Debian: ffmpeg)"
    ),
)
REFUSAL = """Failed to open the input "{uri}" (Invalid data found when processing input).
Exception raised from get_input_format_context at stream_reader.cpp:42 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96 (0x7f5d0916c446 in libc10.so)
"""


class RefusesAsFfmpeg(SoundfileBackend):
    """Reads what libsndfile can, and refuses the rest in FFmpeg's words."""

    @staticmethod
    def load(uri, *arguments):
        try:
            return SoundfileBackend.load(uri, *arguments)
        except soundfile.LibsndfileError:
            raise RuntimeError(REFUSAL.format(uri=uri)) from None


@pytest.fixture
def read_by():
    """Lets one backend alone read for torchaudio."""
    table = get_available_backends()  # the one that the dispatcher holds
    stock = dict(table)

    def choose(name):
        table.clear()
        table[name] = {**stock, "refuses as ffmpeg": RefusesAsFfmpeg}[name]

    yield choose
    table.clear()
    table.update(stock)


EXPECTED = {
    "soundfile": "Error opening '{path}': Format not recognised",
    "refuses as ffmpeg": 'Failed to open the input "{path}" (Invalid data found when processing input)',
    "ffmpeg": 'Failed to open the input "{path}" (Invalid data found when processing input)',
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("backend", ["soundfile", "refuses as ffmpeg", FFMPEG])
def test_the_launcher_names_the_file(read_by, fluent, checkpoint, tmp_path, capsys, backend, workers):
    from s3prl_upstream.run_downstream import main

    corpus = tmp_path / "corpus"
    shutil.copytree(fluent.parent, corpus)
    (corpus / "wavs" / "train3.wav").write_text("no sound")
    data = "config.downstream_expert.datarc"
    known = ["-m", "train", "-u", "daisy_local", "-k", str(checkpoint), "-d", "fluent_commands", "-c", str(fluent)]
    settings = ["-o", f"{data}.file_path={corpus},,{data}.num_workers={workers}"]
    load = torchaudio.load
    read_by(backend)
    with pytest.raises(SystemExit) as end:
        main([*known, "-p", str(tmp_path / "run"), "--device", "cpu", *settings])
    assert end.value.code == 2
    said = capsys.readouterr().err
    expected = EXPECTED[backend].format(path=corpus / "wavs" / "train3.wav")
    assert f"daisy-s3prl: {expected}; -e EXP or -a goes on from the last checkpoint" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert "frame #" not in said
    assert torchaudio.load is load


@pytest.fixture
def files(tmp_path):
    """Of each kind that somebody takes for a recording."""

    def make_chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    picture = b"\x89PNG\r\n\x1a\n" + header + make_chunk(b"IDAT", zlib.compress(b"\0\0")) + make_chunk(b"IEND", b"")
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "picture.wav").write_bytes(picture)
    (tmp_path / "folder.wav").mkdir()
    noise = 0.1 * numpy.random.default_rng(0).standard_normal(30000)
    soundfile.write(tmp_path / "whole.flac", noise, 16000)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "half.flac").write_bytes(whole[: len(whole) // 2])
    return tmp_path


@pytest.mark.parametrize("name", ["text.wav", "empty.wav", "picture.wav", "folder.wav", "gone.wav"])
@pytest.mark.parametrize("backend", ["soundfile", FFMPEG])
def test_every_refusal_is_one_line_with_the_name(files, backend, name):
    for read in (torchaudio.load, torchaudio.info):
        with pytest.raises(AudioError) as refused:
            reading.name_file(functools.partial(read, backend=backend))(files / name)
        assert str(files / name) in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1


def test_a_reason_without_the_name_gets_it(files):
    """libsndfile does not tell where a stream breaks off."""
    load = reading.name_file(functools.partial(torchaudio.load, backend="soundfile"))
    with pytest.raises(AudioError, match=rf"^Error opening '{files / 'half.flac'}': flac decoder lost sync$"):
        load(files / "half.flac")


@pytest.mark.parametrize("backend", [FFMPEG])
def test_what_holds_no_audio_is_said_to(files, backend):
    load = reading.name_file(functools.partial(torchaudio.load, backend=backend))
    with pytest.raises(AudioError, match=r"picture\.wav': there is no audio in it$"):
        load(files / "picture.wav")


def test_what_can_be_read_is_read_and_other_errors_pass(files):
    with reading.Reading(16000):
        samples, rate = torchaudio.load(str(files / "whole.flac"))
        assert torchaudio.info(str(files / "whole.flac")).num_frames == 30000
        with pytest.raises(TypeError, match="unexpected keyword"):
            torchaudio.load(str(files / "whole.flac"), rate=16000)
    assert rate == 16000
    assert torch.equal(samples, torchaudio.load(str(files / "whole.flac"))[0])
