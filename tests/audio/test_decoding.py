"""Files whose headers are wrong or incomplete, and files that a library would read only in part."""

import itertools
import struct
import tracemalloc

import numpy
import pytest
import soundfile
import torch

from daisy import AudioError, audio
from daisy.audio import decoding
from daisy.audio.streams import find_ogg_streams
from tests.audio.reading import RATE, assert_refused, assert_same_everywhere, noise

HUNDRED_HOURS = 100 * 3600 * RATE


def write_flac(path, samples, promised):
    """A FLAC file whose header promises so many samples (STREAMINFO: 36 bits; 0 is unknown)."""
    soundfile.write(path, samples, RATE)
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | promised >> 32
    content[22:26] = (promised & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def test_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    samples = noise()
    expected = audio.read(write_flac(tmp_path / "known.flac", samples, len(samples)))
    assert len(expected) == 48000
    assert_same_everywhere(write_flac(tmp_path / "unknown.flac", samples, 0), expected)


@pytest.mark.parametrize("promised", [0, 48000])
def test_flac_that_was_cut_off_is_never_shorter_audio(tmp_path, promised):
    path = write_flac(tmp_path / "x.flac", noise(), promised)
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        assert_refused(path, "not readable as audio")


def test_what_a_header_promises_takes_no_memory(tmp_path):
    path = write_flac(tmp_path / "x.flac", noise(1.0), HUNDRED_HOURS)
    tracemalloc.start()
    message = f"ends {HUNDRED_HOURS - RATE} samples before its header says"
    assert_refused(path, message)
    with pytest.raises(AudioError, match=message):
        audio.num_samples(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def renumber(page, serial):
    """An Ogg page of another stream: serial number and checksum (RFC 3533, section 6) changed."""
    page = bytearray(page)
    page[14:18], page[22:26] = struct.pack("<I", serial), bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x04C11DB7 if checksum & 0x80000000 else 0)
        checksum &= 0xFFFFFFFF
    page[22:26] = struct.pack("<I", checksum)
    return bytes(page)


def split_pages(content):
    place = 0
    while place < len(content):
        end = place + 27 + content[place + 26] + sum(content[place + 27 : place + 27 + content[place + 26]])
        yield content[place:end]
        place = end


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_ogg_streams_that_follow_one_another_are_all_read(tmp_path, subtype):
    paths = [tmp_path / "first.ogg", tmp_path / "second.ogg", tmp_path / "chain.ogg"]
    for seed, path in enumerate(paths[:2]):
        soundfile.write(path, noise(0.3 + seed / 10, seed), RATE, format="OGG", subtype=subtype)
    first, second = (path.read_bytes() for path in paths[:2])
    expected = torch.cat([audio.read(path) for path in paths[:2]])
    paths[2].write_bytes(first + b"".join(renumber(page, 77) for page in split_pages(second)))
    assert_same_everywhere(paths[2], expected)
    paths[2].write_bytes(first + second)
    assert_same_everywhere(paths[2], expected)
    soundfile.write(paths[1], noise(0.3), 8000, format="OGG", subtype=subtype)
    paths[2].write_bytes(first + paths[1].read_bytes())
    assert_refused(paths[2], f"from byte {len(first)} on 8000 Hz and 1 channels, before that 16000 Hz and 1")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36])
def test_streamed_wav(tmp_path, size):
    """ffmpeg and sox write such sizes to a pipe."""
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(), RATE)
    expected = audio.read(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    assert_same_everywhere(path, expected)


def test_wav_that_was_never_closed_says_so(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(), RATE)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = bytes(4)
    path.write_bytes(content)
    assert_refused(path, "holds no samples by its header, though it has 96044 bytes: was it never closed?")


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "GSM610"),
        ("WAV", "G721_32"),
        ("WAV", "IMA_ADPCM"),
        ("AU", "G723_24"),
        ("XI", "DPCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "OPUS"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("CAF", "ALAC_16"),
        ("RF64", "PCM_24"),
    ],
)
def test_blocks_are_what_one_reading_gives(tmp_path, format, subtype, monkeypatch):
    path = tmp_path / "x"
    soundfile.write(path, noise(1.5), 44100 if format == "XI" else RATE, format=format, subtype=subtype)
    monkeypatch.setattr(decoding, "BLOCK_VALUES", 1000)
    expected, rate = soundfile.read(path, dtype="float32")
    if rate == RATE:
        assert_same_everywhere(path, expected)
    else:
        assert torch.equal(audio.read(path), audio.resample(torch.from_numpy(expected), rate, RATE))


@pytest.mark.parametrize("channels", [2, 3, 5, 8])
def test_the_mean_of_channels_does_not_depend_on_blocks(tmp_path, channels, monkeypatch):
    soundfile.write(tmp_path / "x.wav", noise(1.0, channels=channels), RATE, subtype="FLOAT")
    expected = torch.from_numpy(noise(1.0, channels=channels)).mean(1)
    for values in (2**20, 777):
        monkeypatch.setattr(decoding, "BLOCK_VALUES", values)
        assert torch.equal(audio.read(tmp_path / "x.wav"), expected)


@pytest.mark.parametrize(
    "error", [ValueError("array is\ntoo big"), AssertionError(), TypeError("bad"), OSError("gone")]
)
def test_whatever_the_library_raises_is_one_line(tmp_path, error):
    with pytest.raises(AudioError) as refusal, decoding.explain_errors(tmp_path / "x.wav"):
        raise error
    assert str(refusal.value).startswith(f"{tmp_path}/x.wav: not readable as audio (")
    assert "\n" not in str(refusal.value)


def test_too_little_memory_is_said(tmp_path):
    with pytest.raises(AudioError, match="needs more memory than there is"), decoding.explain_errors(tmp_path):
        numpy.empty(2**45)


@pytest.mark.parametrize("rate", [0, 1, 999, 1_000_001, 0xFFFFFFFF])
def test_rates_that_only_a_damaged_header_has_are_refused(tmp_path, rate):
    """Resampled from 1 Hz, a second would take 64 kB, and a minute at that rate 4 GB."""
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(1.0), RATE)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="Hz is no sample rate of speech, outside 1 kHz to 1 MHz|not reada"):
        audio.read(path)


def test_levels_that_no_scale_has_are_refused(tmp_path):
    path = tmp_path / "x.wav"
    for level in (1.0, 32768.0, 2.0**31):
        soundfile.write(path, noise(1.0) * 0 + numpy.float32(level), RATE, subtype="FLOAT")
        assert audio.read(path).max() == level
    soundfile.write(path, noise(1.0) * 0 + numpy.float32(1e30), RATE, subtype="FLOAT")
    assert_refused(path, "a sample of 1e+30, where full scale is 1: damaged")


def test_sphere_files(tmp_path):
    for name in ("a.sph", "b.WV1", "c.adc"):
        soundfile.write(tmp_path / name, noise(), RATE, format="NIST", subtype="PCM_16")
    assert [len(audio.read(recording.path)) for recording in audio.find([tmp_path])] == [48000] * 3
    content = (tmp_path / "a.sph").read_bytes()
    coding = content.replace(b"sample_coding -s3 pcm", b"sample_coding -s26 pcm,embedded-shorten-v2.00")[:1024]
    (tmp_path / "a.sph").write_bytes(coding + b"ajkg\x02" + content[1024:])
    assert_refused(tmp_path / "a.sph", "NIST SPHERE compressed with shorten: decompress it with sph2pipe")


def test_pages_of_an_ogg_file(tmp_path):
    path = tmp_path / "x.ogg"
    soundfile.write(path, noise(0.2), RATE, format="OGG", subtype="VORBIS")
    size = path.stat().st_size
    assert find_ogg_streams(path) == [(0, size)]
    path.write_bytes(path.read_bytes() * 3)
    links = find_ogg_streams(path)
    assert links == [(0, size), (size, 2 * size), (2 * size, 3 * size)]
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(links))


@pytest.mark.parametrize("format", ["WAV", "OGG"])
def test_reading_opens_a_file_once(tmp_path, format, monkeypatch):
    """Of Ogg, opening takes as long as decoding a second."""
    soundfile.write(tmp_path / "x", noise(), RATE, format=format)
    opened, open_file = [], soundfile.SoundFile.__init__
    monkeypatch.setattr(soundfile.SoundFile, "__init__", lambda *args, **more: opened.append(open_file(*args, **more)))
    assert len(audio.read(tmp_path / "x")) == 48000
    assert len(opened) == 1
