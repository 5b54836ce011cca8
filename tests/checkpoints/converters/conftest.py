"""fairseq's own models, for comparison with the converted ones."""

import argparse

import pytest

from tests.conftest import randomise

UNITS = 9


def fairseq_config(config):
    conv = "[" + ",".join(map(str, config.conv_layers[:1])) + f"] + [{config.conv_layers[1]}] * 4"
    conv += f" + [{config.conv_layers[5]}] * 2"
    model = {
        "_name": "hubert",
        "label_rate": 50.0,
        "encoder_layers": config.num_layers,
        "encoder_embed_dim": config.width,
        "encoder_ffn_embed_dim": config.ffn_width,
        "encoder_attention_heads": config.num_heads,
        "layer_norm_first": config.pre_norm,
        "extractor_mode": "layer_norm" if config.conv_norm == "layer" else "default",
        "conv_feature_layers": conv,
        "conv_bias": config.conv_bias,
        "conv_pos": config.pos_kernel,
        "conv_pos_groups": config.pos_groups,
        "final_dim": 8,
        "logit_temp": 0.2,
    }
    return model, {"_name": "hubert_pretraining", "normalize": config.normalize, "sample_rate": 16000}


@pytest.fixture
def fairseq_model(config):
    """Make fairseq's own HubertModel with random weights, and the file that fairseq would write."""
    hubert = pytest.importorskip("fairseq.models.hubert.hubert", reason="needs fairseq")
    from fairseq.data import Dictionary
    from omegaconf import OmegaConf

    dictionary = Dictionary()
    for unit in range(UNITS - len(dictionary)):
        dictionary.add_symbol(str(unit))
    model_cfg, task_cfg = fairseq_config(config)
    cfg = OmegaConf.merge(OmegaConf.structured(hubert.HubertConfig(label_rate=50.0)), model_cfg)
    model = randomise(hubert.HubertModel(cfg, argparse.Namespace(**task_cfg), [dictionary])).eval()
    state = {
        "args": None,
        "cfg": {"model": model_cfg, "task": task_cfg},
        "model": model.state_dict(),
        "task_state": {"dictionaries": [dictionary]},
    }
    return model, state
