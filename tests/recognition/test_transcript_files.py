import csv
import json

import pytest

from daisy.errors import AudioError
from daisy.recognition.decoding import Word
from daisy.recognition.transcript_files import TranscriptReport, format_csv, format_json, format_srt
from daisy.recognition.transcript_rows import TranscriptRow, TranscriptSettings


def say(text, start, stop):
    return Word(text=text, start_sec=start, end_sec=stop, confidence=0.5)


def test_subtitles_end_at_pauses_and_before_they_get_long():
    words = [say("one", 0.04, 0.5), say("two", 0.6, 1.0), say("three", 2.1, 2.3)]  # a pause
    words += [say("four", 2.4, 8.2), say("five", 8.25, 8.45)]  # six seconds
    words += [say("x" * 40, 8.55, 8.6), say("y" * 40, 8.7, 8.8), say("end", 3723.5, 3723.9996)]
    blocks = [block.splitlines() for block in format_srt(words).split("\n\n")]
    assert [block[2][:7] for block in blocks] == ["one two", "three", "four", "five xx", "y" * 7, "end"]
    assert blocks[0] == ["1", "00:00:00,040 --> 00:00:01,040", "one two"]
    assert blocks[-1][:2] == ["6", "01:02:03,500 --> 01:02:04,500"]
    assert format_srt([]) == ""


def test_a_short_subtitle_stays_a_second_or_until_the_next():
    words = [say("x" * 60, 1.0, 1.02), say("y" * 60, 1.5, 1.52), say("end", 9.0, 9.02)]
    times = [block.splitlines()[1] for block in format_srt(words).split("\n\n")]
    assert times == [
        "00:00:01,000 --> 00:00:01,500",
        "00:00:01,500 --> 00:00:02,500",
        "00:00:09,000 --> 00:00:10,000",
    ]


@pytest.fixture
def report():
    settings = TranscriptSettings(checkpoint="c", policy={"name": "never"}, heads="ctc", exits=[2, 4], channel="all")
    row = dict(output="", duration_sec=2.0, num_layers=4, seconds=0.5, words=[say("one", 0.0, 1.0)])
    rows = [
        TranscriptRow(path="/a.wav", channel=0, exit_layer=2, text="one two", **row),
        TranscriptRow(path="/a.wav", channel=1, exit_layer=4, text="one", window_exits=[2, 4], **row),
        TranscriptRow(path="/b.wav", channel=0, exit_layer=4, text="", **row),
    ]
    said = {"/a.wav (channel 0)": "one too", "/a.wav (channel 1)": "one", "/b.wav (channel 0)": ""}
    return TranscriptReport(settings=settings, rows=rows, failed={"/c.wav": AudioError("no")}, references=said)


def test_rates_are_of_all_and_of_each_exit(report):
    pytest.importorskip("jiwer")
    rates = report.rates()
    assert list(rates) == ["all", 2, 4]
    assert (rates["all"].wer, rates["all"].cer) == (pytest.approx(1 / 3), pytest.approx(1 / 10))
    assert (rates[2].wer, rates[4].wer) == (0.5, 0.0)
    said = json.loads(format_json(report))
    assert said["error_rates"]["2"] == {"wer": 0.5, "cer": pytest.approx(1 / 7), "num_words": 2, "num_characters": 7}
    assert said["failed"] == [{"path": "/c.wav", "reason": "no"}]
    assert said["totals"]["mean_exit_layer"] == pytest.approx((2 + 3 + 4) / 3)
    assert said["recordings"][0]["words"] == [{"text": "one", "start_sec": 0.0, "end_sec": 1.0, "confidence": 0.5}]


def test_tables_have_what_the_rates_are_made_of(report):
    pytest.importorskip("jiwer")
    lines = list(csv.DictReader(format_csv(report).splitlines()))
    assert [(line["channel"], line["text"], line["window_exits"]) for line in lines[:2]] == [
        ("0", "one two", ""),
        ("1", "one", "2 4"),
    ]
    assert [lines[0][name] for name in ("word_errors", "words", "character_errors", "characters")] == [
        "1",
        "2",
        "1",
        "7",
    ]
    report.references = {}
    assert format_csv(report).splitlines()[0].endswith("text")
    assert "error_rates" not in json.loads(format_json(report))
