"""The lines of .km files: stored by recording, even if the manifest changes; as fairseq reads them."""

import numpy
import pytest
import soundfile

from daisy import OutputError, audio
from daisy.extraction.features import make_mfcc
from daisy.extraction.label_folder import check_settings
from daisy.extraction.unit_files import Split, UnitFile, write_dictionary
from daisy.extraction.units import fit_kmeans, sample_features

MFCC = make_mfcc(50)


def ignore(*what):
    pass


@pytest.fixture
def corpus(tmp_path, waveforms):
    """Ten recordings of different lengths and their manifest."""
    (tmp_path / "wav").mkdir()
    lines = [str(tmp_path / "wav")]
    for index in range(10):
        samples = waveforms[6][: 8000 + 700 * index] * (1 + index)
        soundfile.write(tmp_path / "wav" / f"{index}.wav", samples.numpy(), 16000, subtype="FLOAT")
        lines.append(f"{index}.wav\t{len(samples)}")
    for name in ("whole.tsv", "train.tsv"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def centres(corpus):
    recordings = audio.read_manifest(corpus / "train.tsv")
    return fit_kmeans(sample_features(recordings, MFCC, 10**6, 0, ignore, ignore)[0], 5, 0)


def relist(corpus, *indices):
    """Rewrite the manifest with some of the corpus's lines, in an order."""
    root, *lines = (corpus / "whole.tsv").read_text().splitlines()
    by_index = {int(line.partition(".")[0]): line for line in lines}
    text = "\n".join([root, *(by_index[index] for index in indices)]) + "\n"
    (corpus / "train.tsv").write_text(text)


def label(corpus, centres, fail=ignore, stop_after=None):
    """Returns the file, and the names of the recordings that were computed."""
    computed = []

    class Counted(type(MFCC)):
        def read_groups(self, recordings, fail):
            for group in super().read_groups(recordings, fail):
                computed.extend(recording.name for recording, _ in group)
                if stop_after is not None and len(computed) > stop_after:
                    raise KeyboardInterrupt
                yield group

    (corpus / "units").mkdir(exist_ok=True)
    file = UnitFile(split=Split.read(corpus / "train.tsv"), folder=corpus / "units")
    for _ in file.label(Counted(**vars(MFCC)), centres, fail):
        pass
    file.finish()
    return file, computed


def expected_lines(corpus, centres, recordings):
    """By the definition: the nearest centre of each frame."""
    lines = []
    for recording in recordings:
        frames = MFCC(audio.read(recording.path)).numpy()
        units = ((frames[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        lines.append(" ".join(map(str, units)))
    return lines


def test_files_are_what_fairseq_reads_and_a_stopped_run_goes_on(corpus, centres):
    with pytest.raises(KeyboardInterrupt):
        label(corpus, centres, stop_after=4)
    part = corpus / "units" / "train.km.part"
    content = part.read_bytes()
    assert content.count(b"\n") == 4
    part.write_bytes(content + b"@0123456789abcdef0123")  # what a crash leaves of a fifth
    file, computed = label(corpus, centres)
    assert computed == [f"{index}.wav" for index in range(4, 10)]
    assert file.path.read_text().splitlines() == expected_lines(corpus, centres, file.split.recordings)
    assert not part.exists()
    assert label(corpus, centres)[1] == []
    write_dictionary(5, corpus)
    assert (corpus / "dict.km.txt").read_text() == "0 1\n1 1\n2 1\n3 1\n4 1\n"


@pytest.mark.parametrize("stop_after", [None, 6])
def test_lines_follow_a_manifest_that_changes(corpus, centres, stop_after):
    """A line out, another order, one twice: finished or stopped, nothing is done twice, every line is in step."""
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            label(corpus, centres, stop_after=stop_after)
    else:
        label(corpus, centres)
    done = {f"{index}.wav" for index in range(stop_after or 10)}
    relist(corpus, 9, 1, 2, 8, 4, 1, 0)
    file, computed = label(corpus, centres)
    assert computed == [name for name in ("9.wav", "8.wav") if name not in done]
    lines = file.path.read_text().splitlines()
    assert lines == expected_lines(corpus, centres, file.split.recordings)
    assert lines[1] == lines[5]
    assert len(set(lines)) == 6
    relist(corpus, *range(10))
    assert label(corpus, centres)[1] == [f"{i}.wav" for i in (3, 5, 6, 7) if f"{i}.wav" not in done]  # nothing is lost


def test_a_recording_that_got_another_length_is_labelled_anew(corpus, centres):
    label(corpus, centres)
    soundfile.write(corpus / "wav" / "3.wav", numpy.random.default_rng(0).standard_normal(9000), 16000)
    (corpus / "train.tsv").write_text((corpus / "train.tsv").read_text().replace("3.wav\t10100", "3.wav\t9000"))
    file, computed = label(corpus, centres)
    assert computed == ["3.wav"]
    assert file.path.read_text().splitlines() == expected_lines(corpus, centres, file.split.recordings)


def test_a_bad_recording_has_no_line_and_the_manifest_beside_goes_with_the_others(corpus, centres):
    (corpus / "wav" / "7.wav").write_text("no audio")
    relist(corpus, *range(10), 7)
    failed = []
    file, _ = label(corpus, centres, lambda recording, error: failed.append(str(error)))
    assert len(failed) == 1  # listed twice, tried once
    assert failed[0].endswith("7.wav: not readable as audio (Format not recognised)")
    assert file.labelled == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    file.split.write_part(corpus / "units" / "train.tsv", file.labelled)
    beside = Split.read(corpus / "units" / "train.tsv")
    assert [recording.path.name for recording in beside.recordings] == [f"{i}.wav" for i in file.labelled]
    assert beside.lines == [line for line in file.split.lines if not line.startswith(b"7.wav")]
    assert file.path.read_text().splitlines() == expected_lines(corpus, centres, beside.recordings)
    soundfile.write(corpus / "wav" / "7.wav", numpy.random.default_rng(0).standard_normal(12900), 16000)
    file, computed = label(corpus, centres)
    assert computed == ["7.wav"]
    assert file.path.read_text().splitlines() == expected_lines(corpus, centres, file.split.recordings)


@pytest.mark.parametrize("root", ["wav/..", "."])
def test_a_manifest_beside_finds_its_recordings_whatever_their_names_are(corpus, root):
    names = ["../wav/3.wav", "./4.wav"] if root == "wav/.." else ["wav/3.wav", "wav/4.wav"]
    lines = [root, *(f"{name}\t{index}" for index, name in enumerate(names))]
    if root == "wav/..":
        lines = [str(corpus / "wav"), *lines[1:]]
    (corpus / "odd.tsv").write_text("\n".join(lines) + "\n")
    split = Split.read(corpus / "odd.tsv")
    (corpus / "elsewhere").mkdir()
    split.write_part(corpus / "elsewhere" / "odd.tsv", [1, 0])
    again = Split.read(corpus / "elsewhere" / "odd.tsv")
    assert [r.path for r in again.recordings] == [corpus / "wav" / "4.wav", corpus / "wav" / "3.wav"]
    assert [line.split(b"\t")[1] for line in again.lines] == [b"1", b"0"]


def test_a_manifest_beside_has_a_root_that_ends_with_a_blank(corpus):
    (corpus / "wav").rename(corpus / "wav ")
    (corpus / "odd.tsv").write_text(f"{corpus}/wav /\n3.wav\t7\n./4.wav\t8\n")
    (corpus / "elsewhere").mkdir()
    Split.read(corpus / "odd.tsv").write_part(corpus / "elsewhere" / "odd.tsv", [1])
    assert [r.path for r in Split.read(corpus / "elsewhere" / "odd.tsv").recordings] == [corpus / "wav " / "4.wav"]


def test_what_an_older_version_left_is_kept_for_the_same_manifest_only(corpus, centres):
    whole = label(corpus, centres)[0].path.read_bytes()
    part, keys = corpus / "units" / "train.km.part", corpus / "units" / "train.km.keys"
    for left in (part, corpus / "units" / "train.km"):
        keys.unlink()
        lines = whole.splitlines(keepends=True)
        (corpus / "units" / "train.km").unlink()
        left.write_bytes(b"".join(lines[:3]) + lines[3][:5] if left == part else whole)
        file = UnitFile(split=Split.read(corpus / "train.tsv"), folder=corpus / "units")
        with pytest.raises(OutputError, match=r"does not tell of which recordings its units are; use another folder"):
            file.adopt_older(same_manifest=False)
        file.adopt_older(same_manifest=True)
        file, computed = label(corpus, centres)
        assert computed == ([f"{index}.wav" for index in range(3, 10)] if left == part else [])
        assert file.path.read_bytes() == whole


def test_a_stop_at_any_moment_of_the_end_loses_nothing(corpus, centres, monkeypatch):
    """The process ends at each of the steps that make a whole file of a part, and of a whole file a part."""
    import daisy._files as _files

    whole = label(corpus, centres)[0].path.read_bytes()
    write = _files.write
    for stop_at in range(3):
        relist(corpus, *range(9, -1, -1))
        calls = iter(range(10))

        def stopping(path, content, calls=calls, stop_at=stop_at):
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            write(path, content)

        monkeypatch.setattr(_files, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            label(corpus, centres)
        monkeypatch.setattr(_files, "write", write)
        relist(corpus, *range(10))
        file, computed = label(corpus, centres)
        assert computed == []
        assert file.path.read_bytes() == whole


def test_units_made_otherwise_are_refused(tmp_path):
    settings = {"source": "mfcc", "clusters": 2}
    check_settings(tmp_path, {}, settings)
    check_settings(tmp_path, settings, {**settings, "label_rate": 50.0})
    with pytest.raises(OutputError, match=r"units made with another clusters; use another folder"):
        check_settings(tmp_path, settings, {**settings, "clusters": 3})
    check_settings(tmp_path, settings, {**settings, "precision": "float32"})  # older ones do not say it
    with pytest.raises(OutputError, match=r"units made with another precision; use"):
        check_settings(tmp_path, settings, {**settings, "precision": "bfloat16"})
    for before, now, what in (("ab:3", "ab:4", "layer"), ("ab:3", "cd:3", "teacher"), ("mfcc", "ab:3", "teacher")):
        with pytest.raises(OutputError, match=f"units made with another {what}; use another folder"):
            check_settings(tmp_path, {"source": before}, {"source": now})


def test_a_part_that_cannot_be_opened_at_the_end_is_refused_by_name(corpus, centres):
    (corpus / "units").mkdir()
    file = UnitFile(split=Split.read(corpus / "train.tsv"), folder=corpus / "units")
    for _ in file.label(MFCC, centres, ignore):
        pass
    file.part_path.rename(corpus / "kept.part")
    with pytest.raises(OutputError, match=r"train\.km\.part: cannot be written \(No such file or directory\)"):
        file.finish()
    (corpus / "kept.part").rename(file.part_path)
    file.finish()
    assert file.path.read_text().splitlines() == expected_lines(corpus, centres, file.split.recordings)


def test_lines_are_what_recordings_are_read_from(corpus, centres):
    """Blanks of every kind at their ends, lines of blanks, line ends of every kind."""
    plain = Split.read(corpus / "train.tsv")
    root, *lines = (corpus / "train.tsv").read_text().splitlines()
    odd = [f" {lines[0]}", f"{lines[1]}\u00a0", "\u00a0", "", f"{lines[2]}\u2003 ", *lines[3:]]
    (corpus / "train.tsv").write_bytes("\r".join([root, *odd, ""]).encode())
    split = Split.read(corpus / "train.tsv")
    assert (split.recordings, split.lines, split.keys) == (plain.recordings, plain.lines, plain.keys)
    assert split.digest != plain.digest
    assert split.lines[2] == b"2.wav\t9400"
    assert label(corpus, centres)[0].path.read_text().count("\n") == 10
