import pytest
import torch

from daisy.models.head_losses import align_labels, compute_head_losses, count_frames_that_count, sum_layer_losses
from tests.conftest import tiny_model


def test_frames_without_a_label_do_not_count():
    model = tiny_model()
    waveforms = 0.1 * torch.randn(2, 6400, generator=torch.Generator().manual_seed(0))
    labels = torch.full((2, 12), 5)
    labels[1, 8:] = -1  # of 19 frames the first has 12 labels, the second 8
    losses = compute_head_losses(
        model.backbone, model.heads.eval(), waveforms, torch.tensor([6400, 6400]), labels=labels, label_rate=50.0
    )
    assert losses.unmasked[0].num_counted.tolist() == [12, 8]
    assert count_frames_that_count(losses, 1.0, 1.0) == 20
    total, log = sum_layer_losses(losses, 1.0, 1.0, {1: 0.0})
    states = model.encoder("never")(list(waveforms)).states
    nats = [
        sum(
            -float(model.heads.unit_logits(layer, states[row][layer])[:count].log_softmax(-1)[:, 5].sum())
            for row, count in enumerate((12, 8))
        )
        for layer in range(1, 5)
    ]
    assert [log[f"nats_{layer}"] for layer in range(1, 5)] == pytest.approx(nats, rel=1e-5)
    huber, _ = sum_layer_losses(losses, 0.0, 0.0)
    assert float(total) == pytest.approx(sum(nats[1:]) / 4 + float(huber), rel=1e-5)


@pytest.mark.parametrize(("per_frame", "expected"), [(1.0, [1, 2, 3, -1]), (2.0, [1, 3, -1, -1]), (0.5, [1, 1, 2, 2])])
def test_labels_of_other_rates_are_aligned(per_frame, expected):
    assert align_labels(torch.tensor([[1, 2, 3]]), per_frame, 4).tolist() == [expected]
    assert align_labels(torch.zeros(1, 0, dtype=torch.int64), per_frame, 4).tolist() == [[-1] * 4]
