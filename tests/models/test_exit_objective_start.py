"""Exit heads that start from others: a message says so, as nothing shows whether they predict the same units."""

import pytest
import torch

from daisy.models import ExitHeads, ExitObjective, HeadsConfig


@pytest.mark.parametrize(("num_units", "are_taken"), [(5, True), (6, False)])
def test_heads_that_are_taken_over_are_told_of(caplog, num_units, are_taken):
    objective = ExitObjective(num_layers=2, width=8, num_units=5, layers=[1, 2])
    heads = ExitHeads(HeadsConfig(num_layers=2, width=8, num_units=num_units))
    torch.nn.init.ones_(heads.units[1].weight)
    objective.start_from(heads)
    assert bool(objective.heads.units[1].weight.eq(1).all()) == are_taken
    assert [record.levelname for record in caplog.records] == ["WARNING"] * are_taken
    assert ("as they predict 5 units too" in caplog.text) == are_taken
