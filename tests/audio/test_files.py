import numpy
import pytest
import soundfile
import torch

from daisy import AudioError, audio
from daisy.errors import UsageError


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


def test_inputs_are_files_folders_globs_and_manifests(tmp_path):
    for name in ("a.wav", "sub/b.wav", "sub/deep/c.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, tone(16000, 0.1), 16000)
    (tmp_path / "notes.txt").write_text("no audio")
    found = {recording.name for recording in audio.find([str(tmp_path)])}
    assert found == {"a.wav", "sub/b.wav", "sub/deep/c.flac"}
    assert [r.name for r in audio.find([str(tmp_path / "sub" / "**" / "*.flac")])] == ["c.flac"]
    recordings = audio.find([str(tmp_path)])
    manifest = tmp_path / "train.tsv"
    lines = [str(tmp_path), *(audio.format_manifest_line(recording, tmp_path) for recording in recordings)]
    manifest.write_text("\n".join(lines) + "\n")
    lines = manifest.read_text().splitlines()
    assert lines[0] == str(tmp_path)
    assert sorted(lines[1:]) == ["a.wav\t1600", "sub/b.wav\t1600", "sub/deep/c.flac\t1600"]
    assert audio.find([str(manifest)]) == audio.find([str(manifest), str(tmp_path)]) == recordings
    with pytest.raises(UsageError, match="no such file, folder or manifest, and as a pattern it matches nothing"):
        audio.find([str(tmp_path / "*.opus")])
    (tmp_path / "void").mkdir()
    with pytest.raises(UsageError, match="no recordings in"):
        audio.find([str(tmp_path / "void")])
    with pytest.raises(UsageError, match="empty name"):
        audio.find([""])
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "gone.wav")
    with pytest.raises(UsageError, match="no such file, folder or manifest"):
        audio.find([str(tmp_path / "dangling.wav")])
    with pytest.raises(UsageError, match="is not below the root"):
        audio.format_manifest_line(recordings[0], tmp_path / "sub")


def test_manifests_are_for_fairseq_which_does_not_resample(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(8000), 8000)
    with pytest.raises(AudioError, match="8000 Hz, and fairseq takes 16000 Hz only"):
        audio.format_manifest_line(audio.find([str(tmp_path)])[0], tmp_path)
    soundfile.write(tmp_path / "x.wav", numpy.zeros(399), 16000)
    with pytest.raises(AudioError, match="too short: 399 samples, one frame needs 400"):
        audio.format_manifest_line(audio.find([str(tmp_path)])[0], tmp_path)


def test_raw_samples_in_a_folder_are_passed_over(tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    soundfile.write(tmp_path / "y.wav", tone(16000, 0.1), 16000)
    assert [recording.name for recording in audio.find([str(tmp_path)])] == ["y.wav"]
    with pytest.raises(AudioError, match="not readable as audio"):
        audio.read(tmp_path / "x.raw")


def test_batches_hold_similar_lengths_within_the_limit():
    lengths = [5, 100, 7, 60, 58, 2, 61, 300]
    batches = list(audio.batch_by_length(lengths, 130))
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert batches == [[7], [1], [6, 3], [4, 2, 0, 5]]
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= 130


def test_rare_speakers_are_listed_more_often(tmp_path):
    counts, speakers = [900, 100, 300, 100], ["a", "b", "c", "c"]
    assert audio.count_repeats(counts, speakers, 0.0) == [1, 1, 1, 1]
    assert audio.count_repeats(counts, speakers, 1.0) == [1, 9, 2, 2]  # 900 over 900, 100 and 400
    assert audio.count_repeats(counts, speakers, 0.5) == [1, 3, 2, 2]  # the square root of 2.25 is 1.5
    path = tmp_path / "speakers.csv"
    path.write_bytes("\ufeffpath,speaker\nx/a.wav,a\n".encode())  # as spreadsheets write it
    assert audio.read_speakers(path) == {"x/a.wav": "a"}
    path.write_text("file,who\nx,y\n")
    with pytest.raises(UsageError, match="not a CSV file with the columns path and speaker"):
        audio.read_speakers(path)
