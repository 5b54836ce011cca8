"""Every field of transformers' and fairseq's configurations of a HuBERT: used, refused, or without effect at inference.

The fields are listed from the classes themselves, so a field added by a later version fails a test until it is known.
"""

import argparse
import dataclasses
import inspect
import re

import pytest
import torch

from daisy import CheckpointError
from daisy.checkpoints.converters.fairseq_configuration import read_backbone_fields as read_fairseq
from daisy.checkpoints.converters.huggingface import read_backbone_fields as read_huggingface
from daisy.models import BackboneConfig
from tests.conftest import randomise

CONV = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"

# ------------------------------------------------------------------------------------------------------ transformers
HF_USED = {
    "num_hidden_layers": (3, "num_layers", 3),
    "hidden_size": (48, "width", 48),
    "intermediate_size": (40, "ffn_width", 40),
    "num_attention_heads": (2, "num_heads", 2),
    "do_stable_layer_norm": (True, "pre_norm", True),
    "conv_dim": (
        [8] * 7,
        "conv_layers",
        [(8, k, s) for k, s in zip((10, 3, 3, 3, 3, 2, 2), (5, *[2] * 6), strict=True)],
    ),
    "conv_kernel": ([10, 3, 3, 3, 3, 2, 3], "conv_layers", None),
    "conv_stride": ([5, 2, 2, 2, 2, 2, 1], "conv_layers", None),
    "feat_extract_norm": ("layer", "conv_norm", "layer"),
    "conv_bias": (True, "conv_bias", True),
    "num_conv_pos_embeddings": (15, "pos_kernel", 15),
    "num_conv_pos_embedding_groups": (2, "pos_groups", 2),
    "conv_pos_batch_norm": (True, "pos_batch_norm", True),
    "feat_proj_layer_norm": (False, "projection_norm", False),
    "layer_norm_eps": (1e-3, "layer_norm_eps", 1e-3),
}
"""Field to another value, and what it does to which field of ours; None: what the same value does to theirs."""
HF_REFUSED = {
    "hidden_act": "relu",
    "feat_extract_activation": "gelu_new",
    "adapter_attn_dim": 16,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"load_in_8bit": True},
}
HF_WITHOUT_EFFECT = {
    # dropout, layer drop and masking: of training
    "hidden_dropout": 0.5,
    "activation_dropout": 0.5,
    "attention_dropout": 0.5,
    "feat_proj_dropout": 0.5,
    "final_dropout": 0.5,
    "layerdrop": 0.9,
    "apply_spec_augment": False,
    "mask_time_prob": 0.9,
    "mask_time_length": 2,
    "mask_time_min_masks": 5,
    "mask_feature_prob": 0.9,
    "mask_feature_length": 2,
    "mask_feature_min_masks": 3,
    "initializer_range": 1.0,
    # losses and outputs of fine-tuned models, which are left out
    "ctc_loss_reduction": "mean",
    "ctc_zero_infinity": True,
    "vocab_size": 7,
    "use_weighted_layer_sum": True,
    "classifier_proj_size": 9,
    "num_labels": 4,
    "add_adapter": True,
    "output_hidden_size": 64,
    "pad_token_id": 3,
    "bos_token_id": 4,  # of this configuration's own from transformers 5 on
    "eos_token_id": 5,
    # how attention is computed, and what a call returns
    "_attn_implementation": "eager",
    "output_attentions": False,
    "output_hidden_states": True,
    "return_dict": True,
    "use_return_dict": None,
    "proj_codevector_dim": None,  # named in a docstring
    "num_feat_extract_layers": None,  # made from conv_dim
}
"""Field to another value; None where there is nothing to set."""
HF_SMALL = dict(
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    conv_dim=[16] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def test_every_field_of_transformers_is_known():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.hubert import modeling_hubert

    fields = set(vars(transformers.HubertConfig())) - set(vars(transformers.PretrainedConfig()))
    source = inspect.getsource(modeling_hubert)
    read = set(re.findall(r"config\.([a-z_]\w*)", source)) | set(re.findall(r'getattr\([\w.]*config, "(\w+)"', source))
    assert {"layer_norm_eps", "adapter_attn_dim"} <= read
    known = [HF_USED, HF_REFUSED, HF_WITHOUT_EFFECT]
    assert fields | read <= set().union(*known)
    assert sum(map(len, known)) == len(set().union(*known))


@pytest.mark.parametrize("field", HF_USED)
def test_what_is_used_of_transformers(field):
    value, name, expected = HF_USED[field]
    before, after = read_huggingface(HF_SMALL), read_huggingface({**HF_SMALL, field: value})
    assert [key for key in after if after[key] != before[key]] == [name]
    assert expected is None or after[name] == expected
    BackboneConfig.from_dict(after)


@pytest.mark.parametrize("field", HF_REFUSED)
def test_what_is_refused_of_transformers(field):
    with pytest.raises(CheckpointError, match=f"HuBERT with {field}.* is not supported"):
        read_huggingface({**HF_SMALL, field: HF_REFUSED[field]})
    read_huggingface({**HF_SMALL, field: None if field not in ("hidden_act", "feat_extract_activation") else "gelu"})


def test_values_that_no_hubert_of_transformers_can_have():
    with pytest.raises(CheckpointError, match="feat_extract_norm must be group or layer, found 'batch'"):
        read_huggingface({**HF_SMALL, "feat_extract_norm": "batch"})
    with pytest.raises(CheckpointError, match="conv_dim has 7 values, conv_kernel has 6 values, conv_stride has 7"):
        read_huggingface({**HF_SMALL, "conv_kernel": [10, 3, 3, 3, 3, 2]})


@torch.no_grad()
def hf_states(weights=None, **changes):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    changes = {{"_attn_implementation": "attn_implementation"}.get(key, key): value for key, value in changes.items()}
    model = randomise(transformers.HubertModel(transformers.HubertConfig(**{**HF_SMALL, **changes}))).eval()
    if weights is not None:
        assert {*weights} - {*model.state_dict()} <= {"masked_spec_embed"}
        model.load_state_dict(weights, strict=False)
    waveform = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    return model.state_dict(), model(waveform, output_hidden_states=True, return_dict=True).hidden_states


@pytest.fixture(scope="module")
def hf_default():
    return hf_states()


@pytest.mark.parametrize("field", [field for field, value in HF_WITHOUT_EFFECT.items() if value is not None])
def test_what_has_no_effect_in_transformers(field, hf_default):
    weights, expected = hf_default
    changed = {field: HF_WITHOUT_EFFECT[field]}
    _, states = hf_states(weights, **changed)
    for one, other in zip(states, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert read_huggingface({**HF_SMALL, **changed}) == read_huggingface(HF_SMALL)


@pytest.mark.parametrize("field", ["layer_norm_eps", "do_stable_layer_norm", "feat_proj_layer_norm", "hidden_act"])
def test_the_comparison_sees_what_has_an_effect(field, hf_default):
    weights, expected = hf_default
    values = {**{name: value for name, (value, *_) in HF_USED.items()}, **HF_REFUSED}
    if field == "feat_proj_layer_norm":
        weights = {key: value for key, value in weights.items() if "feature_projection.layer_norm" not in key}
    _, states = hf_states(weights, **{field: 0.1 if field == "layer_norm_eps" else values[field]})
    assert (states[-1] - expected[-1]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------------- fairseq
FAIRSEQ_USED = {
    "encoder_layers": (3, "num_layers", 3),
    "encoder_embed_dim": (48, "width", 48),
    "encoder_ffn_embed_dim": (40, "ffn_width", 40),
    "encoder_attention_heads": (2, "num_heads", 2),
    "layer_norm_first": (True, "pre_norm", True),
    "conv_feature_layers": ("[(8,10,5)]", "conv_layers", ((8, 10, 5),)),
    "extractor_mode": ("layer_norm", "conv_norm", "layer"),
    "conv_bias": (True, "conv_bias", True),
    "conv_pos": (15, "pos_kernel", 15),
    "conv_pos_groups": (2, "pos_groups", 2),
    "conv_pos_batch_norm": (True, "pos_batch_norm", True),  # of fairseq's main branch
}
FAIRSEQ_HEAD = {"final_dim", "untie_final_proj", "logit_temp", "target_glu"}
"""Of the prediction head, whose tensors tell most of it: tests of test_label_sets.py."""
FAIRSEQ_REFUSED = {"activation_fn": "relu", "layer_type": "conformer"}
FAIRSEQ_OF_KIN = {"pos_conv_depth"}
"""Used of other networks than HuBERT: test_kin_configurations.py."""
FAIRSEQ_WITHOUT_EFFECT = {
    "_name": None,
    "label_rate": 25.0,
    # dropout, layer drop and masking: of training
    "dropout": 0.5,
    "attention_dropout": 0.5,
    "activation_dropout": 0.5,
    "encoder_layerdrop": 0.9,
    "dropout_input": 0.5,
    "dropout_features": 0.5,
    "feature_grad_mult": 0.0,
    "mask_length": 2,
    "mask_prob": 0.1,
    "mask_selection": "uniform",
    "mask_other": 1.0,
    "no_mask_overlap": True,
    "mask_min_space": 3,
    "mask_channel_length": 2,
    "mask_channel_prob": 0.5,
    "mask_channel_selection": "uniform",
    "mask_channel_other": 1.0,
    "no_mask_channel_overlap": True,
    "mask_channel_min_space": 3,
    # of losses, and nothing
    "latent_temp": (1.0, 1.0, 1.0),
    "skip_masked": True,
    "skip_nomask": True,
    # how it is computed: what is added to a batch is masked, and states are those without
    "checkpoint_activations": True,
    "required_seq_len_multiple": 16,
    "fp16": True,
    # of conformers, which are refused
    "depthwise_conv_kernel_size": 7,
    "attn_type": "espnet",
    "pos_enc_type": "rope",
}
TASK_USED = {"sample_rate": (8000, "sample_rate", 8000), "normalize": (True, "normalize", True)}
TASK_OF_THE_HEAD = {"labels"}
TASK_WITHOUT_EFFECT = {
    *("_name", "data", "fine_tuning", "label_dir", "label_rate"),  # where the labels are
    *("enable_padding", "max_keep_size", "max_sample_size", "min_sample_size", "random_crop", "pad_audio"),  # batches
    "single_target",
}
FINE_TUNED_USED = {"w2v_args", "normalize"}
"""The first is the configuration that counts; the second has the last word: test_other_forms_of_fairseq."""
FINE_TUNED_WITHOUT_EFFECT = {
    *("_name", "w2v_path", "no_pretrained_weights", "data", "freeze_finetune_updates", "apply_mask", "layerdrop"),
    *("final_dropout", "max_target_positions", "no_token_positional_embeddings", "share_decoder_input_output_embed"),
    *("decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_layers", "decoder_layerdrop", "decoder_attention_heads"),
    *("decoder_learned_pos", "decoder_normalize_before", "decoder_dropout", "decoder_attention_dropout"),
    "decoder_activation_dropout",
}
"""The decoder is left out; the rest is of training."""
FAIRSEQ_SMALL = dict(
    encoder_layers=2,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=4,
    conv_feature_layers=CONV,
    conv_pos=16,
    conv_pos_groups=4,
)


def list_fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_every_field_of_fairseq_is_known():
    hubert = pytest.importorskip("fairseq.models.hubert.hubert", reason="needs fairseq")
    from fairseq.models.hubert.hubert_asr import HubertCtcConfig, HubertSeq2SeqConfig
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    known = [FAIRSEQ_USED, FAIRSEQ_HEAD, FAIRSEQ_REFUSED, FAIRSEQ_WITHOUT_EFFECT, FAIRSEQ_OF_KIN]
    assert list_fields(hubert.HubertConfig) <= set().union(*known)
    assert sum(map(len, known)) == len(set().union(*known))
    task = set().union(TASK_USED, TASK_OF_THE_HEAD, TASK_WITHOUT_EFFECT)
    assert list_fields(HubertPretrainingConfig) <= task
    inner = set(FAIRSEQ_WITHOUT_EFFECT)  # a fine-tuned model gives some of training's anew
    fine_tuned = FINE_TUNED_USED | FINE_TUNED_WITHOUT_EFFECT | inner
    assert list_fields(HubertCtcConfig) | list_fields(HubertSeq2SeqConfig) <= fine_tuned


@pytest.mark.parametrize("field", [*FAIRSEQ_USED, *TASK_USED])
def test_what_is_used_of_fairseq(field):
    value, name, expected = {**FAIRSEQ_USED, **TASK_USED}[field]
    changed = {field: value}
    before = read_fairseq(FAIRSEQ_SMALL, {})
    after = (
        read_fairseq({**FAIRSEQ_SMALL, **changed}, {})
        if field in FAIRSEQ_USED
        else read_fairseq(FAIRSEQ_SMALL, changed)
    )
    assert [key for key in after if after[key] != before[key]] == [name]
    assert after[name] == expected


@pytest.mark.parametrize("field", FAIRSEQ_REFUSED)
def test_what_is_refused_of_fairseq(field):
    with pytest.raises(CheckpointError, match=f"HuBERT with {field}={FAIRSEQ_REFUSED[field]} is not supported, only"):
        read_fairseq({**FAIRSEQ_SMALL, field: FAIRSEQ_REFUSED[field]}, {})


def test_values_that_no_hubert_of_fairseq_can_have():
    with pytest.raises(CheckpointError, match="extractor_mode must be one of default, layer_norm, found 'batch'"):
        read_fairseq({**FAIRSEQ_SMALL, "extractor_mode": "batch"}, {})


@torch.no_grad()
def fairseq_states(weights=None, **changes):
    hubert = pytest.importorskip("fairseq.models.hubert.hubert", reason="needs fairseq")
    cfg = hubert.HubertConfig(**{**FAIRSEQ_SMALL, "label_rate": 50.0, **changes})
    task = argparse.Namespace(sample_rate=16000)
    model = randomise(hubert.HubertModel(cfg, task, [["a", "b"]])).eval()
    if weights is not None:
        model.load_state_dict(weights)
    waveform = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    layers = [model.extract_features(waveform, output_layer=n)[0] for n in range(1, cfg.encoder_layers + 1)]
    return model.state_dict(), [*layers, model.extract_features(waveform)[0]]


@pytest.fixture(scope="module")
def fairseq_default():
    return fairseq_states()


@pytest.mark.parametrize("field", [field for field, value in FAIRSEQ_WITHOUT_EFFECT.items() if value is not None])
def test_what_has_no_effect_in_fairseq(field, fairseq_default):
    weights, expected = fairseq_default
    changed = {field: FAIRSEQ_WITHOUT_EFFECT[field]}
    _, states = fairseq_states(weights, **changed)
    for one, other in zip(states, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert read_fairseq({**FAIRSEQ_SMALL, **changed}, {}) == read_fairseq(FAIRSEQ_SMALL, {})
