"""The folder for transformers against daisy itself: exits, states, losses and units; its code does not import daisy."""

import dataclasses
import json

import pytest
import soundfile
import torch

import daisy
from daisy import CheckpointError, ExitHeads, HeadsConfig, Model, PolicyError
from daisy.errors import OutputError
from daisy.integrations import export_huggingface
from daisy.integrations.huggingface_folder import CODE
from daisy.units import UnitEncoder
from tests.cli.running import run
from tests.conftest import POST_NORM, PRE_NORM, RARE_KINDS, randomise, spread_policy, tiny_model
from tests.recognition.conftest import tiny_recogniser

transformers = pytest.importorskip("transformers", reason="needs transformers")
KINDS = {"post-norm": POST_NORM, "pre-norm": PRE_NORM, **{f"rare {name}": kind for name, kind in RARE_KINDS.items()}}


@pytest.fixture(autouse=True)
def modules(monkeypatch, tmp_path):
    """Where transformers copies the folders' code to: nothing of these tests stays in the user's cache."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "modules"), *__import__("sys").path])


def load(folder):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    return extractor, transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()


def pad(extractor, waveforms):
    arrays = [waveform.numpy() for waveform in waveforms]
    return extractor(arrays, sampling_rate=extractor.sampling_rate, padding=True, return_tensors="pt")


def find_gap(values):
    """A threshold in the middle third of some values, as far from all of them as may be: rounding decides nothing."""
    ordered = values.flatten().sort().values
    ordered = ordered[len(ordered) // 3 : -(len(ordered) // 3)]
    place = int(ordered.diff().argmax())
    return float(ordered[place : place + 2].mean())


def make_policies(model, waveforms):
    """One of each kind, most of which let utterances leave at several layers."""
    generator = torch.Generator().manual_seed(0)
    layers = model.backbone.config.num_layers
    scores = model.encoder("never", scores=["entropy", "regressed", "confidence", "margin", "change"])(waveforms).scores
    middle = {name: find_gap(values[:, 1:-1]) for name, values in scores.items()}
    rows = [range(layers - layer) for layer in range(1, layers)]
    weights = [[(0.1 * torch.randn(2 * n, generator=generator)).tolist() for _ in row] for n, row in enumerate(rows, 1)]
    for matrix in weights:
        for row in matrix:
            row[len(row) // 2] = 0.0  # the change at layer 1, which is no number
    look_ahead = dict(
        features=["entropy", "change"],
        weights=weights,
        intercepts=[(0.1 * torch.randn(len(row), generator=generator)).tolist() for row in rows],
    )
    return {
        "entropy": dict(threshold=spread_policy(model, waveforms).threshold),
        "agreement": dict(threshold=[0.0, *[middle["entropy"]] * (layers - 1)]),
        "regressed": dict(threshold=middle["regressed"]),
        "confidence": dict(threshold=middle["confidence"]),
        "margin": dict(threshold=middle["margin"]),
        "patience": dict(tolerance=middle["change"], patience=1),
        "forecast": dict(price=0.01, **look_ahead),
        "plateau": dict(price=-0.02, **look_ahead),
        "fixed": dict(layer=2),
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_gives_what_daisy_gives(name, waveforms, tmp_path):
    waveforms = waveforms[1:]
    model = tiny_model(KINDS[name])
    model.policies = make_policies(model, waveforms)
    export_huggingface(model, tmp_path / "hf")
    extractor, loaded = load(tmp_path / "hf")
    inputs, exits = pad(extractor, waveforms), set()
    for policy in [*model.policies, "never"]:
        expected = model.encoder(policy, scores=["entropy"])(waveforms)
        with torch.no_grad():
            output = loaded(**inputs, exit_policy=policy, output_hidden_states=True)
        assert output.exit_layer.tolist() == expected.exit_layer.tolist(), policy
        exits.update(output.exit_layer.tolist())
        torch.testing.assert_close(
            output.predicted_loss, expected.scores["entropy"], rtol=1e-4, atol=1e-5, equal_nan=True
        )
        assert torch.equal(output.frame_mask, expected.mask)
        assert len(output.hidden_states) == int(expected.exit_layer.max()) + 1
        assert not output.last_hidden_state[~output.frame_mask].any()
        for row, states in enumerate(expected.states):
            got = [layer[row, : states.shape[1]] for layer in output.hidden_states[: len(states)]]
            got.append(output.last_hidden_state[row, : states.shape[1]])
            for layer, (one, other) in enumerate(zip(got, [*states, states[-1]], strict=True)):
                assert (one - other).abs().max() < 1e-4 * other.std(), (policy, row, layer)
            assert not any(layer[row].any() for layer in output.hidden_states[len(states) :])
    assert exits == {1, 2, 3, 4}
    for sequence, units, mask in zip(
        UnitEncoder(model, "entropy")(waveforms),
        loaded(**inputs, exit_policy="entropy").units,
        output.frame_mask,
        strict=True,
    ):
        assert units[mask].tolist() == sequence.units
        assert (units[~mask] == -1).all()


def test_masks_that_are_no_padding_on_the_right_are_refused(waveforms, tmp_path):
    export_huggingface(tiny_model(), tmp_path / "hf")
    extractor, loaded = load(tmp_path / "hf")
    inputs = pad(extractor, waveforms[3:])
    left = inputs["attention_mask"].flip(1)
    gap = inputs["attention_mask"].clone()
    gap[:, 100] = 0
    for mask in (left, gap, inputs["attention_mask"][:, :-1]):
        with pytest.raises(ValueError, match="attention_mask must be 1 from each row's first sample on"):
            loaded(inputs["input_values"], attention_mask=mask)


def test_heads_may_read_the_feed_forward_output_and_weights_may_be_half(waveforms, tmp_path):
    backbone = tiny_model().backbone
    config = HeadsConfig(num_layers=4, width=32, num_units=11, reads="feed_forward", regressors=False)
    model = Model(backbone=backbone, heads=randomise(ExitHeads(config), 3))
    daisy.save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    model = daisy.load(tmp_path / "half.safetensors")
    result = run("export", "hf", tmp_path / "half.safetensors", tmp_path / "hf", "--half")
    assert (result.returncode, result.stderr) == (0, "")
    _, loaded = load(tmp_path / "hf")
    loaded = loaded.float()
    waveform = waveforms[-1]
    expected = model.encoder("never", scores=["entropy"])(waveform).scores["entropy"]
    output = loaded(waveform[None])
    torch.testing.assert_close(output.predicted_loss, expected, rtol=1e-4, atol=1e-5)
    output.last_hidden_state.sum().backward()  # it can be trained on
    assert loaded.backbone.encoder.feature_projection.projection.weight.grad.abs().sum() > 0


def test_a_model_without_heads_runs_to_a_layer(waveforms, tmp_path):
    model = Model(backbone=tiny_model().backbone)
    export_huggingface(model, tmp_path / "hf")
    _, loaded = load(tmp_path / "hf")
    output = loaded(waveforms[4][None], exit_policy={"name": "fixed", "layer": 3})
    assert output.predicted_loss is None
    expected = model.encoder("fixed", layer=3)(waveforms[4])
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
    for policy, reason in [
        ("entropy", "settings are missing"),
        ({"name": "entropy", "threshold": 1.0}, "this model has none: use fixed or never"),
        ("whenever", "unknown exit_policy 'whenever': known are agreement, "),
        ({"name": "fixed", "layer": 5}, "layer must be 1 to 4, found 5"),
    ]:
        with pytest.raises(ValueError, match=reason):
            loaded(waveforms[4][None], exit_policy=policy)
    with pytest.raises(ValueError, match="399 samples is too short: one frame needs 400"):
        loaded(torch.zeros(1, 399))


def test_the_pipeline_extracts_features(waveforms, tmp_path):
    model = tiny_model()
    model.policies = {"entropy": dict(threshold=spread_policy(model, waveforms).threshold)}
    export_huggingface(model, tmp_path / "hf", exit_policy="entropy")
    extract = transformers.pipeline("feature-extraction", model=str(tmp_path / "hf"), trust_remote_code=True)
    expected = model.encoder("entropy")(waveforms[4:])
    given = [waveforms[4].numpy(), {"raw": waveforms[5].numpy(), "sampling_rate": 16000}, waveforms[6].numpy()]
    for states, wanted in zip(extract(given, return_tensors=True), expected, strict=True):
        torch.testing.assert_close(states, wanted.last_hidden_state, rtol=1e-4, atol=1e-4)
    assert len(extract(given[0], exit_policy="never")[0]) == expected.num_frames[0]
    with pytest.raises(ValueError, match="takes audio at 16000 Hz, found 8000 Hz"):
        extract({"raw": waveforms[5].numpy(), "sampling_rate": 8000})
    with pytest.raises(TypeError, match="unknown arguments exit_polcy: known are exit_policy and return_tensors"):
        extract(given[0], exit_polcy="never")


@pytest.mark.parametrize("heads", [True, False])
def test_the_pipeline_gives_a_recording_its_own_frames_whatever_the_batch(heads, waveforms, tmp_path):
    model = tiny_model()
    export_huggingface(model if heads else Model(backbone=model.backbone), tmp_path / "hf")
    extract = transformers.pipeline("feature-extraction", model=str(tmp_path / "hf"), trust_remote_code=True)
    given = [waveform.numpy() for waveform in waveforms[3:]]
    alone = extract(given, return_tensors=True)
    assert [states.shape for states in alone] == [(1, 15, 32), (1, 49, 32), (1, 50, 32), (1, 74, 32)]
    for one, other in zip(extract(given, batch_size=4, return_tensors=True), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert [len(rows[0]) for rows in extract(given, batch_size=2)] == [15, 49, 50, 74]


def test_the_pipeline_hears_the_mean_of_channels(waveforms, tmp_path):
    export_huggingface(tiny_model(), tmp_path / "hf")
    extract = transformers.pipeline("feature-extraction", model=str(tmp_path / "hf"), trust_remote_code=True)
    channels = torch.stack([waveforms[4], waveforms[5][:16000]])
    soundfile.write(tmp_path / "stereo.wav", channels.T.numpy(), 16000, subtype="FLOAT")
    expected = extract(channels.mean(0).numpy(), return_tensors=True)
    for given in (channels.numpy(), {"raw": channels.numpy(), "sampling_rate": 16000}, str(tmp_path / "stereo.wav")):
        assert torch.equal(extract(given, return_tensors=True), expected)


def test_all_layers_run_while_the_model_is_trained(waveforms, tmp_path):
    model = tiny_model()
    model.policies = {"entropy": dict(threshold=100.0)}  # everybody leaves at layer 1
    export_huggingface(model, tmp_path / "hf", exit_policy="entropy")
    _, loaded = load(tmp_path / "hf")
    waveform = waveforms[4][None]
    assert loaded(waveform).exit_layer.tolist() == [1]
    loaded.train()
    output = loaded(waveform)
    output.last_hidden_state.sum().backward()
    assert output.exit_layer.tolist() == [4]
    last = loaded.backbone.encoder.transformer.layers[3].feed_forward.output_dense.weight
    assert last.grad.abs().sum() > 0
    assert loaded(waveform, exit_policy="entropy").exit_layer.tolist() == [1]
    with torch.no_grad():
        assert loaded(waveform).exit_layer.tolist() == [1]
        loaded.config.policies["entropy"]["threshold"] = 0.0
        assert loaded(waveform).exit_layer.tolist() == [4]


def test_a_last_norm_in_another_type_than_the_layers_is_taken(waveforms, tmp_path):
    """As autocast on a GPU gives it; the CPU's leaves norms in the layers' type."""
    export_huggingface(tiny_model(PRE_NORM), tmp_path / "hf")
    _, loaded = load(tmp_path / "hf")
    loaded.bfloat16()
    expected = loaded(waveforms[4][None], output_hidden_states=True)
    loaded.backbone.encoder.transformer.layer_norm.register_forward_hook(lambda _, __, normed: normed.float())
    output = loaded(waveforms[4][None], output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert {states.dtype for states in output.hidden_states} == {torch.bfloat16}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", KINDS)
def test_autocast_on_a_gpu(name, waveforms, tmp_path):
    export_huggingface(tiny_model(KINDS[name]), tmp_path / "hf")
    _, loaded = load(tmp_path / "hf")
    expected = loaded(waveforms[4][None]).last_hidden_state
    with torch.autocast("cuda", torch.bfloat16):
        output = loaded.cuda()(waveforms[4][None].cuda(), output_hidden_states=True)
    assert (output.last_hidden_state.float().cpu() - expected).abs().mean() < 0.05 * expected.std()


def test_saving_and_loading_again_changes_nothing(waveforms, tmp_path):
    model = tiny_model()
    export_huggingface(model, tmp_path / "hf")
    _, loaded = load(tmp_path / "hf")
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(again(waveforms[4][None]).last_hidden_state, loaded(waveforms[4][None]).last_hidden_state)


def test_the_code_needs_transformers_and_torch_alone():
    lines = [line.split() for line in CODE.read_text(encoding="utf-8").splitlines()]
    named = {line[1].split(".")[0] for line in lines if line[:1] in (["import"], ["from"]) and len(line) > 1}
    assert named == {"math", "dataclasses", "torch", "transformers", "soundfile"}


def test_a_conformer_is_refused(tmp_path):
    pytest.importorskip("torchaudio", reason="a Conformer needs torchaudio")
    with pytest.raises(CheckpointError, match="Conformer, and a HuBERT is wanted"):
        export_huggingface(tiny_recogniser("splitformer"), tmp_path / "hf")


def test_positions_of_other_kinds_are_refused(tmp_path):
    wavlm = dataclasses.replace(POST_NORM, relative_buckets=16, relative_max_distance=30)
    with pytest.raises(CheckpointError, match="not of WavLM's or data2vec's positions"):
        export_huggingface(tiny_model(wavlm), tmp_path / "hf")


def test_refusals(tmp_path):
    model = tiny_model()
    with pytest.raises(PolicyError, match="no settings of the policy entropy; it has none"):
        export_huggingface(model, tmp_path / "hf", exit_policy="entropy")
    with pytest.raises(PolicyError, match="policy oracle cannot be exported"):
        export_huggingface(model, tmp_path / "hf", exit_policy="oracle")
    assert not (tmp_path / "hf").exists()
    export_huggingface(model, tmp_path / "hf")
    with pytest.raises(OutputError, match="exists; use another folder, or pass overwrite=True"):
        export_huggingface(model, tmp_path / "hf")
    export_huggingface(model, tmp_path / "hf", overwrite=True)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["exit_policy"] == "never"
