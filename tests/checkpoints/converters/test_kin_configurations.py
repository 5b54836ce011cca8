"""Every field of the configurations of networks like HuBERT, as test_configurations.py does for HuBERT.

Only differences from HuBERT are listed here; a field added by a later version fails a test until it is known.
"""

import importlib
import inspect
import re

import pytest
import torch

from daisy import CheckpointError
from daisy.checkpoints.converters.fairseq_configuration import read_backbone_fields as read_fairseq
from daisy.checkpoints.converters.huggingface import read_backbone_fields as read_huggingface
from daisy.models import BackboneConfig
from tests.checkpoints.converters.test_configurations import (
    FAIRSEQ_HEAD,
    FAIRSEQ_OF_KIN,
    FAIRSEQ_REFUSED,
    FAIRSEQ_SMALL,
    FAIRSEQ_USED,
    FAIRSEQ_WITHOUT_EFFECT,
    FINE_TUNED_USED,
    FINE_TUNED_WITHOUT_EFFECT,
    HF_REFUSED,
    HF_SMALL,
    HF_USED,
    HF_WITHOUT_EFFECT,
    TASK_OF_THE_HEAD,
    TASK_USED,
    TASK_WITHOUT_EFFECT,
    list_fields,
)
from tests.conftest import randomise

# ------------------------------------------------------------------------------------------------------ transformers
HF_KIN = {
    "wav2vec2": ("Wav2Vec2", "wav2vec2.modeling_wav2vec2"),
    "wavlm": ("WavLM", "wavlm.modeling_wavlm"),
    "data2vec-audio": ("Data2VecAudio", "data2vec.modeling_data2vec_audio"),
}
"""Model type to the classes' prefix and their module."""
HF_USED_OF_KIN = {
    ("wavlm", "num_buckets"): (64, {"relative_buckets": 64}),
    ("wavlm", "max_bucket_distance"): (400, {"relative_max_distance": 400}),
    ("data2vec-audio", "num_conv_pos_embeddings"): (3, {"pos_stack": 3}),
    ("data2vec-audio", "conv_pos_kernel_size"): (9, {"pos_kernel": 9}),
}
HF_REFUSED_OF_KIN = {"add_adapter": True}
HF_WITHOUT_EFFECT_OF_KIN = {
    # of an adapter, which is refused
    "adapter_kernel_size": 5,
    "adapter_stride": 3,
    "num_adapter_layers": 2,
    # what pre-training needs, and recognisers of speakers: left out
    "codevector_dim": 16,
    "contrastive_logits_temperature": 0.5,
    "diversity_loss_weight": 0.5,
    "feat_quantizer_dropout": 0.5,
    "num_codevector_groups": 4,
    "num_codevectors_per_group": 10,
    "num_negatives": 7,
    "num_ctc_classes": 9,
    "tdnn_dim": (16, 16),
    "tdnn_kernel": (3, 3),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 16,
    "_name_or_path": "somewhere",
}
HF_NOT_READ = {
    "wav2vec2": {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False},
    "wavlm": {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False},
    "data2vec-audio": {
        "conv_pos_batch_norm": True,
        "feat_proj_layer_norm": False,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "group",
    },
}
"""Options of HuBERT that these networks do not have."""


def small(kind, **changes):
    positions = dict(num_conv_pos_embeddings=2, conv_pos_kernel_size=5) if kind == "data2vec-audio" else {}
    return {**HF_SMALL, **positions, "model_type": kind, **changes}


@pytest.mark.parametrize("kind", HF_KIN)
def test_every_field_of_transformers_is_known(kind):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    prefix, module = HF_KIN[kind]
    fields = set(vars(getattr(transformers, f"{prefix}Config")())) - set(vars(transformers.PretrainedConfig()))
    source = inspect.getsource(importlib.import_module(f"transformers.models.{module}"))
    read = set(re.findall(r"config\.([a-z_]\w*)", source)) | set(re.findall(r'getattr\([\w.]*config, "(\w+)"', source))
    assert {"layer_norm_eps", "add_adapter"} <= read
    of_kin = {field for network, field in HF_USED_OF_KIN if network == kind}
    known = {*HF_USED, *HF_REFUSED, *HF_WITHOUT_EFFECT, *of_kin, *HF_REFUSED_OF_KIN, *HF_WITHOUT_EFFECT_OF_KIN}
    assert fields | read <= known
    assert not (fields | read) & {*HF_NOT_READ[kind]}


@pytest.mark.parametrize(("kind", "field"), HF_USED_OF_KIN)
def test_what_is_used_of_transformers(kind, field):
    value, expected = HF_USED_OF_KIN[kind, field]
    before, after = read_huggingface(small(kind)), read_huggingface(small(kind, **{field: value}))
    assert {key: after[key] for key in after if after[key] != before[key]} == expected
    BackboneConfig.from_dict(after)


@pytest.mark.parametrize("kind", HF_KIN)
def test_what_is_used_and_refused_as_of_hubert(kind):
    of_kin = {field for network, field in HF_USED_OF_KIN if network == kind}
    before = read_huggingface(small(kind))
    for field in HF_USED.keys() - HF_NOT_READ[kind].keys() - of_kin:
        value, name, expected = HF_USED[field]
        after = read_huggingface(small(kind, **{field: value}))
        assert [key for key in after if after[key] != before[key]] == [name]
        assert expected is None or after[name] == expected
    for field, value in (HF_REFUSED | HF_REFUSED_OF_KIN).items():
        with pytest.raises(CheckpointError, match=f"with {field}.* is not supported"):
            read_huggingface(small(kind, **{field: value}))


@torch.no_grad()
def hf_states(kind, weights=None, **changes):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    prefix, _ = HF_KIN[kind]
    options = {key: value for key, value in small(kind, **changes).items() if key not in ("model_type", "return_dict")}
    config = getattr(transformers, f"{prefix}Config")(**options)
    model = randomise(getattr(transformers, f"{prefix}Model")(config)).eval()
    if weights is not None:
        assert {*weights} - {*model.state_dict()} <= {"masked_spec_embed"}
        model.load_state_dict(weights, strict=False)
    waveform = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    return model.state_dict(), model(waveform, output_hidden_states=True, return_dict=True).hidden_states


@pytest.mark.parametrize("kind", HF_KIN)
def test_what_has_no_effect_in_transformers(kind):
    """Those of HuBERT's list at once, then these networks' own one by one."""
    weights, expected = hf_states(kind)
    of_hubert = {key: value for key, value in HF_WITHOUT_EFFECT.items() if value is not None}
    kept_out = {*HF_REFUSED_OF_KIN, "_attn_implementation", "output_attentions"}
    of_hubert = {key: value for key, value in of_hubert.items() if key not in kept_out}
    own = [{key: value} for key, value in HF_WITHOUT_EFFECT_OF_KIN.items()]
    for changed in (of_hubert, HF_NOT_READ[kind], *own):
        _, states = hf_states(kind, weights, **changed)
        for one, other in zip(states, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert read_huggingface(small(kind, **changed)) == read_huggingface(small(kind))


@pytest.mark.parametrize(("kind", "field"), [("wavlm", "max_bucket_distance"), ("data2vec-audio", "layer_norm_eps")])
def test_the_comparison_sees_what_has_an_effect(kind, field):
    weights, expected = hf_states(kind)
    few = {"num_buckets": 16} if kind == "wavlm" else {}
    if few:
        weights, expected = hf_states(kind, **few)
    _, states = hf_states(kind, weights, **few, **{field: 12 if kind == "wavlm" else 0.1})
    assert (states[-1] - expected[-1]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------------- fairseq
FAIRSEQ_REFUSED_OF_KIN = {"quantize_input": True, "crop_seq_to_multiple": 2}
FAIRSEQ_WITHOUT_EFFECT_OF_KIN = {
    # of masking and of choosing what is wrong, in training
    "mask_channel_before": True,
    "mask_dropout": 0.5,
    "require_same_masks": False,
    "num_negatives": 3,
    "negatives_from_everywhere": True,
    "cross_sample_negatives": 4,
    "codebook_negatives": 5,
    "max_positions": 77,
    # of the quantiser, which is left out where it makes targets, and refused where it makes the input
    "latent_vars": 6,
    "latent_groups": 4,
    "latent_dim": 8,
    "quantize_targets": True,
    "quantizer_depth": 2,
    "quantizer_factor": 2,
    "same_quantizer": True,
}
DATA2VEC_WITHOUT_EFFECT = {
    *("average_top_k_layers", "loss_beta", "loss_scale", "min_target_var", "min_pred_var", "max_update"),  # losses
    *("batch_norm_target_layer", "group_norm_target_layer", "instance_norm_target_layer", "instance_norm_targets"),
    *("layer_norm_target_layer", "layer_norm_targets"),  # targets
    *("ema_anneal_end_step", "ema_decay", "ema_end_decay", "ema_layers_only", "ema_transformer_only"),  # the teacher
}
WAVLM_USED = {"relative_position_embedding", "gru_rel_pos", "num_buckets", "max_distance"}
TASK_WITHOUT_EFFECT_OF_KIN = {
    *("binarized_dataset", "inferred_w2v_config", "num_batch_buckets", "precompute_mask_indices", "tpu"),  # batches
    *("text_compression_level", "autoregressive"),  # labels
    *("eval_wer", "eval_wer_config", "eval_wer_post_process", "eval_wer_tokenizer", "eval_bleu", "eval_bleu_args"),
    *("eval_bleu_detok", "eval_bleu_detok_args", "eval_bleu_print_samples", "eval_bleu_remove_bpe"),
    "eval_tokenized_bleu",
}
FINE_TUNED_USED_OF_KIN = {"blank_weight", "blank_mode"}
FINE_TUNED_WITHOUT_EFFECT_OF_KIN = {
    *("autoregressive", "conv_feature_layers", "encoder_embed_dim"),  # copies for other parts; w2v_args counts
    *("ddp_backend", "min_params_to_wrap", "offload_activations"),
}


def test_every_field_of_fairseq_is_known():
    wav2vec2 = pytest.importorskip("fairseq.models.wav2vec.wav2vec2", reason="needs fairseq")
    from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2Vec2Seq2SeqConfig
    from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
    from fairseq.tasks.audio_pretraining import AudioPretrainingConfig

    of_hubert = {*FAIRSEQ_USED, *FAIRSEQ_HEAD, *FAIRSEQ_REFUSED, *FAIRSEQ_WITHOUT_EFFECT, *FAIRSEQ_OF_KIN}
    known = {*of_hubert, *FAIRSEQ_REFUSED_OF_KIN, *FAIRSEQ_WITHOUT_EFFECT_OF_KIN}
    assert list_fields(wav2vec2.Wav2Vec2Config) <= known
    task = {*TASK_USED, *TASK_OF_THE_HEAD, *TASK_WITHOUT_EFFECT, *TASK_WITHOUT_EFFECT_OF_KIN}
    assert list_fields(AudioPretrainingConfig) | list_fields(AudioFinetuningConfig) <= task
    fine_tuned = {*FINE_TUNED_USED, *FINE_TUNED_WITHOUT_EFFECT, *FAIRSEQ_WITHOUT_EFFECT}
    fine_tuned |= {*FINE_TUNED_USED_OF_KIN, *FINE_TUNED_WITHOUT_EFFECT_OF_KIN, *FAIRSEQ_WITHOUT_EFFECT_OF_KIN}
    assert list_fields(Wav2Vec2CtcConfig) | list_fields(Wav2Vec2Seq2SeqConfig) <= fine_tuned


def test_every_field_of_s3prls_copies_is_known():
    pytest.importorskip("s3prl", reason="needs s3prl")
    from s3prl.upstream.data2vec.data2vec_model import Data2VecAudioConfig
    from s3prl.upstream.wavlm.WavLM import WavLMConfig

    of_hubert = {*FAIRSEQ_USED, *FAIRSEQ_HEAD, *FAIRSEQ_REFUSED, *FAIRSEQ_WITHOUT_EFFECT, *FAIRSEQ_OF_KIN}
    of_kin = {*FAIRSEQ_REFUSED_OF_KIN, *FAIRSEQ_WITHOUT_EFFECT_OF_KIN}
    assert list_fields(Data2VecAudioConfig) <= of_hubert | of_kin | DATA2VEC_WITHOUT_EFFECT
    assert set(vars(WavLMConfig())) <= of_hubert | {*TASK_USED} | WAVLM_USED


@pytest.mark.parametrize("field", FAIRSEQ_REFUSED_OF_KIN)
def test_what_is_refused_of_fairseq(field):
    with pytest.raises(CheckpointError, match=rf"wav2vec 2\.0 with {field}=.* is not supported, only"):
        read_fairseq({**FAIRSEQ_SMALL, field: FAIRSEQ_REFUSED_OF_KIN[field]}, {}, "wav2vec 2.0")


def test_what_is_used_of_fairseq():
    before = read_fairseq(FAIRSEQ_SMALL, {})
    after = read_fairseq({**FAIRSEQ_SMALL, "pos_conv_depth": 5, "conv_pos": 95, "conv_pos_batch_norm": True}, {})
    assert {key: after[key] for key in after if after[key] != before.get(key)} == {"pos_stack": 5, "pos_kernel": 19}
    assert read_fairseq({**FAIRSEQ_SMALL, "pos_conv_depth": 8}, {})["pos_kernel"] == 3  # the least that there is
    positions = dict(relative_position_embedding=True, gru_rel_pos=True, num_buckets=64, max_distance=90)
    after = read_fairseq({**FAIRSEQ_SMALL, **positions}, {})
    changed = {key: after[key] for key in after if after[key] != before.get(key)}
    assert changed == {"relative_buckets": 64, "relative_max_distance": 90}
    assert read_fairseq({**FAIRSEQ_SMALL, **positions, "relative_position_embedding": False}, {}) == before


@torch.no_grad()
def fairseq_states(weights=None, **changes):
    wav2vec2 = pytest.importorskip("fairseq.models.wav2vec.wav2vec2", reason="needs fairseq")
    model = randomise(wav2vec2.Wav2Vec2Model(wav2vec2.Wav2Vec2Config(**{**FAIRSEQ_SMALL, **changes}))).eval()
    own = model.state_dict()
    if weights is not None:
        own |= {key: value for key, value in weights.items() if not key.startswith(("quantizer", "project_q", "final"))}
        model.load_state_dict(own)
    waveform = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    result = model.extract_features(waveform, None)
    return own, [*(states for states, *_ in result["layer_results"]), result["x"]]


@pytest.mark.parametrize("field", FAIRSEQ_WITHOUT_EFFECT_OF_KIN)
def test_what_has_no_effect_in_fairseq(field):
    weights, expected = fairseq_states(quantize_targets=True, latent_vars=4)
    changed = {field: FAIRSEQ_WITHOUT_EFFECT_OF_KIN[field]}
    _, states = fairseq_states(weights, **{"quantize_targets": True, "latent_vars": 4, **changed})
    for one, other in zip(states, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert read_fairseq({**FAIRSEQ_SMALL, **changed}, {}) == read_fairseq(FAIRSEQ_SMALL, {})
