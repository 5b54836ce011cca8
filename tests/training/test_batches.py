import re

import pytest
import soundfile
import torch

from daisy import audio
from daisy.errors import UsageError
from daisy.training import HeadBatches, HeadTraining

SMALL = dict(max_tokens=30_000, max_sample_size=10_000, max_update=10, warmup_updates=2)


def test_an_epoch_has_each_recording_once_and_batches_fit(corpus):
    batches = HeadBatches(corpus / "train.tsv", HeadTraining(**SMALL), corpus)
    seen = []
    for epoch in range(2):
        plan = batches.plan(epoch)
        assert sorted(index for batch in plan for index in batch) == list(range(9))
        for batch in batches.iterate(epoch):
            assert batch.source.numel() <= 30_000
            assert batch.source.shape[1] == int(batch.num_samples.max()) <= 10_000
        seen.append(plan)
    assert seen[0] != seen[1]
    assert batches.plan(0) == seen[0]


def test_padding_counts(tmp_path):
    """One long recording among many short ones, each padded to it: they do not go together."""
    lengths = [10_000, *[1000] * 40]
    for index, length in enumerate(lengths):
        soundfile.write(tmp_path / f"{index}.wav", torch.zeros(length).numpy(), 16000)
    lines = [f"{index}.wav\t{length}" for index, length in enumerate(lengths)]
    (tmp_path / "train.tsv").write_text("\n".join([str(tmp_path), *lines]) + "\n")
    batches = HeadBatches(tmp_path / "train.tsv", HeadTraining(**SMALL, min_sample_size=400))
    sizes = [batch.source.numel() for batch in batches.iterate(0)]
    assert sorted(sizes) == [8000, 30_000, 30_000]  # 38 short ones, and two beside the long one
    assert sorted(len(batch) for batch in batches.plan(0)) == [3, 8, 30]


def test_in_validation_nothing_counts_twice(corpus):
    batches = HeadBatches(corpus / "train.tsv", HeadTraining(**SMALL), training=False)
    shares = [batches.plan(0, rank, 8) for rank in range(8)]
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(9))
    assert [] in shares


def test_processes_share_an_epoch(corpus):
    batches = HeadBatches(corpus / "train.tsv", HeadTraining(**SMALL))
    shares = [batches.plan(0, rank, 4) for rank in range(4)]
    assert len({len(share) for share in shares}) == 1
    assert {index for share in shares for batch in share for index in batch} == set(range(9))


def test_cuts_and_their_labels_go_together(corpus):
    batches = HeadBatches(corpus / "train.tsv", HeadTraining(**SMALL), corpus)
    longest = batches.read([8], epoch=0)
    whole = audio.read(corpus / "train8.wav")
    start = int((whole.unfold(0, 10_000, 1) == longest.source[0]).all(1).nonzero())
    assert start > 0
    expected = [4 + (frame + 8) % 5 for frame in range(len(whole) // 320)][round(start / 320) :]
    assert longest.labels[0].tolist() == expected
    assert not torch.equal(longest.source, batches.read([8], epoch=1).source)
    assert torch.equal(longest.source, batches.read([8], epoch=0).source)
    fixed = HeadBatches(corpus / "train.tsv", HeadTraining(**SMALL), corpus, training=False)
    assert torch.equal(fixed.read([8], 0).source[0], whole[:10_000])
    padded = batches.read([0, 8], 0)
    assert (padded.labels[0, 18:] == -1).all()
    assert not padded.source[0, 6000:].any()


def test_short_recordings_are_left_out(corpus):
    batches = HeadBatches(corpus / "train.tsv", HeadTraining(min_sample_size=8000))
    assert (batches.num_left_out, len(batches.recordings)) == (3, 6)
    with pytest.raises(UsageError, match="no recording of 20000 samples or more"):
        HeadBatches(corpus / "train.tsv", HeadTraining(min_sample_size=20_000))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("train.km", lambda text: text.replace("3", "9", 1), "line 1 has 9, which is no unit of dict.km.txt"),
        ("train.km", lambda text: text.partition("\n")[2], "has 8 lines, and its manifest lists 9 recordings"),
        (
            "train.km",
            lambda text: "0 1\n2 3\n" + text.split("\n", 2)[2],
            "2 of 9 lines are not as long as their recordings: line 1 has 2 labels",
        ),
        ("dict.km.txt", lambda text: "0 1\n0 1\n", "not a dictionary"),
    ],
)
def test_labels_that_do_not_fit_are_refused(name, change, reason, corpus, tmp_path):
    for file in ("train.km", "dict.km.txt"):
        text = (corpus / file).read_text()
        (tmp_path / file).write_text(change(text) if file == name else text)
    with pytest.raises(UsageError, match=re.escape(reason)):
        HeadBatches(corpus / "train.tsv", HeadTraining(), tmp_path)
    with pytest.raises(UsageError, match="daisy labels writes it"):
        HeadBatches(corpus / "train.tsv", HeadTraining(), tmp_path / "nowhere")


def test_one_odd_line_is_a_warning_and_its_frames_do_not_count(corpus, tmp_path):
    (tmp_path / "dict.km.txt").write_text((corpus / "dict.km.txt").read_text())
    (tmp_path / "train.km").write_text("0 1\n" + (corpus / "train.km").read_text().partition("\n")[2])
    with pytest.warns(UserWarning, match="1 of 9 lines is not as long as its recording: line 1 has 2 labels"):
        batches = HeadBatches(corpus / "train.tsv", HeadTraining(**SMALL), tmp_path)
    batch = batches.read([0], 0)
    assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (1, 2))


@pytest.mark.parametrize(
    "settings",
    [dict(lr=0.0), dict(warmup_updates=800), dict(mask_prob=1.0), dict(pred_nomask_weight=0.0), dict(max_tokens=0)],
    ids=str,
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError):
        HeadTraining(**settings)
