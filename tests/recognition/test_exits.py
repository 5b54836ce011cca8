"""Exits at some of the layers: each policy, each kind of backbone and of exits."""

import pytest
import torch

from daisy import CheckpointError, EarlyExitEncoder, Model, PolicyError, UsageError, policies
from daisy.models import Conformer, CTCHeads, CTCHeadsConfig
from daisy.recognition import Recogniser
from daisy.runtime.layer_runner import ConformerLayerRunner, group_by_length
from tests.conftest import randomise
from tests.recognition.conftest import KINDS, run_fully, spread, tiny_recogniser

SCORES = ("entropy", "confidence", "margin", "change", "sentence_confidence", "text_change", "num_frames", "draw")


def spread_policies(scores):
    """Policies of all kinds by which utterances leave at different exits."""
    num_exits = scores["entropy"].shape[1]
    yield policies.Entropy(threshold=spread(scores, "entropy"))
    yield policies.SentenceConfidence(threshold=spread(scores, "sentence_confidence"))
    yield policies.Patience(tolerance=spread(scores, "change"))
    yield policies.TextPatience(tolerance=spread(scores, "text_change"))
    yield policies.Random(histogram=(1.0,) * num_exits)
    yield policies.Fixed(layer=num_exits - 1)


def test_the_loop_decides_as_a_full_run_does(recogniser_model, speech):
    full, full_log_probs = run_fully(recogniser_model, speech, SCORES)
    exits = torch.tensor(recogniser_model.ctc.config.layers)
    assert full.exits == recogniser_model.ctc.config.layers
    assert all(values.shape == (len(speech), len(exits)) for values in full.scores.values())
    seen = set()
    for policy in spread_policies(full.scores):
        out, log_probs = Recogniser(recogniser_model, policy).run(speech)
        assert torch.equal(out.exit_layer, exits[policy.exit_layers(full.scores) - 1])
        assert not any(rows.requires_grad for rows in log_probs)
        last = out.exit_layer == exits[-1]
        for index in last.nonzero()[:, 0].tolist():
            torch.testing.assert_close(log_probs[index], full_log_probs[index], atol=1e-4, rtol=0)
        seen |= set(out.exit_layer.tolist())
    assert seen == set(exits.tolist())


def test_an_utterance_does_not_see_its_batch(recogniser_model, speech):
    full, _ = run_fully(recogniser_model, speech, SCORES)
    for policy in (policies.Entropy(threshold=spread(full.scores, "entropy")), policies.Never()):
        recogniser = Recogniser(recogniser_model, policy, scores=("text_change",))
        out, log_probs = recogniser.run(speech)
        transcripts = recogniser(speech)
        order = [3, 0, 5, 1, 4, 2]
        shuffled = recogniser([speech[index] for index in order])
        for index, waveform in enumerate(speech):
            alone, (log_probs_alone,) = recogniser.run([waveform])
            assert alone.exit_layer[0] == out.exit_layer[index]
            torch.testing.assert_close(log_probs[index], log_probs_alone, atol=1e-5, rtol=0)
            assert recogniser([waveform])[0].text == transcripts[index].text == shuffled[order.index(index)].text
            assert transcripts[index].exit_layer == int(out.exit_layer[index])
            changes = transcripts[index].scores["text_change"]  # by layer, as `Row.scores` says
            reached = recogniser_model.ctc.config.layers[1:]
            assert len(changes) == transcripts[index].exit_layer
            assert [layer for layer, change in enumerate(changes, 1) if change is not None] == [
                layer for layer in reached if layer <= len(changes)
            ]


def test_texts_are_read_from_the_exit_layers_states(recogniser_model, speech):
    """Against the plain modules, layer by layer, one utterance at a time."""
    full, _ = run_fully(recogniser_model, speech, SCORES)
    out, log_probs = Recogniser(recogniser_model, policies.Entropy(threshold=spread(full.scores, "entropy"))).run(
        speech
    )
    backbone = recogniser_model.backbone
    for index, waveform in enumerate(speech):
        with torch.no_grad():
            features, num_frames = backbone.front_end(waveform[None], torch.tensor([len(waveform)]))
            states = backbone.run_layers(backbone.embed(features, num_frames), num_frames)
            layer = int(out.exit_layer[index])
            expected = recogniser_model.ctc(layer, states[layer]).log_softmax(-1)[0]
        torch.testing.assert_close(log_probs[index], expected, atol=1e-4, rtol=0)


def test_utterances_go_together_where_padding_is_small():
    groups = group_by_length([20, 250, 30, 1, 30, 240, 90, 44])
    assert groups == [[1], [5], [6], [7, 2, 4, 0], [3]]
    assert group_by_length([25] * 12) == [list(range(10)), [10, 11]]


@pytest.mark.parametrize("kind", ["conformer", "splitformer"])
def test_groups_do_not_show(kind, speech, monkeypatch):
    """All together in one padded batch, as on a GPU, or in groups."""
    model = tiny_recogniser(kind)
    expected, expected_log_probs = run_fully(model, speech, ["entropy"])
    monkeypatch.setattr(ConformerLayerRunner, "_group", lambda self, layout: [list(range(len(layout)))])
    together, log_probs = run_fully(model, speech, ["entropy"])
    torch.testing.assert_close(together.scores["entropy"], expected.scores["entropy"], atol=1e-5, rtol=1e-5)
    for one, other in zip(log_probs, expected_log_probs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["conformer", "splitformer"])
def test_where_padding_is_heard_utterances_go_alone(kind, speech):
    """The public code's choices make an utterance depend on its batch: not in the exit loop."""
    config, layers, _ = KINDS[kind]
    backbone = randomise(Conformer(config.as_published()), 4)
    encoder = EarlyExitEncoder(backbone, None, policies.Never(), keep="last", exits=layers)
    out = encoder(speech)
    for index, waveform in enumerate(speech):
        with torch.no_grad():
            alone, _ = backbone(waveform[None])
        torch.testing.assert_close(out.states[index][-1], alone[-1][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["conformer", "splitformer"])
def test_skipped_layers_do_not_run_and_who_left_is_gone(kind, speech):
    """Counts the utterances that enter each layer, half-rate layers too."""
    model = tiny_recogniser(kind)
    full, _ = run_fully(model, speech, SCORES)
    recogniser = Recogniser(model, policies.Entropy(threshold=spread(full.scores, "entropy")))
    entered = {}

    def count(name):
        return lambda module, args, output: entered.update({name: entered.get(name, 0) + len(args[0])})

    handles = [layer.register_forward_hook(count(number)) for number, layer in enumerate(model.backbone.layers, 1)]
    handles += [layer.register_forward_hook(count(f"half {b}")) for b, layer in model.backbone.half_rate.items()]
    out, _ = recogniser.run(speech)
    for handle in handles:
        handle.remove()
    still_there = {layer: int((out.exit_layer >= layer).sum()) for layer in range(1, 7)}
    assert len(set(still_there.values())) > 1
    expected = {layer: count for layer, count in still_there.items() if count}
    if kind == "splitformer":
        expected |= {f"half {block}": still_there[2 * block] for block in (1, 3) if still_there[2 * block]}
    assert entered == expected


def test_scores_are_computed_at_exits_only(speech):
    model = tiny_recogniser("conformer")
    asked = []
    recogniser = Recogniser(model, "never", scores=["entropy"])
    forward = model.ctc.unit_logits
    model.ctc.unit_logits = lambda layer, *args: asked.append(layer) or forward(layer, *args)
    layers, exits = [], []
    recogniser.encoder(speech, on_layer=layers.append, observe=lambda outputs: exits.append(outputs.layer))
    assert asked == exits == [2, 4, 6]
    assert layers == list(range(7))


@pytest.mark.parametrize("kind", ["hubert", "conformer"])
def test_unit_heads_choose_among_the_exits_that_write_text(kind, speech):
    model = tiny_recogniser(kind, units=True)
    layers = torch.tensor(model.ctc.config.layers)
    full, _ = run_fully(model, speech, ["entropy"], heads="units")
    policy = policies.Entropy(threshold=spread(full.scores, "entropy"))
    out, log_probs = Recogniser(model, policy, heads="units").run(speech)
    assert torch.equal(out.exit_layer, layers[policy.exit_layers(full.scores) - 1])
    assert len(out.exit_layer.unique()) > 1
    by_layer = {
        int(layer): Recogniser(model, "fixed", layer=int(layer)).run(speech)[1] for layer in out.exit_layer.unique()
    }
    for index, layer in enumerate(out.exit_layer.tolist()):
        torch.testing.assert_close(log_probs[index], by_layer[layer][index], atol=1e-5, rtol=0)
    every_layer = model.encoder(policies.Never(), scores=["entropy"])(speech)  # without exits, a score at each layer
    assert every_layer.scores["entropy"].shape == (len(speech), model.backbone.config.num_layers)
    torch.testing.assert_close(every_layer.scores["entropy"][:, layers - 1], full.scores["entropy"])


def test_settings_that_name_a_layer_say_one_of_the_network():
    model = tiny_recogniser("conformer")
    assert model.policy("fixed", layer=4) == policies.Fixed(layer=2)
    assert Recogniser(model, "fixed", layer=4).encoder.policy == policies.Fixed(layer=2)
    with pytest.raises(PolicyError, match=r"policy fixed: no exit at layer 3; exits are at 2, 4, 6"):
        model.policy("fixed", layer=3)
    with pytest.raises(PolicyError, match=r"threshold is for 6 layers, not for 3"):
        Recogniser(model, policies.Entropy(threshold=(0.1,) * 6))


def test_a_chosen_few_of_the_exits(speech):
    model = tiny_recogniser("conformer")
    encoder = EarlyExitEncoder(model.backbone, model.ctc, policies.Never(), scores=["change"], exits=[6, 2])
    every = EarlyExitEncoder(model.backbone, model.ctc, policies.Never(), scores=["change"])
    out = encoder(speech)
    assert out.exits == encoder.exits == (2, 6)
    assert out.scores["change"].shape == (6, 2)
    assert not torch.equal(
        out.scores["change"][:, 1], every(speech).scores["change"][:, 2]
    )  # of exit 2's units, not 4's


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_counts_layers(kind, speech):
    model = tiny_recogniser(kind)
    layers = model.ctc.config.layers
    deadline = policies.Deadline(
        budget=layers[1] + 0.5, front_cost=(0.0, 0.0, 0.0), layer_cost=(1.0, 0.0, 0.0), layers=layers
    )
    out = EarlyExitEncoder(model.backbone, model.ctc, deadline)(speech)
    assert out.exit_layer.tolist() == [layers[1]] * len(speech)
    costs = {"front_cost": (0.0, 0.0, 0.0), "layer_cost": (1.0, 0.0, 0.0)}
    assert model.policy("deadline", heads="ctc", budget=layers[1] + 0.5, **costs) == deadline
    counted = policies.Deadline(budget=1.0, **costs)
    with pytest.raises(PolicyError, match=r"counts every layer as an exit, and there are exits at layers .* only"):
        EarlyExitEncoder(model.backbone, model.ctc, counted)
    with pytest.raises(PolicyError, match=r"is for 2 exits, not for"):
        EarlyExitEncoder(
            model.backbone,
            None,
            policies.Deadline(budget=1.0, front_cost=(0, 0, 0), layer_cost=(1, 0, 0), layers=(1, 2)),
        )


def test_refusals(speech):
    hubert, attentive, split = (tiny_recogniser(kind) for kind in ("hubert", "hubert-attention", "splitformer"))
    never = policies.Never()
    with pytest.raises(
        PolicyError, match=r"exits must be some of the layers 2, 3, 4, and the last of them, found \[2, 3\]"
    ):
        EarlyExitEncoder(hubert.backbone, hubert.ctc, never, exits=[2, 3])
    with pytest.raises(PolicyError, match=r"exits must be some of the layers 2, 4, 6, .* found \[3, 6\]"):
        EarlyExitEncoder(split.backbone, None, never, exits=[3, 6])
    with pytest.raises(PolicyError, match=r"attention look at every frame: score_stride must be 1, found 2"):
        EarlyExitEncoder(attentive.backbone, attentive.ctc, never, score_stride=2)
    with pytest.raises(UsageError, match=r"\(as all of a Conformer\) compute in float32, not in bfloat16"):
        EarlyExitEncoder(split.backbone, split.ctc, never, dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"policy regressed reads regressed, which these heads do not give"):
        Recogniser(hubert, policies.Regressed(threshold=1.0))
    other = CTCHeads(CTCHeadsConfig(layers=(2, 4), width=16, num_tokens=3))
    with pytest.raises(CheckpointError, match=r"exit heads for 4 layers of width 16 do not fit"):
        EarlyExitEncoder(hubert.backbone, other, never)
    units = tiny_recogniser("hubert", units=True)
    with pytest.raises(CheckpointError, match=r"reads text_change, which these heads do not give"):
        units.encoder("text_patience", heads="units", tolerance=0.1)
    with pytest.raises(CheckpointError, match=r"has no heads on units"):
        Recogniser(hubert, "never", heads="units")
    units.ctc = None
    with pytest.raises(CheckpointError, match=r"has no CTC exits, so it does not recognise speech"):
        Recogniser(units)


def test_settings_name_layers_where_exits_are_at_some():
    """With heads on units, with none, and with exits in another order."""
    split = tiny_recogniser("splitformer", units=True)
    bare = Model(backbone=split.backbone)
    for model, heads in ((split, "units"), (split, "ctc"), (bare, None)):
        encoder = model.encoder("fixed", heads=heads, layer=4, keep="last")
        assert (encoder.exits, encoder.policy) == ((2, 4, 6), policies.Fixed(layer=2))
        assert encoder([torch.ones(16000)]).exit_layer.tolist() == [4]
        with pytest.raises(PolicyError, match="policy fixed: no exit at layer 3; exits are at 2, 4, 6"):
            model.encoder("fixed", heads=heads, layer=3)
    mixed = tiny_recogniser("conformer", units=True).encoder("fixed", heads="units", exits=[6, 2, 5, 2], layer=2)
    assert (mixed.exits, mixed.policy) == ((2, 5, 6), policies.Fixed(layer=1))
    costs = {"budget": 1.0, "front_cost": (0, 0, 0), "layer_cost": (0.3, 0, 0)}
    assert bare.policy("deadline", exits=[6, 2], **costs).layers == (2, 6)
