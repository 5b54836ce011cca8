"""MP3s whose headers are wrong or incomplete, read in parts, and inside other files."""

import struct

import numpy
import pytest
import soundfile

from daisy import audio
from tests.audio.reading import RATE, assert_refused, assert_same_everywhere, noise


def write_mp3(path, samples, mode="VARIABLE", header=True):
    """An MP3 with the Xing header that tells its length, or without, as encoders write that cannot go back."""
    soundfile.write(path, samples, RATE, format="MP3", bitrate_mode=mode, compression_level=0.5)
    content = path.read_bytes()
    if not header:
        tag = max(content.find(b"Xing"), content.find(b"Info"))
        path.write_bytes(content[content.index(content[:2], tag) :])
    return path


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_mp3_without_a_length_is_read_to_its_end(tmp_path, mode):
    """libsndfile guesses from the first frame's bit rate: of speech that becomes soft, it would give a third."""
    samples = noise(20.0)
    samples[len(samples) // 2 :] = 0
    complete = audio.read(write_mp3(tmp_path / "header.mp3", samples, mode))
    path = write_mp3(tmp_path / "none.mp3", samples, mode, header=False)
    assert len(complete) == len(samples)
    waveform = audio.read(path)
    assert_same_everywhere(path, waveform)
    assert len(samples) < len(waveform) < len(samples) + 3 * 1152  # what the encoder puts at its ends is not cut off
    delay = 576 + 529  # of LAME and of the decoder
    assert (waveform[delay : delay + len(complete)] - complete)[2000:-2000].abs().max() < 1e-5
    if mode == "VARIABLE":
        assert soundfile.info(path).frames > 1.5 * len(samples) or soundfile.info(path).frames < 0.5 * len(samples)


def test_an_mp3_stream_may_end_within_a_frame(tmp_path):
    path = write_mp3(tmp_path / "x.mp3", noise(), "CONSTANT", header=False)
    whole, count = path.read_bytes(), len(audio.read(path))
    for cut in range(1, 400, 37):
        path.write_bytes(whole[:-cut])
        assert count - 3 * 1152 < len(audio.read(path)) <= count


@pytest.mark.parametrize("sizes", [(200,), (300_000,), (70_000, 70_000)], ids=str)
@pytest.mark.parametrize("header", [True, False])
def test_an_mp3_may_begin_with_tags_of_any_size(tmp_path, header, sizes):
    """Podcasts have their cover there; libsndfile cannot skip more than 64 kB where it cannot seek."""
    path = write_mp3(tmp_path / "x.mp3", noise(20.0), "CONSTANT", header=header)
    expected = audio.read(path)
    tags = [
        b"ID3\4\0\0" + bytes(size >> 7 * i & 0x7F for i in (3, 2, 1, 0)) + b"\xff\xd8" * (size // 2) for size in sizes
    ]
    path.write_bytes(b"".join(tags) + path.read_bytes())
    assert len(expected) >= 320000
    assert_same_everywhere(path, expected)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("header", [True, False])
def test_mp3_in_wav(tmp_path, mode, header):
    """ffmpeg writes it so, without the Xing header; libsndfile guesses its length as it does an MP3's."""
    samples = noise(20.0)
    samples[len(samples) // 2 :] = 0
    content = write_mp3(tmp_path / "x.mp3", samples, mode, header).read_bytes()
    fields = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 576, 1, 1393)
    fact = struct.pack("<I", len(samples) + 554)
    chunks = (b"fmt ", fields), (b"fact", fact), (b"data", content + bytes(len(content) % 2)), (b"LIST", b"INFO" * 500)
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in chunks)
    (tmp_path / "x.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert soundfile.info(tmp_path / "x.wav").subtype == "MPEG_LAYER_III"
    expected = audio.read(tmp_path / "x.mp3")
    assert len(expected) == (320000 if header else 321408)
    assert_same_everywhere(tmp_path / "x.wav", expected)
    body = body[: len(body) // 2]
    (tmp_path / "x.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    if header:
        assert_refused(tmp_path / "x.wav", "samples before its header says")


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("tag", [b"", b"ID3\4\0\0\0\0\1\0" + bytes(128)], ids=["bare", "tagged"])
def test_mp3s_that_were_joined_are_read_to_the_end(tmp_path, mode, tag):
    """The first one's header tells of its own samples only."""
    contents, waveforms = [], []
    for seed in range(2):
        contents.append(tag + write_mp3(tmp_path / f"{seed}.mp3", noise(seed=seed), mode).read_bytes())
        waveforms.append(audio.read(tmp_path / f"{seed}.mp3"))
    (tmp_path / "x.mp3").write_bytes(b"".join(contents))
    waveform = audio.read(tmp_path / "x.mp3")
    assert 96000 < len(waveform) < 96000 + 6 * 1152
    assert_same_everywhere(tmp_path / "x.mp3", waveform)
    for expected in waveforms:  # in their order; between them is what the encoder puts at its ends
        sound = expected[2000:-2000]
        start = int(numpy.correlate(waveform.numpy(), sound[:1000].numpy()).argmax())
        assert (waveform[start : start + len(sound)] - sound).abs().max() < 1e-3
        waveform = waveform[start + len(sound) :]


def test_mp3_whose_header_tells_no_number_is_read_to_its_end(tmp_path):
    path = write_mp3(tmp_path / "x.mp3", noise(20.0), "CONSTANT")
    expected = audio.read(write_mp3(tmp_path / "none.mp3", noise(20.0), "CONSTANT", header=False))
    content = bytearray(path.read_bytes())
    place = max(content.find(b"Xing"), content.find(b"Info"))
    for flags, number in ((15, 0), (14, 557)):
        content[place + 4 : place + 12] = struct.pack(">II", flags, number)
        path.write_bytes(content)
        assert_same_everywhere(path, expected)


@pytest.mark.parametrize(
    "tail", [b"TAG" + bytes(125), b"APETAGEX" + b"\xff\xf3" * 20000, b"ID3\4\0\0\0\4\0\0" + bytes(65536)]
)
def test_tags_behind_an_mp3_change_nothing(tmp_path, tail):
    path = write_mp3(tmp_path / "x.mp3", noise())
    expected = audio.read(path)
    assert len(expected) == 48000
    content = bytearray(path.read_bytes())
    path.write_bytes(content + tail)
    assert_same_everywhere(path, expected)
    place = max(content.find(b"Xing"), content.find(b"Info"))
    (size,) = struct.unpack(">I", content[place + 12 : place + 16])
    content[place + 12 : place + 16] = struct.pack(">I", size - content.index(content[:2], place + 16))
    path.write_bytes(content + tail[:128])  # of an encoder that leaves its header's frame out
    assert_same_everywhere(path, expected)


def test_mp3_that_ends_before_its_header_says_is_refused(tmp_path):
    path = write_mp3(tmp_path / "x.mp3", noise())
    path.write_bytes(path.read_bytes()[:-4000])
    assert_refused(path, "samples before its header says")
