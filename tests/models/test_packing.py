import torch
from hypothesis import given
from hypothesis import strategies as st

from daisy.models.packing import PackedLayout, StaticLayout

LENGTHS = [3, 1, 4]
lengths_of_batches = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def make_layout():
    return PackedLayout(torch.tensor(LENGTHS))


def draw_rows(lengths, seed=0):
    return torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(seed))


def test_who_owns_which_frame():
    layout = make_layout()
    assert (len(layout), layout.total, layout.max_seqlen, layout.seqlens_list) == (3, 8, 4, LENGTHS)
    assert layout.segment_ids.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert layout.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert layout.cu_seqlens.dtype == torch.int32  # what attention for many lengths takes
    assert layout.row_indices(torch.tensor([10, 20, 30])).tolist() == [10, 11, 12, 20, 30, 31, 32, 33]


def test_means_are_each_utterances_own():
    values = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([rows.mean(0) for rows in values.split(LENGTHS)])
    torch.testing.assert_close(make_layout().mean(values), expected)
    torch.testing.assert_close(make_layout().mean(values[:, 0]), expected[:, 0])


def test_means_of_many_frames_keep_their_digits():
    values = torch.full((2_000_000,), 0.1)
    assert abs(float(PackedLayout(torch.tensor([2_000_000])).mean(values)) - float(values[0])) < 1e-9


def test_strides_begin_with_each_utterance():
    assert make_layout().strided(3).seqlens_list == [1, 1, 2]
    assert make_layout().strided_rows(3).tolist() == [0, 3, 4, 7]
    assert make_layout().strided(1).seqlens_list == LENGTHS
    assert make_layout().strided_rows(1).tolist() == list(range(8))
    layout = make_layout()  # layers ask again and again
    assert layout.strided(3) is layout.strided(3)
    assert layout.strided_rows(3) is layout.strided_rows(3)


def test_some_of_the_utterances():
    stay, rows = torch.tensor([True, False, True]), torch.arange(8)
    assert make_layout().select(stay).seqlens_list == [3, 4]
    assert make_layout().select_rows(rows, stay).tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert make_layout().select_rows(rows, ~torch.ones(3, dtype=torch.bool)).shape == (0,)


@given(lengths_of_batches)
def test_padding_is_undone(lengths):
    layout, rows = PackedLayout(torch.tensor(lengths)), draw_rows(lengths)
    padded = layout.pad(rows)
    assert padded.shape == (len(lengths), max(lengths), 3)
    for utterance, length in enumerate(lengths):
        start = sum(lengths[:utterance])
        assert torch.equal(padded[utterance, :length], rows[start : start + length])
        assert not padded[utterance, length:].any()
    assert torch.equal(layout.unpad(padded), rows)
    padded[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = torch.nan
    assert torch.equal(layout.unpad(padded), rows)


@given(lengths_of_batches, st.data())
def test_those_who_stay_keep_their_rows(lengths, data):
    stay = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    layout, rows = PackedLayout(torch.tensor(lengths)), draw_rows(lengths)
    selected = layout.select(torch.tensor(stay))
    assert selected.seqlens_list == [length for length, stays in zip(lengths, stay, strict=True) if stays]
    expected = [part for part, stays in zip(rows.split(lengths), stay, strict=True) if stays]
    selected_rows = layout.select_rows(rows, torch.tensor(stay))
    assert torch.equal(selected_rows, torch.cat([rows[:0], *expected]))
    assert len(selected_rows) == selected.total


@given(lengths_of_batches, st.integers(1, 15))
def test_strided_frames_are_each_utterances_every_so_manieth(lengths, stride):
    layout = PackedLayout(torch.tensor(lengths))
    starts = [sum(lengths[:utterance]) for utterance in range(len(lengths))]
    expected = [list(range(start, start + length, stride)) for start, length in zip(starts, lengths, strict=True)]
    assert layout.strided_rows(stride).tolist() == [row for frames in expected for row in frames]
    assert layout.strided(stride).seqlens_list == [len(frames) for frames in expected]


@given(lengths_of_batches, st.data())
def test_rows_that_begin_elsewhere(lengths, data):
    starts = data.draw(st.lists(st.integers(0, 1000), min_size=len(lengths), max_size=len(lengths)))
    rows = PackedLayout(torch.tensor(lengths)).row_indices(torch.tensor(starts))
    expected = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    assert rows.tolist() == [row for utterance in expected for row in utterance]


@given(lengths_of_batches, st.integers(0, 2**32), st.floats(-1000, 1000, width=32))
def test_means_are_those_of_a_loop(lengths, seed, offset):
    rows = draw_rows(lengths, seed) + offset
    expected = torch.stack([part.double().mean(0) for part in rows.split(lengths)]).float()
    layout = PackedLayout(torch.tensor(lengths))
    torch.testing.assert_close(layout.mean(rows), expected, rtol=1e-6, atol=1e-6)
    static = StaticLayout(layout.segment_ids, layout.seqlens, layout.cu_seqlens, layout.max_seqlen)
    assert torch.equal(static.mean(rows), layout.mean(rows))


@given(lengths_of_batches)
def test_what_a_device_gets_says_the_same_as_the_host(lengths):
    layout = PackedLayout(torch.tensor(lengths))
    owners = [utterance for utterance, length in enumerate(lengths) for _ in range(length)]
    assert layout.segment_ids.tolist() == owners
    assert layout.cu_seqlens.tolist() == [sum(lengths[:count]) for count in range(len(lengths) + 1)]
    assert layout.seqlens.tolist() == lengths
    assert (len(layout), layout.total, layout.max_seqlen) == (len(lengths), sum(lengths), max(lengths))
