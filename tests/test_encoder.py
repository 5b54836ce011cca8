import dataclasses

import pytest
import torch

from daisy import AudioError, CheckpointError, EarlyExitEncoder, PolicyError, policies
from daisy.models.heads import ExitHeads, HeadsConfig, mean_and_std
from daisy.models.packing import PackedLayout
from daisy.policies.scores import available_scores
from daisy.runtime.linear import round_up_rows
from tests.conftest import Products, spread_policy, tiny_model


@torch.no_grad()
def embedded(backbone, waveform):
    num_samples = torch.tensor([len(waveform)])
    features, num_frames = backbone.front_end(waveform[None], num_samples)
    return backbone.embed(features, num_frames), num_frames


def test_shapes_and_meaning(model, waveforms):
    policy = spread_policy(model, waveforms)
    out = EarlyExitEncoder(model.backbone, model.heads, policy)(waveforms)
    config = model.backbone.config
    assert out.exit_layer.shape == out.num_frames.shape == (7,)
    for i, states in enumerate(out.states):
        assert states.shape == (int(out.exit_layer[i]) + 1, int(out.num_frames[i]), config.width)
        executed = out.scores["entropy"][i].isfinite()
        assert executed.tolist() == [layer < out.exit_layer[i] for layer in range(config.num_layers)]
    last = EarlyExitEncoder(model.backbone, model.heads, policy, keep="last")(waveforms)
    for all_layers, only in zip(out.states, last.states, strict=True):
        assert torch.equal(all_layers[-1:], only)


def test_stopping_early_gives_the_first_layers_of_a_full_run(model, waveforms):
    full = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["entropy"])(waveforms)
    for layer in range(1, model.backbone.config.num_layers + 1):
        cut = EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=layer))(waveforms)
        assert cut.exit_layer.tolist() == [layer] * len(waveforms)
        for short, whole in zip(cut.states, full.states, strict=True):
            torch.testing.assert_close(short, whole[: layer + 1], atol=1e-5, rtol=1e-5)
    policy = spread_policy(model, waveforms)
    out = EarlyExitEncoder(model.backbone, model.heads, policy)(waveforms)
    assert torch.equal(out.exit_layer, policy.exit_layers(full.scores))


def test_an_utterance_does_not_see_its_batch(model, waveforms):
    encoder = EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, waveforms))
    together = encoder(waveforms)
    order = torch.randperm(len(waveforms), generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = encoder([waveforms[i] for i in order])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    as_batch = encoder(padded, torch.tensor([len(w) for w in waveforms]))
    for index, waveform in enumerate(waveforms):
        alone = encoder([waveform])
        for other in (together, as_batch):
            assert alone.exit_layer[0] == other.exit_layer[index]
            assert (alone.states[0] - other.states[index]).abs().max() < 1e-4 * alone.states[0].std()
        place = order.index(index)
        assert shuffled.exit_layer[place] == alone.exit_layer[0]
        assert (alone.states[0] - shuffled.states[place]).abs().max() < 1e-4 * alone.states[0].std()


def test_skipped_layers_do_not_run(model, waveforms):
    """Counts the frames that enter each layer's feed-forward block."""
    encoder = EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, waveforms))
    config = model.backbone.config
    with Products() as products:
        out = encoder(waveforms)
    entered = products.rows(config.ffn_width, config.width, after="gelu")
    inside = [int(out.num_frames[out.exit_layer > layer].sum()) for layer in range(int(out.exit_layer.max()))]
    assert entered == [round_up_rows(count) for count in inside]
    assert sum(entered) < int(out.num_frames.sum()) * config.num_layers


def test_only_what_the_policy_reads_is_computed(waveforms):
    model = tiny_model()
    units, width = model.heads.config.num_units, model.heads.config.width

    def classified(policy, scores=(), stride=1):
        encoder = EarlyExitEncoder(model.backbone, model.heads, policy, scores=scores, score_stride=stride)
        with Products() as products:
            out = encoder(waveforms)
        return products.rows(units, width), out.num_frames

    assert classified(policies.Fixed(layer=3))[0] == []
    assert classified(policies.Never(), ["regressed"])[0] == []
    rows, num_frames = classified(policies.Never(), ["entropy", "margin"])
    assert rows == [round_up_rows(int(num_frames.sum()))] * 4
    rows, num_frames = classified(policies.Never(), ["entropy"], stride=3)
    assert rows == [round_up_rows(sum(len(range(0, n, 3)) for n in num_frames.tolist()))] * 4


def test_heads_can_read_the_feed_forward_output(waveforms):
    model = tiny_model()
    fed, states, num_frames = [], *embedded(model.backbone, waveforms[4])
    for layer in range(1, 5):
        with torch.no_grad():
            states, output = model.backbone.layer_with_feed_forward(layer, states, num_frames)
        fed.append(output)
    config = HeadsConfig(num_layers=4, width=32, num_units=11, reads="feed_forward", regressors=False)
    heads = ExitHeads(config)
    heads.units.load_state_dict(model.heads.units.state_dict())
    scores = EarlyExitEncoder(model.backbone, heads, policies.Never(), scores=["entropy"])([waveforms[4]]).scores
    for layer, output in enumerate(fed):
        probabilities = heads.units[layer](output[0]).softmax(-1)
        expected = -(probabilities * probabilities.log()).sum(-1).mean()
        torch.testing.assert_close(scores["entropy"][0, layer], expected.detach(), atol=1e-5, rtol=1e-5)


def test_refusals(waveforms):
    model = tiny_model()
    never = policies.Never()
    with pytest.raises(CheckpointError, match=r"no exit heads, and policy entropy reads entropy"):
        EarlyExitEncoder(model.backbone, None, policies.Entropy(threshold=1.0))
    with pytest.raises(CheckpointError, match=r"exit heads for 4 layers of width 16 do not fit"):
        EarlyExitEncoder(model.backbone, ExitHeads(HeadsConfig(num_layers=4, width=16, num_units=3)), never)
    with pytest.raises(PolicyError, match=r"unknown score 'entropi': did you mean entropy\?"):
        EarlyExitEncoder(model.backbone, model.heads, never, scores=["entropi"])
    with pytest.raises(PolicyError, match=r"layer must be at most 4, found 9"):
        EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=9))
    encoder = EarlyExitEncoder(model.backbone, model.heads, never)
    with pytest.raises(AudioError, match=r"must be floating point, full scale 1.0, found torch.int16"):
        encoder([torch.zeros(800, dtype=torch.int16)])
    with pytest.raises(AudioError, match=r"utterance 0 must be a tensor or a numpy array, found list"):
        encoder([[0.0] * 800])
    with pytest.raises(AudioError, match=r"NaN or infinite"):
        encoder([torch.full((800,), torch.nan)])
    with pytest.raises(AudioError, match=r"utterance 1 has 399 samples; one frame needs 400"):
        encoder([waveforms[0], torch.zeros(399)])
    with pytest.raises(AudioError, match=r"empty batch"):
        encoder([])
    with pytest.raises(AudioError, match=r"needs num_samples"):
        encoder(torch.zeros(2, 800))
    with pytest.raises(AudioError, match=r"does not fit a batch of \(2, 800\)"):
        encoder(torch.zeros(2, 800), torch.tensor([800, 801]))


def test_another_policy_reads_its_own_scores(model, waveforms):
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["margin"])
    full = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=available_scores(model.heads))(
        waveforms
    ).scores
    assert set(encoder(waveforms).scores) == {"margin"}
    for policy in (
        spread_policy(model, waveforms),
        policies.Confidence(threshold=float(full["confidence"].median())),
        policies.Random(histogram=(1.0,) * model.backbone.config.num_layers),
        policies.Patience(tolerance=float(full["change"][:, 1:].median())),
        policies.Regressed(threshold=float(full["regressed"].median())),
        policies.Fixed(layer=2),
        policies.Never(),
    ):
        encoder.policy = policy
        assert encoder.policy is policy
        assert encoder.score_names == sorted({"margin", *policy.reads})
        out = encoder(waveforms)
        assert set(out.scores) == {"margin", *policy.reads}
        assert out.exit_layer.tolist() == policy.exit_layers(full).tolist()


def test_a_setting_that_is_replaced_is_used_at_once(model, waveforms):
    encoder = EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, waveforms))
    for threshold, expected in ((0.0, model.backbone.config.num_layers), (100.0, 1)):
        encoder.policy = dataclasses.replace(encoder.policy, threshold=threshold)
        assert encoder(waveforms).exit_layer.tolist() == [expected] * len(waveforms)


def test_a_policy_that_is_refused_leaves_the_old_one_in_place(waveforms):
    model = tiny_model(regressors=False)
    policy = spread_policy(model, waveforms)
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy)
    expected = encoder(waveforms)
    for wrong, error, message in (
        (policies.Fixed(layer=99), PolicyError, "policy fixed: layer must be at most 4, found 99"),
        (policies.Entropy(threshold=(1.0, 2.0)), PolicyError, "policy entropy: threshold is for 2 layers, not for 4"),
        (policies.Random(histogram=(1.0,) * 12), PolicyError, "policy random: histogram is for 12 layers, not for 4"),
        ("entropy", PolicyError, "a policy is wanted (daisy.policies), found str"),
        (None, PolicyError, "a policy is wanted (daisy.policies), found NoneType"),
        (policies.Never, PolicyError, "a policy is wanted (daisy.policies), found ABCMeta"),
        ({"name": "never"}, PolicyError, "a policy is wanted (daisy.policies), found dict"),
        (policies.Oracle(degree=0.5), PolicyError, "unknown score 'final_agreement': known are change, confidence"),
        (policies.Score(column="surprise", threshold=1.0), PolicyError, "unknown score 'surprise'"),
        (policies.Regressed(threshold=1.0), CheckpointError, "policy regressed reads regressed, which these heads do"),
    ):
        with pytest.raises(error) as refusal:
            encoder.policy = wrong
        assert str(refusal.value).startswith(message)
        assert "\n" not in str(refusal.value)
        assert encoder.policy is policy
        assert encoder.score_names == ["entropy"]
        assert torch.equal(encoder(waveforms).exit_layer, expected.exit_layer)


def test_without_heads_a_policy_may_read_what_needs_none(waveforms):
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=2))
    with pytest.raises(CheckpointError, match=r"no exit heads, and policy patience reads change"):
        encoder.policy = policies.Patience(tolerance=0.5)
    assert encoder(waveforms).exit_layer.tolist() == [2] * 7
    encoder.policy = policies.Random(histogram=(0, 0, 1, 0))
    assert encoder(waveforms).exit_layer.tolist() == [3] * 7
    with pytest.raises(CheckpointError, match=r"no exit heads, and a score asked for reads entropy"):
        EarlyExitEncoder(model.backbone, None, policies.Never(), scores=["entropy", "draw"])


def test_an_encoder_says_what_it_is(model):
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=2), keep="last", dtype="bfloat16")
    config = model.backbone.config
    assert repr(encoder) == (
        f"EarlyExitEncoder({config.num_layers} layers of width {config.width}, policy=Fixed(layer=2), keep='last', "
        "dtype='bfloat16', device='cpu')"
    )


def test_silence_gives_finite_states(model):
    out = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["entropy", "regressed"])(
        [torch.zeros(16000), torch.zeros(400)]
    )
    assert all(states.isfinite().all() for states in out.states)
    assert all(values.isfinite().all() for values in out.scores.values())


def stateful_policies(model, waveforms):
    """Policies whose scores need the layer before, or the samples, with exits that differ."""
    full = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["change"])(waveforms).scores[
        "change"
    ]
    yield policies.Patience(tolerance=float(full[:, 1:-1].median()))
    yield policies.Random(histogram=(1.0,) * model.backbone.config.num_layers)


@pytest.mark.parametrize("stride", [1, 3])
def test_scores_that_remember_are_the_same_in_any_batch(model, waveforms, stride):
    for policy in stateful_policies(model, waveforms):
        names = ["change", "draw", "num_frames"]
        encoder = EarlyExitEncoder(model.backbone, model.heads, policy, scores=names, score_stride=stride)
        together = encoder(waveforms)
        order = [4, 0, 6, 2, 5, 1, 3]
        shuffled = encoder([waveforms[i] for i in order])
        never = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=names, score_stride=stride)
        assert torch.equal(together.exit_layer, policy.exit_layers(never(waveforms).scores))
        for index, waveform in enumerate(waveforms):
            alone = encoder([waveform])
            place = order.index(index)
            assert alone.exit_layer[0] == together.exit_layer[index] == shuffled.exit_layer[place]
            for name in names:
                for other in (together.scores[name][index], shuffled.scores[name][place]):
                    torch.testing.assert_close(alone.scores[name][0], other, equal_nan=True)


def test_a_stride_reads_every_so_manieth_frame(waveforms):
    model = tiny_model()
    waveform = waveforms[5]
    encoder = EarlyExitEncoder(
        model.backbone, model.heads, policies.Never(), scores=["entropy", "regressed"], score_stride=4
    )
    out = encoder([waveform])
    states = EarlyExitEncoder(model.backbone, None, policies.Never())([waveform]).states[0]
    with torch.no_grad():
        read = states[2][::4]
        log_probs = model.heads.unit_logits(2, read).log_softmax(-1)
        regressed = model.heads.predicted_loss(2, mean_and_std(read, PackedLayout(torch.tensor([len(read)]))))
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    assert float(out.scores["entropy"][0, 1]) == pytest.approx(float(entropy), rel=1e-5)
    assert float(out.scores["regressed"][0, 1]) == pytest.approx(float(regressed), rel=1e-5)
    with pytest.raises(PolicyError, match="score_stride must be a whole number of frames, at least 1, found 0"):
        EarlyExitEncoder(model.backbone, model.heads, policies.Never(), score_stride=0)
