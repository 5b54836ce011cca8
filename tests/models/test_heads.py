import pytest
import torch
from torch.nn import functional as F

from daisy import CheckpointError
from daisy.models.heads import ExitHeads, FinalHead, HeadsConfig, LossRegressor, mean_and_std
from daisy.models.losses import unit_loss
from daisy.models.packing import PackedLayout
from daisy.policies.scores import HeadOutputs, entropy
from tests.conftest import randomise


def test_statistics_are_of_own_frames_only():
    states = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 4])
    states = torch.cat([states[0], states[1, :4]])
    pooled = mean_and_std(states, PackedLayout(lengths))
    for row, frames in enumerate(states.split([6, 4])):
        torch.testing.assert_close(pooled[row], torch.cat([frames.mean(0), frames.std(0, correction=0)]))


def test_statistics_far_from_zero_keep_their_digits():
    states = 1000 + torch.randn(30_000, 4, generator=torch.Generator().manual_seed(0))  # ten minutes
    exact = states.double()
    expected = torch.cat([exact.mean(0), exact.std(0, correction=0)]).float()
    torch.testing.assert_close(
        mean_and_std(states, PackedLayout(torch.tensor([30_000])))[0], expected, rtol=1e-5, atol=0
    )


def test_a_new_regressor_predicts_the_loss_of_knowing_nothing():
    heads = ExitHeads(HeadsConfig(num_layers=2, width=3, num_units=104))
    predicted = heads.predicted_loss(2, torch.randn(5, 6))
    torch.testing.assert_close(predicted, torch.full((5,), 104.0).log())


def test_regressor_statistics_are_those_of_everything_seen():
    regressor = LossRegressor(3, start=9.0)
    generator = torch.Generator().manual_seed(0)
    pooled, losses = 5 + 2 * torch.randn(100, 6, generator=generator), 1 + torch.rand(100, generator=generator)
    for start, end in ((0, 1), (1, 8), (8, 60), (60, 100)):
        regressor.observe(pooled[start:end], losses[start:end])
        regressor.observe(pooled[:0], losses[:0])  # a batch without a label
    both = torch.cat([pooled, losses[:, None]], 1)
    torch.testing.assert_close(regressor.mean, both.mean(0))
    torch.testing.assert_close(regressor.variance, both.var(0, correction=0))
    torch.testing.assert_close(regressor(pooled), losses.mean().expand(100))  # its weights are still zero


def test_regressors_stay_in_single_precision():
    heads = ExitHeads(HeadsConfig(num_layers=2, width=3, num_units=104)).bfloat16()
    assert heads.units[0].weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in heads.regressors.state_dict().values()} == {torch.float32}
    predicted = heads.predicted_loss(1, mean_and_std(torch.randn(12, 3).bfloat16(), PackedLayout(torch.tensor([7, 5]))))
    torch.testing.assert_close(predicted, torch.full((2,), 104.0).log())


def test_without_regressors_there_is_no_prediction():
    heads = ExitHeads(HeadsConfig(num_layers=2, width=3, num_units=5, regressors=False))
    with pytest.raises(CheckpointError, match="no loss regressors"):
        heads.predicted_loss(1, torch.randn(1, 6))


def test_final_head_is_a_scaled_cosine():
    head = randomise(FinalHead(6, 4, 9, temperature=0.1))
    states = torch.randn(3, 6)
    expected = F.cosine_similarity(head.projection(states)[:, None], head.embeddings[None], dim=-1) / 0.1
    torch.testing.assert_close(head(states), expected)


def test_entropy_of_known_distributions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0], [0.0, 0.0, -1e4, -1e4]])
    expected = torch.tensor([4.0, 1.0, 2.0]).log()
    heads = ExitHeads(HeadsConfig(num_layers=1, width=4, num_units=4))
    torch.nn.init.eye_(heads.units[0].weight)
    torch.nn.init.zeros_(heads.units[0].bias)
    reading = HeadOutputs(
        heads, 1, logits, PackedLayout(torch.ones(3, dtype=torch.int64))
    )  # three utterances of one frame
    torch.testing.assert_close(entropy(reading), expected)


def test_unit_loss_sums_by_utterance():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    targets = torch.tensor([0, 0, 1])
    loss = unit_loss(logits, targets, torch.tensor([2, 0, 2]), 3)
    nats = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(loss.loss, torch.stack([nats[1], torch.tensor(0.0), nats[0] + nats[2]]))
    assert loss.num_correct.tolist() == [0.0, 0.0, 1.0]
    assert loss.num_counted.tolist() == [1.0, 0.0, 2.0]
