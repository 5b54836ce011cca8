"""Formats that only FFmpeg reads: decoded with PyAV, or refused with a one-line message that names the extra."""

import sys

import numpy
import pytest
import soundfile
import torch

from daisy import AudioError, audio

RATE = 16000


def tone(seconds=2.0):
    return (0.3 * numpy.sin(2 * numpy.pi * 440 * numpy.arange(int(seconds * RATE)) / RATE)).astype("float32")


def encode(path, codec, format, samples, rate=RATE, layout="mono"):
    """Write (N,) samples, or (channels, N), at a rate that the codec has."""
    import av

    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(numpy.atleast_2d(samples), format="fltp", layout=layout)
        frame.sample_rate = RATE
        converter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for converted in [*converter.resample(frame), *converter.resample(None), None]:
            container.mux(stream.encode(converted))
    return path


def test_without_the_extra_its_name_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "x.M4A").write_bytes(bytes(100))
    for read in (audio.read, audio.num_samples, audio.AudioFile):
        with pytest.raises(AudioError) as error:
            read(tmp_path / "x.M4A")
        assert str(error.value) == f"{tmp_path}/x.M4A: .m4a files need FFmpeg: pip install 'daisy-speech[ffmpeg]'"
    soundfile.write(tmp_path / "y.m4a", tone(), RATE, format="WAV")  # a wrong ending does not matter
    assert len(audio.read(tmp_path / "y.m4a")) == 2 * RATE


@pytest.mark.parametrize(
    ("name", "codec", "format", "rate", "tolerance"),
    [
        ("a.mkv", "pcm_s16le", "matroska", RATE, 1e-4),
        ("a.mov", "pcm_s16le", "mov", RATE, 1e-4),
        ("a.wv", "wavpack", "wv", RATE, 0.005),
        ("a.m4a", "aac", "mp4", RATE, 0.01),
        ("a.webm", "libopus", "webm", 48000, 0.03),
    ],
)
def test_ffmpegs_formats_come_out_as_they_went_in(tmp_path, name, codec, format, rate, tolerance):
    pytest.importorskip("av", reason="needs PyAV")
    expected = torch.from_numpy(tone())
    path = encode(tmp_path / name, codec, format, tone(), rate)
    waveform = audio.read(path)
    assert 2 * RATE <= len(waveform) <= 2 * RATE + 2048
    lag = 1024 if codec == "aac" else 0  # this encoding notes no delay
    assert (waveform[lag : lag + len(expected)] - expected)[2000:-2000].abs().max() < tolerance
    file = audio.AudioFile(path)
    assert torch.equal(file.read(1000, 9000), waveform[1000:9000])
    assert file.num_samples == len(waveform) == audio.num_samples(path)
    assert [recording.path for recording in audio.find([tmp_path])] == [path]


def test_channels_of_ffmpegs_formats(tmp_path):
    pytest.importorskip("av", reason="needs PyAV")
    path = encode(tmp_path / "x.mov", "pcm_s16le", "mov", numpy.stack([tone(), -tone() / 2]), layout="stereo")
    left, right, mean = (audio.read(path, channel=channel) for channel in (0, 1, None))
    assert (left - torch.from_numpy(tone())).abs().max() < 1e-4
    assert torch.allclose(right, -left / 2, atol=1e-4)
    assert torch.allclose(mean, left / 4, atol=1e-4)


def test_a_list_of_other_files_is_not_followed(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="needs PyAV")
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "other.wav", tone(), RATE)
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile other.wav\n")
    with pytest.raises(AudioError, match="x.mp4: not readable as audio"):
        audio.read(tmp_path / "x.mp4")


def test_codings_that_nobody_knows_are_refused(tmp_path):
    """With FFmpeg too, which is asked where libsndfile knows the file and not its coding."""
    soundfile.write(tmp_path / "x.caf", tone(), RATE, format="CAF", subtype="FLOAT")
    (tmp_path / "x.caf").write_bytes((tmp_path / "x.caf").read_bytes().replace(b"lpcm", b"lp?m"))
    with pytest.raises(AudioError, match=r"x.caf: not readable as audio \((Supported file|FFmpeg does not know)"):
        audio.read(tmp_path / "x.caf")


def test_damage_is_refused(tmp_path):
    av = pytest.importorskip("av", reason="needs PyAV")
    whole = encode(tmp_path / "x.m4a", "aac", "mp4", tone(10.0)).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:2000], b"text", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n"):
        (tmp_path / "x.m4a").write_bytes(content)
        with pytest.raises(AudioError) as error:
            audio.read(tmp_path / "x.m4a")
        assert str(error.value).startswith(f"{tmp_path}/x.m4a: not readable as audio (")
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(numpy.zeros((32, 32, 3), "uint8"), format="rgb24")
        container.mux([*stream.encode(picture), *stream.encode(None)])
    with pytest.raises(AudioError, match="video.mp4: holds no audio"):
        audio.read(tmp_path / "video.mp4")
