"""The pre-training configurations: the networks that they build, and their starting points."""

import pytest
import torch

import daisy
from tests.conftest import POST_NORM, tiny_model
from tests.fairseq_plugins.conftest import ROOT
from tests.fairseq_plugins.test_exit_pretraining import NUM_UNITS, TINY_NETWORK


def compose(name, *overrides):
    """A configuration as fairseq-hydra-train would have it."""
    from fairseq.dataclass.initialize import hydra_init
    from hydra.experimental import compose, initialize_config_dir

    hydra_init(name)
    with initialize_config_dir(config_dir=str(ROOT / "fairseq_plugins" / "config")):
        return compose(name, overrides=["task.data=data", "task.label_dir=units", *overrides])


def build(cfg, num_units, device="meta"):
    """The model of a configuration; on "meta" it takes neither memory nor time for weights."""
    from fairseq.data import Dictionary
    from fairseq.dataclass.utils import merge_with_parent
    from fairseq.tasks import setup_task
    from omegaconf import OmegaConf

    from fairseq_plugins.pretraining_model import DaisyPretrainingHubert, DaisyPretrainingHubertConfig

    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    task = setup_task(cfg.task)
    dictionary = Dictionary()
    for unit in range(num_units):
        dictionary.add_symbol(str(unit))
    task.state.merge_state_dict({"dictionaries": [dictionary]})
    with torch.device(device), pytest.MonkeyPatch.context() as patch:
        if device == "meta":
            patch.setattr("fairseq.models.wav2vec.wav2vec2.init_bert_params", lambda module: None)
        return DaisyPretrainingHubert.build_model(merge_with_parent(DaisyPretrainingHubertConfig(), cfg.model), task)


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(
    ("name", "millions", "heads", "updates"),
    [
        ("hubert_mini_exits", 10.5, 1.6, 1700),
        ("hubert_small_exits", 23.9, 2.3, 400000),
        ("hubert_base_exits", 94.7, 4.7, 400000),
    ],
)
def test_configurations_have_the_size_that_they_state(name, millions, heads, updates):
    cfg = compose(name)
    assert cfg.optimization.max_update == updates
    cfg.optimization.max_update = 7
    assert cfg.lr_scheduler.total_num_update == 7  # it falls to 0 at the end of whatever is asked for
    assert cfg.criterion._name == "daisy_exit_pretraining"
    model = build(cfg, 500)
    in_heads = count(model.exits.parameters())
    assert [round(number / 1e6, 1) for number in (count(model.parameters()) - in_heads, in_heads)] == [millions, heads]
    stated = (ROOT / "fairseq_plugins" / "config" / f"{name}.yaml").read_text()
    assert f"{millions} M parameters" in stated
    assert f"{heads} M parameters in the heads of 500 units" in stated
    assert model.exits.layers == tuple(range(1, 13))


def test_the_seed_of_a_training_is_that_of_what_is_heard():
    from fairseq.tasks import setup_task

    cfg = compose("hubert_mini_exits", "common.seed=3")
    assert setup_task(cfg.task).cfg.seed == 3


@pytest.mark.parametrize("name", ["daisy_mini", "daisy_base", "daisy_large"])
def test_heads_learn_to_the_last_update(name):
    """fairseq's polynomial_decay gives 0 from total_num_update on, whatever max_update is."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.load(ROOT / "fairseq_plugins" / "config" / f"{name}.yaml")
    cfg.optimization.max_update = 5000
    assert cfg.lr_scheduler.total_num_update == 5000


def test_a_front_end_learns_unless_there_is_a_warm_start(tmp_path):
    """Whatever the size: it is all that the configurations leave open."""
    daisy.save(tiny_model(POST_NORM, num_units=NUM_UNITS), tmp_path / "start.safetensors")
    cfg = compose("hubert_small_exits", "model.exit_layers=[4]", *TINY_NETWORK)
    for start, multiplier in (("", 0.1), (str(tmp_path / "start.safetensors"), 0.0)):
        cfg.model.warm_start = start
        model = build(cfg, NUM_UNITS - 4, "cpu")
        assert model.feature_grad_mult == multiplier
        assert all(p.requires_grad == (multiplier > 0) for p in model.feature_extractor.parameters())
    assert cfg.criterion.feature_weight == 10.0  # where it learns
    cfg.model.feature_grad_mult = 0.5
    assert build(cfg, NUM_UNITS - 4, "cpu").feature_grad_mult == 0.5
