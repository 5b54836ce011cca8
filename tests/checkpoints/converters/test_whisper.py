"""transformers' Whisper encoder: its spectra, its states, alone and in batches, and refused configurations."""

import inspect
import json
import re

import pytest
import torch

import daisy
from daisy import AudioError, CheckpointError, HeadsConfig, UsageError, policies
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.huggingface_whisper import read_backbone_fields
from daisy.extraction import windows
from daisy.models import ExitHeads, WhisperConfig
from tests.conftest import randomise

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("torchaudio", reason="needs torchaudio")
SMALL = dict(
    encoder_layers=3,
    d_model=32,
    encoder_ffn_dim=48,
    encoder_attention_heads=4,
    decoder_layers=1,
    decoder_attention_heads=4,
    decoder_ffn_dim=8,
    vocab_size=20,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    max_source_positions=150,
)
"""Three seconds a window."""


def make(folder, kind=transformers.WhisperModel, **changes):
    """A random model and its feature extractor, saved in a folder; the encoder."""
    config = transformers.WhisperConfig(**{**SMALL, **changes})
    model = randomise(kind(config)).eval()
    seconds = config.max_source_positions // 50
    extractor = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)
    for part in (model, extractor):
        part.save_pretrained(folder)
    return getattr(model, "model", model).encoder, extractor


@torch.no_grad()
def their_states(encoder, extractor, waveform):
    features = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    states = encoder(features, output_hidden_states=True).hidden_states
    return torch.stack([layer[0, : len(waveform) // 320] for layer in states])


def assert_parity(ours, theirs):
    assert ours.shape == theirs.shape
    for layer, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert (one - other).abs().max() < 1e-4 * other.std(), f"layer {layer}"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (transformers.WhisperModel, {"max_source_positions": 1500}),
        (transformers.WhisperModel, {"num_mel_bins": 128}),
        (transformers.WhisperForConditionalGeneration, {}),
    ],
    ids=["thirty seconds", "128 bands", "with its output layer"],
)
def test_states_are_those_of_transformers(kind, changes, waveforms, tmp_path):
    encoder, extractor = make(tmp_path / "hf", kind, **changes)
    ours = convert(tmp_path / "hf")
    assert ours.provenance["network"] == "Whisper's encoder"
    assert "decoder" in ours.provenance["left_out"]
    assert "assumed" not in ours.provenance
    daisy.save(ours, tmp_path / "ours.safetensors")
    ours = daisy.load(tmp_path / "ours.safetensors")
    waveforms = waveforms[2:6:3] if ours.backbone.config.window_frames == 1500 else waveforms
    out = ours.encoder("never")(waveforms)
    for waveform, together in zip(waveforms, out.states, strict=True):
        expected = their_states(encoder, extractor, waveform)
        assert_parity(together, expected)
        assert_parity(ours.encoder("never")([waveform]).states[0], expected)


@pytest.fixture
def model(tmp_path):
    make(tmp_path / "hf")
    model = convert(tmp_path / "hf")
    model.heads = randomise(ExitHeads(HeadsConfig(num_layers=3, width=32, num_units=7)), 1)
    return model


def test_who_leaves_does_not_change_who_stays(model, waveforms):
    full = model.encoder("never", scores=["entropy"])(waveforms)
    threshold = float(full.scores["entropy"][:, 0].sort().values[3:5].mean())
    out = model.encoder(policies.Entropy(threshold=threshold))(waveforms)
    assert 0 < (out.exit_layer == 1).sum() < len(waveforms)
    for states, whole in zip(out.states, full.states, strict=True):
        assert (states - whole[: len(states)]).abs().max() < 1e-5 * whole.std()
    alone = model.encoder(policies.Entropy(threshold=threshold))([waveforms[5]])
    assert alone.exit_layer[0] == out.exit_layer[5]


def test_a_shallower_model(model, waveforms, tmp_path):
    shallow = daisy.checkpoints.truncate(model, 2)
    daisy.save(shallow, tmp_path / "shallow.safetensors")
    states = daisy.load(tmp_path / "shallow.safetensors").encoder("never")([waveforms[4]]).states[0]
    torch.testing.assert_close(states, model.encoder("never")([waveforms[4]]).states[0][:3], atol=1e-5, rtol=1e-5)


def test_longer_recordings_go_in_windows(model):
    waveform = 0.1 * torch.randn(5 * 16000, generator=torch.Generator().manual_seed(0))
    encoder = model.encoder("never", keep="last")
    with pytest.raises(
        AudioError, match=r"lasts 5\.0 s, more than the 3 s that Whisper hears at once; pass window_sec"
    ):
        encoder([waveform[:100], waveform][1:])
    read = lambda start, stop: waveform[start:stop]  # noqa: E731
    pieces = list(windows.run(encoder, read, len(waveform), window_sec=3.0, context_sec=0.5))
    assert sum(len(piece.states) for piece in pieces) == 250
    assert len(pieces[0].states) == 100
    first = encoder([waveform[: 125 * 320]]).states[0][-1]  # half a second of context behind it
    torch.testing.assert_close(pieces[0].states, first[:100], atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match=r"a window of 4 s, more than the 3 s that Whisper hears at once"):
        windows.to_frames(4.0, 0.5, model.backbone.config)


def test_its_cost_does_not_depend_on_the_length(model):
    from daisy.calibration import cost

    config = model.backbone.config
    constant, per_frame, per_pair = cost.count_layer_macs(config)
    assert (per_frame, per_pair) == (0, 0)
    assert constant == 150 * (4 * 32**2 + 2 * 32 * 48) + 150**2 * 2 * 32
    assert cost.count_layer_macs(config, model.heads.config) == (constant, 32 * 7, 0)
    assert cost.count_front_end_macs(config)[1:] == (0, 0)


def test_it_computes_in_float32_by_plain_modules(model):
    with pytest.raises(UsageError, match=r"plain modules \(as all of Whisper\) compute in float32, not in bfloat16"):
        model.encoder("never", dtype="bfloat16")
    with pytest.raises(CheckpointError, match="this checkpoint's backbone is Whisper, and a HuBERT is wanted"):
        _ = model.hubert
    assert "Whisper's encoder, 16000 Hz" in repr(model)


USED = {
    "encoder_layers": (2, "num_layers"),
    "d_model": (64, "width"),
    "encoder_ffn_dim": (40, "ffn_width"),
    "encoder_attention_heads": (2, "num_heads"),
    "num_mel_bins": (128, "num_mels"),
    "max_source_positions": (1500, "window_frames"),
}
REFUSED = {"activation_function": "relu", "pruned_heads": {"0": [1]}, "quantization_config": {"load_in_8bit": True}}
WITHOUT_EFFECT = {
    *("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "init_std", "apply_spec_augment"),
    *("mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length"),
    "mask_feature_min_masks",
    *("num_hidden_layers", "hidden_size"),  # copies of encoder_layers, which the encoder does not read, and of d_model
    "scale_embedding",  # of the decoder: the encoder makes a number of it, and reads it nowhere
    *("use_weighted_layer_sum", "classifier_proj_size", "num_labels"),  # of what stands on top
    *("median_filter_width", "alignment_heads", "_attn_implementation", "output_attentions", "output_hidden_states"),
    *("use_return_dict", "use_cache", "is_encoder_decoder", "begin_suppress_tokens", "torch_dtype"),
    *("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("decoder_layers", "decoder_layerdrop", "decoder_attention_heads", "decoder_ffn_dim", "max_target_positions"),
    *("id2label", "n_positions"),  # of classifiers; named in a docstring
}


def test_every_field_of_transformers_is_known():
    from transformers.models.whisper import modeling_whisper

    fields = set(vars(transformers.WhisperConfig())) - set(vars(transformers.PretrainedConfig()))
    source = inspect.getsource(modeling_whisper)
    read = set(re.findall(r"config\.([a-z_]\w*)", source))
    assert (fields | read) - {*USED, *REFUSED, *WITHOUT_EFFECT} == set()
    encoder = inspect.getsource(modeling_whisper.WhisperEncoder)
    assert re.findall(r"embed_scale|num_hidden_layers", encoder.partition("def forward")[2]) == []


@pytest.mark.parametrize("field", USED)
def test_what_is_used(field):
    value, name = USED[field]
    before, after = read_backbone_fields(SMALL), read_backbone_fields({**SMALL, field: value})
    assert {key: after[key] for key in after if after[key] != before[key]} == {name: value}
    WhisperConfig.from_dict(after)


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_refused(field):
    with pytest.raises(CheckpointError, match=f"Whisper with {field}.* is not supported"):
        read_backbone_fields({**SMALL, field: REFUSED[field]})


@pytest.mark.parametrize("change", [{"hop_length": 80}, {"n_fft": 512}, {"dither": 0.1}, {"feature_size": 40}])
def test_other_spectra_are_refused(change, tmp_path):
    make(tmp_path / "hf")
    path = tmp_path / "hf" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    ((option, value),) = change.items()
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: Whisper with {option}={value} is not"):
        convert(tmp_path / "hf")
    path.unlink()
    assert "there is no preprocessor_config.json" in convert(tmp_path / "hf").provenance["assumed"]


def test_shapes_that_no_whisper_has():
    for changes, message in (
        ({"width": 30}, "width 30 is not a multiple of num_heads 8"),
        ({"sample_rate": 8000}, "sample_rate must be 16000, found 8000"),
        ({"num_mels": 0}, "num_mels must be a whole number, at least 1, found 0"),
        ({"speed": 2}, "unknown fields: speed; a later daisy may know them"),
    ):
        with pytest.raises(CheckpointError, match=message):
            WhisperConfig.from_dict({**WhisperConfig().to_dict(), **changes})
