import numpy
import pytest
import soundfile
import torch

from daisy import AudioError, audio


def tone(rate, seconds=1.0, hz=440.0):
    return (0.3 * numpy.sin(2 * numpy.pi * hz * numpy.arange(int(rate * seconds)) / rate)).astype("float32")


@pytest.mark.parametrize("rate", [4001, 8000, 11025, 11127, 16000, 22050, 44100, 48000, 96000])
def test_any_rate_and_channel_count_comes_as_16_khz_mono(tmp_path, rate):
    channels = numpy.stack([tone(rate), 3 * tone(rate), -tone(rate)], 1) / 3
    soundfile.write(tmp_path / "x.wav", channels, rate, subtype="FLOAT")
    waveform = audio.read(tmp_path / "x.wav")
    assert waveform.dtype == torch.float32
    assert abs(len(waveform) - 16000) <= 1
    assert audio.num_samples(tmp_path / "x.wav") == 16000
    waveform = waveform[:16000]
    expected = torch.from_numpy(tone(16000)) / 3
    inner = slice(400, -400)  # the filter's edges
    assert (waveform[inner] - expected[inner]).abs().max() < 1e-3


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_24"), ("OGG", "OPUS"), ("MP3", None), ("WAV", "ULAW")])
def test_coded_formats(tmp_path, format, subtype):
    path = tmp_path / f"x.{format.lower()}"
    soundfile.write(path, tone(16000), 16000, format=format, subtype=subtype)
    assert abs(len(audio.read(path)) - 16000) < 2400
    assert audio.find([str(tmp_path)])[0].path == path


def write(path, samples, **options):
    soundfile.write(path, numpy.asarray(samples, dtype="float32"), 16000, subtype="FLOAT", **options)


def test_bad_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not audio")
    write(tmp_path / "nan.wav", [0.0, float("nan"), float("inf"), 0.1])
    write(tmp_path / "none.wav", [])
    soundfile.write(tmp_path / "cut.flac", tone(16000, 3), 16000)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "folder.wav").mkdir()
    for name, message in {
        "empty.wav": "empty file (0 bytes)",
        "text.wav": "not readable as audio",
        "nan.wav": "2 of 4 samples are NaN or infinite",
        "none.wav": "holds no samples",
        "cut.flac": "not readable as audio",
        "folder.wav": "is a folder",
        "missing.wav": "no such file",
    }.items():
        with pytest.raises(AudioError) as error:
            audio.read(tmp_path / name)
        assert message in str(error.value)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(error.value)
