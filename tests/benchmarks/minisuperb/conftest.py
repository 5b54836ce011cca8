"""A tiny replacement for the shared recordings."""

import csv
import json

import numpy
import pytest
import soundfile

from benchmarks.minisuperb import sources
from benchmarks.shared import recordings as shared_recordings

SENTENCES = ("mbóyi a dí", "bέbi ya ngá", "ndá", "swá bísi")
ORDERS = (
    {"coffeeDrink": "latte", "size": "large"},
    {"coffeeDrink": "mocha", "roast": "dark roast"},
    {"coffeeDrink": "latte"},
)


def _tables():
    """Return, for each set, the (split, speaker, label, seconds, further columns) of its recordings."""
    sets = {"mboshi": [], "librispeech": [], "digits": [], "keywords": [], "commands": [], "noise": []}
    for split, count in (("train", 4), ("dev", 2), ("test", 3)):
        for i in range(count):
            text = SENTENCES[i % 4]
            sets["mboshi"].append((split, "abiayi", text.capitalize(), 1.0, {"text_clean": text}))
            slots = ORDERS[i % 3] if split == "train" else {"coffeeDrink": "latte", "size": ("large", "small")[i % 2]}
            sets["commands"].append((split, "", "orderDrink", 1.0, {"slots": json.dumps(slots)}))
            sets["keywords"].append((split, "", ("alexa", "smart mirror")[i % 2], 1.0, {}))
        for speaker in (f"{split}a", f"{split}b"):
            sets["librispeech"] += [(split, speaker, f"SOME TEXT {i}", 4.5, {}) for i in range(10)]
        sets["noise"].append((split, "", "rain", 2.5, {}))
    for take in range(10):
        split = "test" if take < 5 else "train"
        sets["digits"] += [(split, speaker, str(take % 3), 0.3, {"take": take}) for speaker in ("jo", "al")]
    return sets


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """A folder like ../shared/data, with seeded noise of different colours, half a minute in all."""
    root = tmp_path_factory.mktemp("data")
    draws = numpy.random.default_rng(0)
    for name, table in _tables().items():
        lines = []
        for index, (split, speaker, label, seconds, more) in enumerate(table):
            stem = f"{label}_{speaker}_{more['take']}" if name == "digits" else f"{name}{index}"
            path = f"{split}/{stem}.wav"
            (root / name / split).mkdir(parents=True, exist_ok=True)
            audio = 0.1 * draws.standard_normal(round(seconds * 16000)).cumsum() % 0.3 - 0.15
            soundfile.write(root / name / path, audio.astype("float32"), 16000)
            line = {"path": path, "split": split, "speaker": speaker, "text_or_label": label}
            lines.append(line | {key: value for key, value in more.items() if key != "take"})
        with open(root / name / "index.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    return root


@pytest.fixture
def use_recordings(monkeypatch):
    """Make measurements read other recordings than the shared ones."""

    def use(folder):
        monkeypatch.setattr(shared_recordings, "DATA", folder)
        sources.load_noise_bank.cache_clear()

    yield use
    sources.load_noise_bank.cache_clear()


@pytest.fixture
def stand_in(use_recordings, recordings):
    """Make the builders read the tiny recordings."""
    use_recordings(recordings)
