"""Files whose headers are wrong or say nothing, and files that a library would read in part only."""

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

RATE = 16000
HUNDRED_HOURS = 100 * 3600 * RATE


def noise(seconds=3.0, seed=0, channels=1):
    samples = 0.1 * numpy.random.default_rng(seed).standard_normal((int(seconds * RATE), channels))
    return samples.astype("float32")


def write_flac(path, samples, promised):
    """A FLAC file whose header promises so many samples (STREAMINFO: 36 bits; 0 is unknown)."""
    soundfile.write(path, samples, RATE)
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | promised >> 32
    content[22:26] = (promised & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def write_mp3(path, samples, mode="VARIABLE", header=True):
    """An MP3 with the Xing header that tells its length, or without, as encoders write that cannot go back."""
    soundfile.write(path, samples, RATE, format="MP3", bitrate_mode=mode, compression_level=0.5)
    content = path.read_bytes()
    if not header:
        tag = max(content.find(b"Xing"), content.find(b"Info"))
        path.write_bytes(content[content.index(content[:2], tag) :])
    return path


def read_in_parts(path, step=7001):
    file = audio.AudioFile(path)
    parts = [file.read(start, min(start + step, file.num_samples)) for start in range(0, file.num_samples, step)]
    return torch.cat(parts)


def assert_same_everywhere(path, expected):
    """Whole, in parts and counted, a file gives the same; ``expected`` is (N,)."""
    waveform = audio.read(path)
    assert torch.equal(waveform, torch.as_tensor(expected))
    assert torch.equal(read_in_parts(path), waveform)
    assert audio.num_samples(path) == len(waveform)


def assert_refused(path, message):
    for read in (audio.read, read_in_parts):
        with pytest.raises(AudioError) as error:
            read(path)
        assert message in str(error.value)
        assert str(error.value).startswith(f"{path}: ")


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
