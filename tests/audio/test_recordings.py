import numpy
import pytest
import soundfile

from daisy import AudioError, audio
from daisy.audio import Recording
from daisy.audio.recordings import assign_speakers
from daisy.errors import UsageError


def test_inputs_are_files_folders_globs_and_manifests(tmp_path):
    for name in ("a.wav", "sub/b.wav", "sub/deep/c.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, numpy.zeros(1600), 16000)
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
    assert audio.find([tmp_path]) == audio.read_manifest(str(manifest)) == audio.read_manifest(manifest) == recordings
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


def test_channels_are_in_the_share_of_their_file(tmp_path):
    soundfile.write(tmp_path / "ES2002.wav", numpy.zeros((1600, 2)), 16000)
    recording = Recording(path=tmp_path / "ES2002.wav", name="meeting-2.wav")  # as a manifest of lhotse's calls it
    channels = audio.take_channels([recording], "all")
    assert len(channels) == 2
    assert {one.file_name for one in (recording, *channels)} == {"meeting-2.wav"}
    assert [one.name for one in channels] == ["meeting-2.0.wav", "meeting-2.1.wav"]


def test_manifests_are_for_fairseq_which_does_not_resample(tmp_path):
    soundfile.write(tmp_path / "x.wav", numpy.zeros(8000), 8000)
    with pytest.raises(AudioError, match="8000 Hz, and fairseq takes 16000 Hz only"):
        audio.format_manifest_line(audio.find([str(tmp_path)])[0], tmp_path)
    soundfile.write(tmp_path / "x.wav", numpy.zeros(399), 16000)
    with pytest.raises(AudioError, match="too short: 399 samples, one frame needs 400"):
        audio.format_manifest_line(audio.find([str(tmp_path)])[0], tmp_path)


def test_raw_samples_in_a_folder_are_passed_over(tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    soundfile.write(tmp_path / "y.wav", numpy.zeros(1600), 16000)
    assert [recording.name for recording in audio.find([str(tmp_path)])] == ["y.wav"]
    with pytest.raises(AudioError, match="not readable as audio"):
        audio.read(tmp_path / "x.raw")


def test_rare_speakers_are_listed_more_often(tmp_path):
    counts, speakers = [900, 100, 300, 100], ["a", "b", "c", "c"]
    assert audio.count_repeats(counts, speakers, 0.0) == [1, 1, 1, 1]
    assert audio.count_repeats(counts, speakers, 1.0) == [1, 9, 2, 3]  # 900 over 900, 100 and 400
    assert audio.count_repeats(counts, speakers, 0.5) == [1, 3, 2, 1]  # the square root of 2.25 is 1.5
    counts, speakers = [10] * 10 + [10] * 7, ["a"] * 10 + ["b"] * 7  # 100 over 70
    assert audio.count_repeats(counts, speakers, 1.0) == [1] * 10 + [1, 2, 1, 2, 1, 2, 1]
    path = tmp_path / "speakers.csv"
    path.write_bytes("\ufeffpath,speaker\nx/a.wav,a\n".encode())  # as spreadsheets write it
    assert audio.read_speakers(path) == {"x/a.wav": "a"}
    path.write_text("path,speaker\nx/a.wav,a\n./x/a.wav,b\n")
    recordings = [Recording(path=tmp_path / "x/a.wav", name="x/a.wav")]
    with pytest.raises(UsageError, match=r"speakers\.csv: has two speakers for .*x/a\.wav: a and b"):
        assign_speakers(recordings, path, tmp_path)
    path.write_text("path,speaker\nx/a.wav,a\nx/a.wav,b\n")
    with pytest.raises(UsageError, match=r"has two speakers for x/a\.wav: a and b"):
        audio.read_speakers(path)
    path.write_text("path,speaker\nx/a.wav,a\nx/a.wav,a\n")
    assert assign_speakers(recordings, path, tmp_path) == ["a"]
    path.write_text("file,who\nx,y\n")
    with pytest.raises(UsageError, match="not a CSV file with the columns path and speaker"):
        audio.read_speakers(path)
