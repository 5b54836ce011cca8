import torch

from daisy.models.packing import PackedLayout

LENGTHS = [3, 1, 4]


def layout():
    return PackedLayout(torch.tensor(LENGTHS))


def test_who_owns_which_frame():
    found = layout()
    assert (len(found), found.total, found.max_seqlen, found.seqlens_list) == (3, 8, 4, LENGTHS)
    assert found.segment_ids.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert found.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert found.cu_seqlens.dtype == torch.int32  # what attention for many lengths takes
    assert found.row_indices(torch.tensor([10, 20, 30])).tolist() == [10, 11, 12, 20, 30, 31, 32, 33]


def test_means_are_each_utterances_own():
    values = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([own.mean(0) for own in values.split(LENGTHS)])
    torch.testing.assert_close(layout().mean(values), expected)
    torch.testing.assert_close(layout().mean(values[:, 0]), expected[:, 0])


def test_means_of_many_frames_keep_their_digits():
    values = torch.full((2_000_000,), 0.1)
    assert abs(float(PackedLayout(torch.tensor([2_000_000])).mean(values)) - float(values[0])) < 1e-9


def test_strides_begin_with_each_utterance():
    assert layout().strided(3).seqlens_list == [1, 1, 2]
    assert layout().strided_rows(3).tolist() == [0, 3, 4, 7]
    assert layout().strided(1).seqlens_list == LENGTHS
    assert layout().strided_rows(1).tolist() == list(range(8))
    one = layout()  # layers ask again and again
    assert one.strided(3) is one.strided(3)
    assert one.strided_rows(3) is one.strided_rows(3)


def test_some_of_the_utterances():
    stay, rows = torch.tensor([True, False, True]), torch.arange(8)
    assert layout().select(stay).seqlens_list == [3, 4]
    assert layout().select_rows(rows, stay).tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert layout().select_rows(rows, ~torch.ones(3, dtype=torch.bool)).shape == (0,)
