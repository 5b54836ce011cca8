"""``fast=False``: ordinary modules, for hooks, ``torch.compile`` and ``torch.export``."""

import pytest
import torch

from daisy import EarlyExitEncoder, UsageError, policies
from daisy.models.heads import ExitHeads, HeadsConfig
from daisy.policies.scores import available_scores
from tests.conftest import POST_NORM, assert_same_output, spread_policy, tiny_model


def encoders(model, policy, **settings):
    return (EarlyExitEncoder(model.backbone, model.heads, policy, fast=fast, **settings) for fast in (True, False))


@pytest.mark.parametrize("keep", ["all", "last"])
@pytest.mark.parametrize("stride", [1, 3])
def test_plain_modules_give_the_same(model, waveforms, keep, stride):
    for policy in (spread_policy(model, waveforms), policies.Never()):
        fast, plain = encoders(model, policy, scores=available_scores(model.heads), keep=keep, score_stride=stride)
        expected = fast(waveforms)
        assert_same_output(plain(waveforms), expected, tolerance=1e-4)
        assert_same_output(plain(waveforms[4:5]), fast(waveforms[4:5]), tolerance=1e-4)


def test_heads_that_read_the_feed_forward_output(model, config, waveforms):
    heads = HeadsConfig(num_layers=config.num_layers, width=config.width, num_units=5, reads="feed_forward")
    model.heads = ExitHeads(heads).eval()
    fast, plain = encoders(model, policies.Never(), scores=["entropy", "regressed"])
    assert_same_output(plain(waveforms), fast(waveforms), tolerance=1e-4)


def test_hooks_fire_once_for_each_layer_that_is_executed(model, config, waveforms):
    policy = spread_policy(model, waveforms)
    fast, plain = encoders(model, policy)
    executed = int(fast(waveforms).exit_layer.max())
    calls = []
    layers = model.backbone.encoder.transformer.layers
    handles = [
        layer.register_forward_hook(lambda module, args, output: calls.append((module, args[0].shape)))
        for layer in layers
    ]
    try:
        out = plain(waveforms)
        assert [module for module, _ in calls] == list(layers[:executed])
        for layer, (_, shape) in enumerate(calls, 1):
            inside = out.exit_layer >= layer
            assert shape == (int(inside.sum()), int(out.num_frames[inside].max()), config.width)
        calls.clear()
        EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=2), fast=False)(waveforms)
        assert [module for module, _ in calls] == list(layers[:2])
        calls.clear()
        fast(waveforms)
        assert calls == []  # weights are packed, modules are not called
    finally:
        for handle in handles:
            handle.remove()


def test_a_hook_may_change_what_a_layer_gives(model, waveforms):
    """As pruning and adapters do."""
    fast, plain = encoders(model, policies.Never())
    expected = fast(waveforms[4:5]).states[0]
    layer = model.backbone.encoder.transformer.layers[1]
    handle = layer.register_forward_hook(lambda module, args, output: (output[0] + 1, output[1]))
    try:
        states = plain(waveforms[4:5]).states[0]
    finally:
        handle.remove()
    torch.testing.assert_close(states[:2], expected[:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[2], expected[2] + 1, atol=1e-4, rtol=1e-4)
    assert (states[3] - expected[3]).abs().max() > 0.01


def test_weights_that_change_are_seen(model, waveforms):
    """Behind autograd's back too: nothing is laid out."""
    _, plain = encoders(model, policies.Never())
    before = plain(waveforms[4:5]).states[0]
    model.backbone.encoder.transformer.layers[0].attention.v_proj.weight.data.mul_(2)
    after = plain(waveforms[4:5]).states[0]
    assert torch.equal(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.01


def test_plain_modules_compute_in_float32():
    model = tiny_model(POST_NORM)
    for dtype in ("bfloat16", torch.bfloat16, "int8"):
        with pytest.raises(UsageError, match=r"plain modules \(fast=False\) compute in float32, not in"):
            model.encoder("never", fast=False, dtype=dtype)
    encoder = model.encoder("never", fast=False)
    with pytest.raises(UsageError, match=r"plain modules \(fast=False\) compute in float32, not in bfloat16"):
        encoder.bfloat16()
    assert encoder.to("cpu", torch.float32).float().dtype == "float32"  # what changes nothing is no refusal
    assert encoder.dtype == "float32"
    model.backbone.bfloat16()
    with pytest.raises(UsageError, match=r"plain modules \(fast=False\) need float32 weights, found torch.bfloat16"):
        encoder(torch.zeros(800))


@pytest.mark.parametrize("fast", [True, False])
def test_on_layer_is_called_after_each_layer_and_before_anybody_leaves(model, waveforms, fast):
    policy = spread_policy(model, waveforms)
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, fast=fast)
    called, outputs = [], []
    out = encoder(waveforms, on_layer=called.append)
    executed = int(out.exit_layer.max())
    assert called == list(range(executed + 1))

    def observe(output):
        called.append("heads")
        outputs.append(output)

    called.clear()
    encoder(waveforms, on_layer=called.append, observe=observe)
    assert called == [0, *(call for layer in range(1, executed + 1) for call in ("heads", layer))]
    assert [output.layer for output in outputs] == list(range(1, executed + 1))
    for output in outputs:
        inside = out.exit_layer >= output.layer
        assert len(output.layout) == int(inside.sum())
        entropy = output.mean(-(output.log_probs.exp() * output.log_probs).sum(-1))
        torch.testing.assert_close(entropy, out.scores["entropy"][inside, output.layer - 1], atol=1e-5, rtol=1e-5)


def test_a_call_that_is_broken_off_leaves_the_encoder_as_it_was(model, waveforms):
    encoder = EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, waveforms))
    expected = encoder(waveforms)

    def stop(layer):
        if layer == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder(waveforms, on_layer=stop)
    assert_same_output(encoder(waveforms), expected)


@torch.no_grad()
def test_the_backbones_forward_is_its_stages(model, waveforms):
    num_samples = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=torch.nan)
    states, num_frames = model.backbone(padded, num_samples)
    out = EarlyExitEncoder(model.backbone, None, policies.Never(), fast=False)(waveforms)
    assert len(states) == model.backbone.config.num_layers + 1
    assert num_frames.tolist() == out.num_frames.tolist()
    for row, (expected, count) in enumerate(zip(out.states, num_frames.tolist(), strict=True)):
        for layer, layer_states in enumerate(states):
            torch.testing.assert_close(layer_states[row, :count], expected[layer], atol=1e-5, rtol=1e-4)
    alone, count = model.backbone(waveforms[4][None])
    assert count.tolist() == [int(num_frames[4])]
    for layer, layer_states in enumerate(alone):
        torch.testing.assert_close(layer_states[0], out.states[4][layer], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_an_exported_backbone_agrees(model, waveforms):
    batch = torch.stack([waveforms[4], waveforms[4].flip(0)])
    exported = torch.export.export(model.backbone, (batch,)).module()
    expected, num_frames = model.backbone(batch)
    states, exported_num_frames = exported(batch)
    assert exported_num_frames.tolist() == num_frames.tolist() == [49, 49]
    for layer_states, others in zip(states, expected, strict=True):
        torch.testing.assert_close(layer_states, others, atol=1e-5, rtol=1e-5)


@pytest.fixture
def compiled():
    """A way to compile modules whose graphs torch captures and runs itself, without a compiler; and these graphs."""
    graphs = []

    def capture(graph, inputs):
        graphs.append(graph)
        return graph.forward

    yield lambda module: torch.compile(module, backend=capture), graphs
    torch.compiler.reset()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_backbone_agrees(waveforms, compiled):
    backbone = tiny_model(POST_NORM).backbone
    compile_module, graphs = compiled
    batch = torch.stack([waveforms[4], waveforms[4].flip(0)])
    expected, num_frames = backbone(batch)
    states, compiled_num_frames = compile_module(backbone)(batch)
    assert len(graphs) == 1  # nothing breaks it
    assert compiled_num_frames.tolist() == num_frames.tolist()
    for layer_states, others in zip(states, expected, strict=True):
        torch.testing.assert_close(layer_states, others, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_are_used(model, waveforms, compiled):
    compile_module, graphs = compiled
    fast, plain = encoders(model, spread_policy(model, waveforms))
    expected = fast(waveforms)
    layers = model.backbone.encoder.transformer.layers
    for index, layer in enumerate(layers):
        layers[index] = compile_module(layer)
    assert_same_output(plain(waveforms), expected, tolerance=1e-4)
    assert graphs
