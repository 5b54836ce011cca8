import json
import re

import pytest
import torch

import daisy
from daisy import EarlyExitEncoder, PolicyError, policies
from daisy.errors import AudioError, CheckpointError, UsageError
from daisy.policies import write_policy
from tests.conftest import KINDS, randomise, tiny_model
from tests.s3prl_upstream.conftest import LAYERS, waveform

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def wavs():
    return [waveform(seed, n) for seed, n in enumerate((400, 6000, 16000, 7000, 6000, 12345))]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for layer, (states, other) in enumerate(zip(ours, theirs, strict=True)):
        assert states.shape == other.shape
        assert (states - other).abs().max() < 1e-4 * other.std(), f"layer {layer}"


def stock(hub, source, folder):
    """s3prl's own HuBERT on a fairseq checkpoint."""
    pytest.importorskip("fairseq", reason="s3prl converts with fairseq")
    from s3prl.upstream.hubert.convert import load_and_convert_fairseq_ckpt

    load_and_convert_fairseq_ckpt(str(source), str(folder / "converted.pt"))
    return folder / "converted.pt"


@pytest.mark.parametrize("kind", ["post-norm", "pre-norm"])
def test_without_exits_the_states_are_s3prls_own(hub, kind, tmp_path, wavs):
    pytest.importorskip("fairseq", reason="s3prl converts with fairseq")
    from fairseq_plugins.export import make_stock_checkpoint

    model = tiny_model(KINDS[kind])
    daisy.save(model, tmp_path / "ours.safetensors")
    torch.save(make_stock_checkpoint(model), tmp_path / "fairseq.pt")
    theirs = hub.hubert_local(str(stock(hub, tmp_path / "fairseq.pt", tmp_path))).eval()
    ours = hub.daisy_local(tmp_path / "ours.safetensors", "never").eval()
    with torch.no_grad():
        for wav in wavs:
            assert_same(ours([wav])["hidden_states"], theirs([wav])["hidden_states"])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_wavlm_is_s3prls_own(hub, pre_norm, tmp_path, wavs):
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    from daisy.checkpoints.converters import convert

    cfg = dict(
        encoder_layers=2,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=48,
        encoder_attention_heads=4,
        layer_norm_first=pre_norm,
        conv_feature_layers="[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        conv_pos=16,
        conv_pos_groups=4,
        relative_position_embedding=True,
        gru_rel_pos=True,
        num_buckets=32,
        max_distance=40,
    )
    torch.save({"cfg": cfg, "model": randomise(WavLM(WavLMConfig(cfg))).state_dict()}, tmp_path / "wavlm.pt")
    daisy.save(convert(tmp_path / "wavlm.pt"), tmp_path / "ours.safetensors")
    theirs = hub.wavlm_local(str(tmp_path / "wavlm.pt")).eval()
    ours = hub.daisy_local(tmp_path / "ours.safetensors", "never").eval()
    with torch.no_grad():
        together = ours(wavs)["hidden_states"]
        for index, wav in enumerate(wavs):
            expected = theirs([wav])["hidden_states"]
            assert_same(ours([wav])["hidden_states"], expected)
            assert_same([layer[index : index + 1, : expected[0].shape[1]] for layer in together], expected)


def test_the_same_of_a_trained_model_through_s3prl_nn(hub, shared, tmp_path):
    from s3prl.nn import S3PRLUpstream

    from daisy import audio
    from daisy.checkpoints.converters import convert

    source = shared / "models" / "hubert_mini.pt"
    daisy.save(convert(source, allow_pickle=True), tmp_path / "ours.safetensors")
    never = {"model_config": "never"}
    ours = S3PRLUpstream("daisy_local", path_or_url=str(tmp_path / "ours.safetensors"), extra_conf=never).eval()
    theirs = S3PRLUpstream("hubert_local", path_or_url=str(stock(hub, source, tmp_path))).eval()
    path = sorted((shared / "data" / "librispeech").rglob("*.flac"))[0]
    wav = audio.read(path)[:50000]
    with torch.no_grad():
        (states, lengths), (expected, expected_lengths) = (
            model(wav[None], torch.tensor([len(wav)])) for model in (ours, theirs)
        )
    assert ours.num_layers == 13
    assert ours.hidden_sizes == theirs.hidden_sizes
    assert_same(states, expected)
    assert [counts.tolist() for counts in lengths] == [counts.tolist() for counts in expected_lengths]


def test_ten_seconds_are_499_frames_and_500_through_s3prl_nn(hub, checkpoint):
    from s3prl.nn import S3PRLUpstream

    model = S3PRLUpstream("daisy_local", path_or_url=str(checkpoint), extra_conf={"model_config": "never"}).eval()
    wav = waveform(0, 160000)
    with torch.no_grad():
        direct = model.upstream([wav])
        states, lengths = model(wav[None], torch.tensor([160000]))
    assert [state.shape[1] for state in direct["hidden_states"]] == [499] * (LAYERS + 1)
    assert [state.shape[1] for state in states] == [500] * (LAYERS + 1)
    assert lengths[0].tolist() == [500]
    assert torch.equal(states[2][:, 499], states[2][:, 498])  # the last frame again
    assert torch.equal(states[2][:, :499], direct["hidden_states"][2])


def test_layer_0_is_the_encoders_input_and_unexecuted_layers_repeat_the_exits(upstream, wavs):
    with torch.no_grad():
        out = upstream(wavs)
    expected = upstream.encoder(wavs)
    assert len(set(out["exit_layer"].tolist())) > 1
    assert out["exit_layer"].tolist() == expected.exit_layer.tolist()
    for b, (states, exit_layer) in enumerate(zip(expected.states, expected.exit_layer.tolist(), strict=True)):
        for layer in range(LAYERS + 1):
            state = out["hidden_states"][layer][b, : states.shape[1]]
            assert torch.allclose(state, states[min(layer, exit_layer)], atol=1e-5), (b, layer)
        assert torch.equal(out["last_hidden_state"][b], out["hidden_states"][exit_layer][b])
        assert torch.equal(out[f"hidden_state_{exit_layer}"][b], out["last_hidden_state"][b])


def test_an_utterance_is_the_same_alone_and_in_any_batch_in_training_and_evaluation(hub, checkpoint, wavs):
    from s3prl.nn import S3PRLUpstream

    conf = {"model_config": {"name": "entropy", "threshold": 1.7}}
    model = S3PRLUpstream("daisy_local", path_or_url=str(checkpoint), extra_conf=conf)
    lengths = torch.tensor([len(wav) for wav in wavs])
    with torch.no_grad():
        together, num_frames = model.eval()(torch.nn.utils.rnn.pad_sequence(wavs, True), lengths)
        exits = model.upstream(wavs)["exit_layer"].tolist()
        assert model.train().upstream(wavs)["exit_layer"].tolist() == exits
        for b in (1, 3, 5):
            alone, count_alone = model(wavs[b][None], lengths[b : b + 1])
            assert model.upstream([wavs[b]])["exit_layer"].tolist() == [exits[b]]
            assert count_alone[0].tolist() == num_frames[0][b : b + 1].tolist()
            for layer, state in enumerate(alone):
                assert torch.equal(together[layer][b, : state.shape[1]], state[0])
    assert len(set(exits)) > 1


def test_a_training_upstream_runs_all_layers_and_gradients_stop_at_the_convolutions(upstream, wavs):
    upstream.train()
    out = upstream(wavs[1:4])
    assert out["exit_layer"].tolist() == [LAYERS] * 3
    out["last_hidden_state"].square().sum().backward()
    backbone = upstream.encoder.backbone
    moved = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {f"encoder.transformer.layers.{i}.attention.q_proj.weight" for i in range(LAYERS)} <= moved
    assert not [name for name in moved if name.startswith("feature_extractor")]
    with torch.no_grad():
        expected = EarlyExitEncoder(backbone, None, policies.Never())(wavs[1:4]).states
    for b, states in enumerate(expected):
        assert torch.allclose(out["hidden_states"][2][b, : states.shape[1]], states[2], atol=1e-5)


def test_after_a_step_behind_autograds_back_evaluation_has_the_new_weights(upstream, wavs):
    """As s3prl's AdamW and Lamb make them."""
    with torch.no_grad():
        before = upstream.eval()(wavs[1:3])["last_hidden_state"]
    upstream.train()(wavs[1:3])["last_hidden_state"].square().sum().backward()
    for weight in upstream.encoder.backbone.parameters():
        if weight.grad is not None:
            weight.data.add_(weight.grad.sign(), alpha=-0.01)
    training = upstream(wavs[1:3])["hidden_states"]
    with torch.no_grad():
        out = upstream.eval()(wavs[1:3])
    exits = out["exit_layer"].tolist()
    for b, (exit_layer, wav) in enumerate(zip(exits, wavs[1:3], strict=True)):
        count = (len(wav) - 400) // 320 + 1
        expected = training[exit_layer][b, :count]
        assert (out["last_hidden_state"][b, :count] - expected).abs().max() < 1e-4 * expected.std()
    assert not torch.allclose(out["last_hidden_state"], before, atol=1e-2)


def test_frozen_weights_exit_in_training_mode_too(hub, checkpoint, wavs):
    upstream = hub.daisy_local(checkpoint, {"name": "fixed", "layer": 2}).requires_grad_(False)
    assert upstream.train()(wavs)["exit_layer"].tolist() == [2] * len(wavs)


def test_a_batch_together_is_as_its_utterances_alone(upstream, wavs):
    """As on a GPU, where all run at once."""
    from s3prl_upstream.frozen import Needs, encode

    digests = list(map(str, range(len(wavs))))
    together, alone = (encode(upstream.encoder, wavs, digests, Needs(), alone).utterances for alone in (False, True))
    assert [utterance.exit_layer for utterance in together] == [utterance.exit_layer for utterance in alone]
    for batched, other in zip(together, alone, strict=True):
        assert_same(batched.states, other.states)


def test_a_short_utterance_is_named(upstream, wavs):
    with pytest.raises(AudioError, match="utterance 2 of a batch of 3 has 300 samples .audio [0-9a-f]{16}.; one frame"):
        upstream([*wavs[:2], wavs[2][:300]])


def test_the_published_window_decides_for_the_batch(hub, checkpoint, wavs, tmp_path):
    """Through the upstream and through its cache as the encoder does it."""
    for threshold in (1.5, 1.7, 2.0):
        window = {"name": "daisy_window", "threshold": threshold, "first": 1, "last": 3}
        plain, cached = (hub.daisy_local(checkpoint, window).eval() for _ in range(2))
        cached.cache_in(tmp_path, "float32")
        for batch in (wavs, wavs[2:], wavs[:1], wavs):
            expected = plain.encoder(batch)
            with torch.no_grad():
                out, again = plain(batch), cached(batch)
            assert len(set(out["exit_layer"].tolist())) == 1
            assert out["exit_layer"].tolist() == again["exit_layer"].tolist() == expected.exit_layer.tolist()
            assert_same(again["hidden_states"], out["hidden_states"])
            scores = torch.stack([utterance.scores["entropy"] for utterance in cached.last.utterances])
            assert torch.equal(scores.isnan(), expected.scores["entropy"].isnan())
            assert torch.allclose(scores.nan_to_num(), expected.scores["entropy"].nan_to_num(), atol=1e-5)
    assert all(utterance.cached for utterance in cached.last.utterances)


def test_which_policy(hub, checkpoint, tmp_path):
    def chosen(model_config, source=checkpoint):
        return hub.daisy_local(source, model_config).encoder

    assert chosen(None).policy == policies.Never()  # no default settings in this checkpoint
    assert hub.daisy_mini().encoder.policy.name == "forecast"
    assert chosen({"name": "fixed", "layer": 2}).policy == policies.Fixed(layer=2)
    assert chosen({"name": "entropy", "threshold": 1.0, "score_stride": 3}).score_stride == 3
    path = tmp_path / "policy.json"
    made = dict(target={}, attained={}, data={}, score_stride=2)
    digest = daisy.checkpoints.format.digest(checkpoint)
    write_policy(path, policies.Entropy(threshold=1.5), checkpoint="tiny", digest=digest, **made)
    assert chosen(path).policy == policies.Entropy(threshold=1.5)
    assert chosen(str(path)).score_stride == 2
    with pytest.raises(PolicyError, match="was calibrated for tiny .* thresholds mean nothing for another model"):
        chosen(path, "daisy-mini")


@pytest.mark.parametrize(
    ("model_config", "message"),
    [
        ("nowhere.json", "nowhere.json: no such policy file"),
        ({"name": "fixed"}, "model_config: policy fixed needs layer"),
        ({"name": "fixed", "layer": 7, "depth": 1}, "unknown setting 'depth'"),
        ({"name": "oracle", "degree": 1.0}, "for comparisons"),
        ({"layer": 2}, "unknown policy 'None'"),
        ({"name": "never", "score_stride": "2"}, "score_stride must be a whole number"),
    ],
)
def test_policies_that_are_refused(hub, checkpoint, model_config, message):
    with pytest.raises(PolicyError, match=re.escape(message)):
        hub.daisy_local(checkpoint, model_config)


def test_checkpoints_that_are_refused(hub, tmp_path, checkpoint):
    with pytest.raises(UsageError, match="daisy_local needs a checkpoint"):
        hub.daisy_local()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        hub.daisy_local(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="takes no checkpoint"):
        hub.daisy_mini(checkpoint)
    with pytest.raises(UsageError, match="begins with http"):
        hub.daisy_url(str(checkpoint))
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(PolicyError, match="text.json: not a policy file"):
        hub.daisy_local(checkpoint, tmp_path / "text.json")
    (tmp_path / "other.json").write_text(json.dumps({"layers": 3}))
    with pytest.raises(PolicyError, match="other.json: not a policy file"):
        hub.daisy_local(checkpoint, tmp_path / "other.json")
