import pytest
import torch

from daisy.models.packing import PackedLayout
from daisy.runtime.attention import _attend_padded as attend_padded
from daisy.runtime.attention import attend


def test_attention_padded_is_attention_each_by_itself():
    generator = torch.Generator().manual_seed(0)
    for lengths in ([5, 1, 9], [4, 4, 4]):
        projected = torch.randn(sum(lengths), 3 * 12, generator=generator)
        layout = PackedLayout(torch.tensor(lengths))
        padded = attend_padded(projected.unflatten(1, (3, 2, -1)), layout)
        torch.testing.assert_close(attend(projected, layout, 2), padded)


@pytest.mark.parametrize("block", [256, 4])
@pytest.mark.parametrize("lengths", [[600, 100], [20], [63, 64, 1]])
def test_bfloat16_attention_by_blocks_and_of_short_recordings(lengths, monkeypatch, block):
    monkeypatch.setattr("daisy.runtime.attention.QUERY_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(sum(lengths), 3 * 64, generator=generator)
    projected[:, :64] *= 32**-0.5
    layout = PackedLayout(torch.tensor(lengths))
    expected = attend(projected, layout, 2)
    rows_that_mean_nothing = torch.full((5, 3 * 64), torch.nan)
    attended = attend(torch.cat([projected, rows_that_mean_nothing]).bfloat16(), layout, 2)[: sum(lengths)]
    assert attended.dtype == torch.bfloat16
    assert (attended.float() - expected).norm() < 0.01 * expected.norm()
