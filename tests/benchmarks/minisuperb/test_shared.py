"""A few of the shared recordings, real labels and real noise; skipped where ../shared is absent."""

import csv

import pytest

from benchmarks.minisuperb.corpora import build_corpus


@pytest.fixture(autouse=True)
def _real(shared, use_recordings):
    use_recordings(shared / "data")


def test_orders_fill_the_three_columns(tmp_path):
    folder = build_corpus("ic", tmp_path, limit=30)
    with open(folder / "clean" / "data" / "train_data.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert 20 < len(rows) <= 30
    for column in ("action", "object", "location"):
        assert len({row[column] for row in rows}) >= 3, column
    assert "none" not in {row["action"] for row in rows}


def test_recognition_has_mboshis_letters(tmp_path):
    folder = build_corpus("asr", tmp_path, limit=40)
    letters = {line.split()[0] for line in (folder / "char.dict").read_text(encoding="utf-8").splitlines()}
    assert {"|", "Á", "A", "N", "Ω", "Ώ"} <= letters
    assert not any(letter.islower() or letter in ".,?!" for letter in letters)
    for split in ("train", "dev", "test-clean", "test-0"):
        lines = next((folder / split).rglob("*.trans.txt")).read_text(encoding="utf-8").splitlines()
        assert all(set(line.split(" ", 1)[1].replace(" ", "")) <= letters for line in lines), split
