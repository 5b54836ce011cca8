"""A user's own corpora, as empty files in their layouts."""

import pytest

from benchmarks.minisuperb import published
from daisy.errors import UsageError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_says_exactly_what_is_missing(tmp_path):
    missing = published.find_missing
    wanted = "VoiceBank-DEMAND of 28 speakers: the folder that holds clean_trainset_28spk_wav (at any sampling rate)"
    assert missing("voicebank", None) == [f"--voicebank not given: {wanted}"]
    assert missing("voicebank", tmp_path / "x") == [f"{tmp_path / 'x'}: no such folder; wanted is {wanted}"]
    touch(tmp_path, "clean_testset_wav/a.wav", *(f"noisy_testset_wav/{index}.wav" for index in range(824)))
    assert missing("voicebank", tmp_path) == [
        f"{tmp_path}/clean_trainset_28spk_wav*/*.wav: 0 of 11572 clean training recordings",
        f"{tmp_path}/noisy_trainset_28spk_wav*/*.wav: 0 of 11572 noisy training recordings",
        f"{tmp_path}/clean_testset_wav*/*.wav: 1 of 824 clean test recordings",
    ]


def test_samples_are_drawn_by_seed_whatever_the_order():
    draw = published.draw_names
    names = [f"p{index:03d}" for index in range(50)]
    chosen = draw(names, 5, 7)
    assert chosen == draw(reversed(names), 5, 7) == sorted(chosen)
    assert len(set(chosen)) == 5
    assert chosen != draw(names, 5, 8830)
    with pytest.raises(UsageError, match="cannot draw 51 of 50"):
        draw(names, 51, 7)


def test_speakers_keep_eleven_utterances_and_all_of_dev_and_test():
    pytest.importorskip("pandas")
    lines = [f"{part} id1000{s}/v/{part}{u:04d}.wav" for s in (1, 2) for part in "123" for u in range(20)]
    kept = published.draw_speakers(lines, 11, 42)
    assert [sum(line.startswith(part) for line in kept) for part in "123"] == [22, 40, 40]
    assert kept == published.draw_speakers(lines, 11, 42)
    with pytest.raises(UsageError, match="fewer than 21"):
        published.draw_speakers(lines, 21, 42)
    with pytest.raises(UsageError, match="not a list of VoxCeleb1's splits"):
        published.draw_speakers(["4 id10001/v/1.wav"], 1, 42)


def test_lists_of_enhancement_and_separation(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "SAMPLED", 3)
    stems = [f"p{speaker}_{index:03d}" for speaker in (226, 230, 287) for index in range(6)]
    voicebank = touch(
        tmp_path / "vb",
        *(f"{kind}_trainset_28spk_wav/{stem}.wav" for kind in ("clean", "noisy") for stem in stems),
        *(f"{kind}_testset_wav/p232_{index}.wav" for kind in ("clean", "noisy") for index in range(4)),
    )
    mix = touch(
        tmp_path / "mix",
        *(
            f"wav16k/min/{split}/{kind}/{index}.wav"
            for split in ("train-100", "dev", "test")
            for kind in ("mix_clean", "s1", "s2")
            for index in range(5)
        ),
    )
    folders = {"voicebank": voicebank, "libri2mix": mix}
    sizes = {}
    for task, kinds in (("se", ("noisy", "clean")), ("ss", ("mix_clean", "s1", "s2"))):
        out = published.build_corpus(task, tmp_path / "out", folders)
        for split in ("train", "dev", "test"):
            lists = [(out / split / kind / "wav.scp").read_text().splitlines() for kind in kinds]
            assert len({tuple(line.split()[0] for line in lines) for lines in lists}) == 1
            sizes[task, split] = len(lists[0])
    assert [sizes["se", s] for s in ("train", "dev", "test")] == [3, 12, 4]
    assert [sizes["ss", s] for s in ("train", "dev", "test")] == [3, 5, 5]
