import pytest

from daisy import UsageError
from daisy.audio import Recording
from daisy.audio.references import read_references, require_references

CSV = "path,speaker,text\nb.wav,x,two  words\nc.wav,y,\n"


@pytest.fixture
def recordings(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.wav").touch()
    return [Recording(path=tmp_path / f"{name}.wav", name=f"{name}.wav") for name in "abc"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("text.csv", CSV, [None, "two words", ""]),
        ("text.trn", "two words (b)\n\n (c)\n", [None, "two words", ""]),
        ("8-9.trans.txt", "b two words\nc\n", [None, "two words", ""]),
        ("list.wrd", "one\ntwo words\n\n", ["one", "two words", ""]),
        ("list.ltr", "O N E |\nT W O | W O R D S |\n|\n", ["ONE", "TWO WORDS", ""]),
        ("list.ltr", "\u2581ONE\n\u2581TW O \u2581WORDS\n\n", ["ONE", "TWO WORDS", ""]),
        ("list.tsv", "", ["ONE", "TWO WORDS", ""]),
        ("", "", [None, "two words", ""]),
    ],
)
def test_forms_that_people_have(tmp_path, recordings, name, content, expected):
    (tmp_path / "8" / "9").mkdir(parents=True)
    (tmp_path / "8" / "9" / "8-9.trans.txt").write_text("b two words\nc \n")
    (tmp_path / "list.ltr").write_text("O N E |\nT W O | W O R D S |\n|\n")
    if content:
        (tmp_path / name).write_text(content)
    (tmp_path / "list.tsv").write_text(f"{tmp_path}\na.wav\t400\nb.wav\t400\nc.wav\t400\n")
    assert read_references(tmp_path / name, recordings, tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.csv", "file,text\n", "must have the columns path and text, found file, text"),
        (
            "text.csv",
            "path,text\nz.wav,z\n",
            "has a text for none of the 3 recordings, such as .*a.wav; its paths are taken below ",
        ),
        ("text.csv", "path,text\na.wav,well, then\n", "line 2 has more or fewer cells than the first line; .*quotes"),
        ("text.csv", "path,text\na.wav,one\nb.wav\n", "line 3 has more or fewer cells than the first line"),
        ("text.csv", "path,text\na.wav,one\n./a.wav,two\n", "has two texts for .*a.wav"),
        ("text.csv", "path,text\na.wav,o\0ne\n", "text.csv: not CSV"),
        ("text.txt", "a one\na two\n", "has two texts for a"),
        ("text.trn", "z\u2028 (z)\n", "has a text for none of the 3 recordings, such as .*a.wav$"),
        ("text.trn", "no name\n", "line 1 does not end in a recording's name in brackets"),
        ("text.ltr", "A |\n", "text.tsv: no such manifest"),
        ("text.json", "{}", "not a form of references that is read"),
        ("gone.csv", None, "gone.csv: cannot be read"),
    ],
)
def test_what_is_none_is_refused(tmp_path, recordings, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_references(tmp_path / name, recordings, tmp_path)


def test_texts_may_have_commas_and_ends_of_lines(tmp_path, recordings):
    (tmp_path / "text.csv").write_text('path,text\r\na.wav,"well, then\r\ngo"\r\nb.wav,x\u2028y\r\n', newline="")
    assert read_references(tmp_path / "text.csv", recordings, tmp_path) == ["well, then go", "x y", None]
    assert read_references(tmp_path / "text.csv", [], tmp_path) == []


def test_names_that_could_be_of_two_recordings_are_refused(tmp_path, recordings):
    (tmp_path / "text.txt").write_text("a one\nz two\n")
    others = [Recording(path=tmp_path / "x" / f"{name}.wav", name=f"x/{name}.wav") for name in "ab"]
    assert read_references(tmp_path / "text.txt", [*recordings, others[1]]) == ["one", None, None, None]
    channels = [Recording(path=recordings[0].path, name="a.wav", channel=channel) for channel in (0, 1)]
    assert read_references(tmp_path / "text.txt", channels) == ["one", "one"]
    with pytest.raises(UsageError, match=r"text.txt: a could be .*a.wav or .*x.a.wav: use a CSV file"):
        read_references(tmp_path / "text.txt", [*recordings, *others])


def test_lists_of_other_lengths_are_refused(tmp_path, recordings):
    (tmp_path / "list.tsv").write_text(f"{tmp_path}\na.wav\t400\n")
    (tmp_path / "list.wrd").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"list.wrd: has 2 lines, and .*list.tsv lists 1 recordings"):
        read_references(tmp_path / "list.wrd", recordings)


def test_all_are_wanted():
    assert require_references("x", ["a", "b"], ["1", "2"]) == ["a", "b"]
    with pytest.raises(UsageError, match="x: does not tell what was said in 2"):
        require_references("x", ["a", None], ["1", "2"])
