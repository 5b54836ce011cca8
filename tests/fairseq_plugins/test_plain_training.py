"""`daisy.training` beside the plugin: the same losses update by update, on the same batches from the same heads."""

import pytest

from benchmarks.training.plain import compare_updates
from daisy.training import HeadTraining


@pytest.mark.parametrize("labels", [False, True])
def test_losses_are_the_plugins_update_by_update(labels, corpus):
    settings = HeadTraining(
        max_update=12, warmup_updates=3, lr=0.01, clip_norm=0.5, weight_decay=0.01, noise_prob=0.5, noise_snr_db=(0, 5)
    )
    rows = compare_updates(corpus / "data", corpus / "hubert.safetensors", settings, labels=labels, batch=3)
    theirs, ours = ([row[f"{side}_loss"] for row in rows] for side in ("plugin", "plain"))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(set(theirs)) == len(rows) == 12
    assert [row["learning_rate"] for row in rows[:5]] == pytest.approx([0, 0.01 / 3, 0.02 / 3, 0.01, 0.01 * 8 / 9])
    assert rows[-1]["largest_weight_difference"] < 1e-4
