"""Hugging Face's HuBERTs in their usual forms, against transformers' own states; and the folders that contain them."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

import daisy
from daisy import CheckpointError
from daisy.checkpoints.converters import convert
from tests.conftest import POST_NORM, PRE_NORM, randomise

transformers = pytest.importorskip("transformers", reason="needs transformers")

SMALL = dict(
    num_hidden_layers=POST_NORM.num_layers,
    hidden_size=POST_NORM.width,
    intermediate_size=POST_NORM.ffn_width,
    num_attention_heads=POST_NORM.num_heads,
    conv_dim=[16] * 7,
    num_conv_pos_embeddings=POST_NORM.pos_kernel,
    num_conv_pos_embedding_groups=POST_NORM.pos_groups,
)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
KINDS = {
    "mHuBERT-25Hz": dict(
        conv_pos_batch_norm=True,
        conv_dim=[16] * 8,
        conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2],
        conv_stride=[5, 2, 2, 2, 2, 2, 2, 2],
    ),
    "mHuBERT-147": dict(do_normalize=True),
    "DistilHuBERT": dict(feat_proj_layer_norm=False, num_hidden_layers=2),
    "X-Large": dict(num_hidden_layers=48, do_normalize=True, **LARGE),
    "epsilon": dict(layer_norm_eps=0.05),
    "epsilon, pre-norm": dict(layer_norm_eps=0.05, **LARGE),
    "8 kHz": dict(sampling_rate=8000),
    "pre-norm without projection norm, batch norm": dict(feat_proj_layer_norm=False, conv_pos_batch_norm=True, **LARGE),
}


class ContentVec(transformers.HubertModel):
    """As its published form: the pre-training's projection stands beside the network."""

    def __init__(self, config):
        super().__init__(config)
        self.final_proj = torch.nn.Linear(config.hidden_size, 24)


def make(folder, kind=transformers.HubertModel, do_normalize=False, sampling_rate=16000, saving=(), **config):
    """A random model and its feature extractor, and the folder that they are saved in."""
    model = randomise(kind(transformers.HubertConfig(**{**SMALL, **config}))).eval()
    model.save_pretrained(folder, **dict(saving))
    extractor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=do_normalize, sampling_rate=sampling_rate, return_attention_mask=True
    )
    extractor.save_pretrained(folder)
    return getattr(model, "hubert", model), extractor


@torch.no_grad()
def their_states(model, extractor, waveforms):
    """Layers 0 to L of each utterance, from one padded batch."""
    inputs = extractor(
        [waveform.numpy() for waveform in waveforms],
        sampling_rate=extractor.sampling_rate,
        padding=True,
        return_tensors="pt",
    )
    mask = inputs.attention_mask if len(waveforms) > 1 else None
    out = model(inputs.input_values, attention_mask=mask, output_hidden_states=True)
    # The last of hidden_states is before a pre-norm model's final norm from transformers 5 on, and behind it before.
    layers = torch.stack([*out.hidden_states[:-1], out.last_hidden_state], dim=1)
    counts = model._get_feat_extract_output_lengths(torch.tensor([len(waveform) for waveform in waveforms]))
    return [states[:, :count] for states, count in zip(layers, counts.tolist(), strict=True)]


def assert_parity(ours, theirs):
    for states, expected in zip(ours, theirs, strict=True):
        assert states.shape == expected.shape
        for layer, (one, other) in enumerate(zip(states, expected, strict=True)):
            assert (one - other).abs().max() < 1e-4 * other.std(), f"layer {layer}"


@pytest.mark.parametrize("name", KINDS)
def test_states_are_those_of_transformers(name, waveforms, tmp_path):
    """One by one, as loud as they are and at -60 dBFS, on the packed runtime and by the plain modules."""
    model, extractor = make(tmp_path / "hf", **KINDS[name])
    ours = convert(tmp_path / "hf")
    assert "assumed" not in ours.provenance
    assert ours.backbone.config.sample_rate == KINDS[name].get("sampling_rate", 16000)
    daisy.save(ours, tmp_path / "ours.safetensors")
    ours = daisy.load(tmp_path / "ours.safetensors")
    for waveform in (waveforms[4], 1e-3 * waveforms[4] / waveforms[4].std()):
        expected = their_states(model, extractor, [waveform])
        for fast in (True, False):
            assert_parity(ours.encoder("never", fast=fast)([waveform]).states, expected)


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("config", [{}, dict(feat_proj_layer_norm=False), dict(layer_norm_eps=0.05)], ids=str)
def test_padded_batches_are_those_of_transformers(config, do_normalize, waveforms, tmp_path):
    """Of models without group norm or batch norm, where transformers' own padding does not show."""
    model, extractor = make(tmp_path / "hf", do_normalize=do_normalize, **LARGE, **config)
    ours = convert(tmp_path / "hf")
    expected = their_states(model, extractor, waveforms)
    for fast in (True, False):
        assert_parity(ours.encoder("never", fast=fast)(waveforms).states, expected)


def test_batch_norm_in_bfloat16_is_nearly_that_of_transformers(waveforms, tmp_path):
    model, extractor = make(tmp_path / "hf", **KINDS["mHuBERT-25Hz"])
    ours = convert(tmp_path / "hf").encoder("never", dtype="bfloat16")
    for waveform in waveforms[3:]:
        states, expected = ours([waveform]).states[0], their_states(model, extractor, [waveform])[0]
        assert torch.nn.functional.cosine_similarity(states.float(), expected, dim=-1).mean() > 0.9995


@pytest.mark.parametrize(
    ("kind", "config", "left_out"),
    [
        (ContentVec, {}, "final_proj"),
        (transformers.HubertForCTC, dict(vocab_size=5), "lm_head"),
        (transformers.HubertForSequenceClassification, dict(use_weighted_layer_sum=True), "layer_weights"),
    ],
    ids=["ContentVec", "CTC", "classifier"],
)
def test_what_stands_on_the_network_is_left_out_by_name(kind, config, left_out, waveforms, tmp_path):
    model, extractor = make(tmp_path / "hf", kind, **config)
    ours = convert(tmp_path / "hf")
    assert left_out in ours.provenance["left_out"].split(", ")
    assert_parity(ours.encoder("never")([waveforms[4]]).states, their_states(model, extractor, [waveforms[4]]))


def test_a_head_of_any_name_is_left_out_where_the_networks_names_have_a_prefix(tmp_path):
    class Own(transformers.HubertForCTC):
        def __init__(self, config):
            super().__init__(config)
            self.my_head = torch.nn.Linear(2, 2)

    make(tmp_path / "hf", Own, vocab_size=5)
    assert convert(tmp_path / "hf").provenance["left_out"] == "lm_head, my_head"

    class Unprefixed(transformers.HubertModel):
        def __init__(self, config):
            super().__init__(config)
            self.my_head = torch.nn.Linear(2, 2)

    make(tmp_path / "other", Unprefixed)
    with pytest.raises(CheckpointError, match=r"no place in a HuBERT: my_head\.bias, my_head\.weight"):
        convert(tmp_path / "other")


def write_as_pickles(folder):
    """Turn shards of safetensors into those of older models, which transformers 5 no longer writes."""
    for path in folder.glob("model-*.safetensors"):
        torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
        path.unlink()
    index = folder / "model.safetensors.index.json"
    text = re.sub(r'"(model-[^"]*)\.safetensors"', r'"pytorch_\1.bin"', index.read_text())
    (folder / "pytorch_model.bin.index.json").write_text(text)
    index.unlink()


@pytest.mark.parametrize("is_last", [True, False])
def test_a_second_encoder_is_left_out_where_the_networks_names_have_a_prefix(is_last, waveforms, tmp_path):
    """As a conversion of voices may hold one: its weights have the names that HuBERT's have without the prefix."""
    model, extractor = make(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    network = {f"hubert.{name}": weight for name, weight in model.state_dict().items()}
    second = {name: weight + 1 for name, weight in model.state_dict().items()}
    parts = (network, second) if is_last else (second, network)
    torch.save({**parts[0], **parts[1]}, tmp_path / "hf" / "pytorch_model.bin")
    ours = convert(tmp_path / "hf")
    assert_parity(ours.encoder("never")([waveforms[4]]).states, their_states(model, extractor, [waveforms[4]]))
    assert "feature_projection.projection" in ours.provenance["left_out"] or "more" in ours.provenance["left_out"]


def test_one_weight_under_two_names_is_refused(tmp_path):
    model, _ = make(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    state, name = model.state_dict(), "encoder.pos_conv_embed.conv."
    state[name + "weight_g"] = state[name + "parametrizations.weight.original0"] + 1
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"one weight twice, as \S+original0 and as \S+weight_g: which counts"):
        convert(tmp_path / "hf")


@pytest.mark.parametrize("safe", [True, False])
def test_shards(safe, waveforms, tmp_path):
    model, extractor = make(tmp_path / "hf", saving={"max_shard_size": "20KB"})
    if not safe:
        write_as_pickles(tmp_path / "hf")
    ending = "safetensors" if safe else "bin"
    shards = sorted((tmp_path / "hf").glob(f"*-of-*.{ending}"))
    assert len(shards) > 2
    ours = convert(tmp_path / "hf")
    assert_parity(ours.encoder("never")([waveforms[4]]).states, their_states(model, extractor, [waveforms[4]]))
    (index,) = (tmp_path / "hf").glob("*.index.json")
    places = json.loads(index.read_text())
    places["weight_map"]["encoder.layers.9.x"] = shards[0].name
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointError, match=r"index\.json lists weights that no file holds: encoder\.layers\.9\.x"):
        convert(tmp_path / "hf")
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name}: no such file"):
        convert(tmp_path / "hf")
    places["weight_map"]["encoder.layers.9.x"] = "../elsewhere.bin"
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointError, match=r"has no weight_map of weights to files of the folder"):
        convert(tmp_path / "hf")


@pytest.fixture
def cache(tmp_path):
    """A folder as huggingface_hub keeps it: links into blobs, and the name of the newest snapshot."""
    make(tmp_path / "plain")
    root = tmp_path / "hub" / "models--somebody--tiny-hubert"
    snapshot = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate((tmp_path / "plain").iterdir()):
        shutil.copy(file, root / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return root, snapshot


def test_the_hubs_cache(cache, tmp_path):
    root, snapshot = cache
    weights = convert(tmp_path / "plain").state_dict()
    for folder in (snapshot, root, root / "snapshots"):
        ours = convert(folder)
        assert all(torch.equal(weight, weights[name]) for name, weight in ours.state_dict().items())
        assert ours.provenance["converted_from"] == "somebody/tiny-hubert, 0123456789ab"
    older = root / "snapshots" / "aaaa"
    shutil.copytree(snapshot, older, symlinks=True)
    assert convert(root).provenance["converted_from"].endswith("0123456789ab")
    (root / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match=r"the hub's cache with 2 snapshots: give one of snapshots/"):
        convert(root)
    shutil.rmtree(older)
    assert convert(root).provenance["converted_from"].endswith("0123456789ab")


def test_a_cache_whose_files_are_gone(cache):
    root, snapshot = cache
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to \S+blobs/\d, which is not there"):
        convert(root)
    (snapshot / "config.json").resolve().unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is a link to \S+blobs/\d, which is not there"):
        convert(snapshot)


def test_what_the_preprocessor_tells(tmp_path):
    make(tmp_path / "hf", do_normalize=True, sampling_rate=8000)
    folder, told = tmp_path / "hf", lambda: convert(tmp_path / "hf")
    config = told().backbone.config
    assert (config.sample_rate, config.normalize, config.normalize_eps) == (8000, True, 1e-7)
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": content}))  # transformers 5
    assert told().backbone.config == config
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Wav2Vec2Processor"}))
    assert told().backbone.config == dataclasses.replace(POST_NORM)
    assert (
        told().provenance["assumed"].startswith("sample_rate 16000, normalize false: there is no preprocessor_config")
    )
    (folder / "preprocessor_config.json").write_text("{}")  # transformers' own defaults
    assert told().backbone.config == dataclasses.replace(config, sample_rate=16000)
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 22050.0}')
    assert json.dumps(told().backbone.config.sample_rate) == "22050"
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 22050.5}')
    with pytest.raises(CheckpointError, match=r"sample_rate must be a whole number, at least 1, found 22050\.5"):
        told()
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": "16k"}')
    with pytest.raises(CheckpointError, match="sample_rate must be a whole number, at least 1, found '16k'"):
        told()
    make(tmp_path / "large", **LARGE)
    (tmp_path / "large" / "preprocessor_config.json").unlink()
    large = convert(tmp_path / "large")
    assert large.backbone.config == dataclasses.replace(PRE_NORM, normalize_eps=1e-7)
    assert large.provenance["assumed"].startswith("sample_rate 16000, normalize true: ")


def test_names_behind_a_wrappers_prefix(tmp_path):
    """As a training script saves what DistributedDataParallel or torch.compile wrapped."""
    model, _ = make(tmp_path / "hf")
    expected = convert(tmp_path / "hf").state_dict()
    (tmp_path / "hf" / "model.safetensors").unlink()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        wrapped = {prefix + name: weight for name, weight in model.state_dict().items()}
        torch.save(wrapped, tmp_path / "hf" / "pytorch_model.bin")
        ours = convert(tmp_path / "hf")
        assert all(torch.equal(weight, expected[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value, tmp_path):
    model, _ = make(tmp_path / "hf")
    model.encoder.layers[2].attention.k_proj.weight.data[1, 1] = value
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"that are not finite: \S+layers\.2\.attention\.k_proj\.weight; get the"):
        convert(tmp_path / "hf")


def test_variances_below_zero(tmp_path):
    model, _ = make(tmp_path / "hf", conv_pos_batch_norm=True)
    model.encoder.pos_conv_embed.batch_norm.running_var[3] = -0.1
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"that are variances below 0: \S+batch_norm\.running_var"):
        convert(tmp_path / "hf")


def test_quantised_weights_are_refused(tmp_path):
    model, _ = make(tmp_path / "hf")
    state = model.state_dict()
    state["encoder.layers.0.attention.k_proj.weight"] = state["encoder.layers.0.attention.k_proj.weight"].to(torch.int8)
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"attention\.k_proj\.weight is int8 where weights are floating-point"):
        convert(tmp_path / "hf")
