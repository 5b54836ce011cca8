"""A GPU's code path without a GPU: CPU tensors that claim to be elsewhere, checks for operations that make the host
wait, and graphs that repeat the operations that ran while they were captured.
"""

import contextlib
import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from daisy import EarlyExitEncoder, policies
from daisy.models import CTCHeads, CTCHeadsConfig
from daisy.runtime.cuda_graphs import GraphLayerRunner, make_layer_runner
from daisy.runtime.layer_runner import PackedLayerRunner
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packed_heads import PackedCTCHeads
from tests.conftest import KINDS, RARE_KINDS, randomise, spread_policy, tiny_model

DEVICE = torch.device("lazy")  # one that every build of torch knows
SCORES = ("entropy", "confidence", "margin", "change", "regressed", "num_frames")
aten = torch.ops.aten
NEED_VALUES = (aten.nonzero, aten._local_scalar_dense, aten.masked_select, aten.equal, aten.is_nonzero)


def map_tensors(change, value, kind=torch.Tensor):
    """What an operator is given or gives, with its tensors changed; torch's own is four times as slow."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([map_tensors(change, item, kind) for item in value])
    if isinstance(value, dict):
        return {name: map_tensors(change, item, kind) for name, item in value.items()}
    return value


def list_tensors(*values):
    tensors = []
    map_tensors(tensors.append, values)
    return tensors


class Elsewhere(torch.Tensor):
    """A tensor whose device is another; `Watch` computes on what it holds."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("only under a Watch")


class Watch(TorchDispatchMode):
    """Refuses what mixes devices, notes what a GPU's host would wait for, and what a `Graph` is to do again."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = list_tensors(args, kwargs)
        there = [x for x in given if isinstance(x, Elsewhere)]
        here = [x for x in given if not isinstance(x, Elsewhere)]
        copies = func.overloadpacket in (aten._to_copy, aten.copy_)
        target = kwargs.get("device")
        leaves = target is not None and target.type == "cpu"
        arrives = target is not None and target.type == DEVICE.type
        assert copies or not there or all(x.ndim == 0 for x in here), f"{func} on both devices"
        if (leaves and there) or (arrives and here and not kwargs.get("non_blocking")):
            self.waits.append(func)
        by_mask = func.overloadpacket in (aten.index, aten.index_put_) and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if there and (by_mask or func.overloadpacket in NEED_VALUES):
            self.waits.append(func)
        if arrives:
            kwargs["device"] = torch.device("cpu")
        wrappers = {id(x.held): x for x in there}
        held = map_tensors(lambda x: x.held, (args, kwargs), Elsewhere)
        if Graph.capturing is not None and (there or arrives):
            assert not here, f"{func} would take again what the host had at the time"
            assert not leaves, f"{func} would wait in a capture"
            result = Graph.capturing.note(func, *held)
        else:
            result = func(*held[0], **held[1])
        if leaves or not (there or arrives):
            return result
        return map_tensors(lambda x: wrappers[id(x)] if id(x) in wrappers else Elsewhere(x), result)


def elsewhere(module):
    """The module with its tensors there."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(Elsewhere(weight.detach()), requires_grad=False)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = Elsewhere(buffer)
    return module


class Graph:
    """In place of a CUDA graph: the operators that it was captured over run at a replay, into the same tensors.

    They run while it is captured too, for the shapes; what they write over gets its values back.
    """

    capturing = None
    replayed = 0

    def capture_begin(self, pool, capture_error_mode):
        assert Graph.capturing is None
        self.noted, self.before, Graph.capturing = [], [], self

    def note(self, func, args, kwargs):
        if func._schema.is_mutable:
            self.before += [(x, x.clone()) for x in list_tensors(args, kwargs)]
        result = func(*args, **kwargs)
        self.noted.append((func, args, kwargs, result))
        return result

    def capture_end(self):
        Graph.capturing = None
        for tensor, before in self.before[::-1]:
            tensor.copy_(before)

    def replay(self):
        Graph.replayed += 1
        for func, args, kwargs, result in self.noted:
            again = func(*args, **kwargs)
            for then, now in zip(list_tensors(result), list_tensors(again), strict=True):
                if then is not now:
                    then.copy_(now)


class Event:
    """In place of a CUDA event: tells what the device is to have taken; graphs pay where that is nothing."""

    times = itertools.repeat(0.0)

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        assert Graph.capturing is None

    synchronize = record

    def elapsed_time(self, end):
        return next(Event.times)


def attend_by_segment(queries, keys, values, cu_seqlens, max_seqlen):
    """As CUDA's kernel for many lengths, which looks at no length on the host: (F, H, D / H) each."""
    segments = (torch.arange(len(queries), device=queries.device)[:, None] >= cu_seqlens[1:]).sum(1)
    weights = queries.transpose(0, 1) @ keys.permute(1, 2, 0)
    weights = weights.masked_fill(segments[:, None] != segments, -torch.inf).softmax(-1)
    return (weights @ values.transpose(0, 1)).transpose(0, 1)


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.fixture
def cuda(monkeypatch):
    """What `daisy.runtime.cuda_graphs` takes from torch.cuda."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr("daisy.runtime.attention.has_varlen_attention", lambda *args: True)
    monkeypatch.setattr("daisy.runtime.attention.varlen_attention", attend_by_segment)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda which: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
    monkeypatch.setattr(Graph, "replayed", 0)
    monkeypatch.setattr(Graph, "capturing", None)


@pytest.mark.parametrize("config", [*KINDS.values(), RARE_KINDS["post-norm"]], ids=[*KINDS, "rare"])
@pytest.mark.parametrize(
    ("stride", "whole", "alternate", "reads"), [(1, True, False, "feed_forward"), (3, False, True, "states")]
)
def test_batches_go_through_graphs(model, config, waveforms, monkeypatch, cuda, stride, whole, alternate, reads):
    """Rows and utterances that are added, and what another batch has left there, do not show."""
    monkeypatch.setattr(Event, "times", itertools.cycle([0.0, 1e9] if alternate else [0.0]))
    model.heads.config = dataclasses.replace(model.heads.config, reads=reads)
    monkeypatch.setattr(
        "daisy.runtime.cuda_graphs.MEMORY_FRACTION", 1 / 256 if whole else 2.0**-60
    )  # the front end is too large, but for its first part
    policy = spread_policy(model, waveforms)
    encoder_here = EarlyExitEncoder(model.backbone, model.heads, policy, scores=SCORES, score_stride=stride)
    batches = [waveforms, waveforms[6:], waveforms[1:4], waveforms[::-1], waveforms[3:]]
    all_expected = [encoder_here(batch) for batch in batches]
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: contextlib.nullcontext())
    there = tiny_model(config)
    with torch.no_grad(), Watch() as watch:
        backbone, heads = elsewhere(there.backbone), elsewhere(there.heads)
        heads.config = model.heads.config
        encoder = EarlyExitEncoder(backbone, heads, policy, scores=SCORES, score_stride=stride)
        encoder._runner = GraphLayerRunner(*encoder.packed, encoder.score_names, stride)
        for turn, (batch, expected) in itertools.product(range(4), zip(batches, all_expected, strict=True)):
            moved = [Elsewhere(waveform) for waveform in batch]
            if turn % 2:
                with monkeypatch.context() as patch:  # a batch that is broken off
                    patch.setattr(type(policy), "decide", interrupt)
                    with pytest.raises(KeyboardInterrupt):
                        encoder(moved)
            watch.waits.clear()
            out = encoder(moved)
            assert len(watch.waits) == int(expected.exit_layer.max())
            assert out.exit_layer.tolist() == expected.exit_layer.tolist()
            for one, other in zip(out.states, expected.states, strict=True):
                torch.testing.assert_close(one.held, other, atol=1e-5, rtol=1e-4)
            for one, other in zip(out.scores.values(), expected.scores.values(), strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert Graph.replayed >= 1 + config.num_layers  # the front end, or its first part, and every layer at the least


@pytest.mark.parametrize(
    ("when", "error"),
    [
        ("note", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")),
        ("capture_end", RuntimeError("CUDA error: out of memory")),
        ("capture_end", RuntimeError("CUDA error: unspecified launch failure")),
    ],
)
def test_no_memory_for_a_graph(model, config, waveforms, monkeypatch, cuda, when, error):
    """It goes on without, and does not try again; other failures are shown."""
    waveforms = waveforms[4:]
    expected = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=SCORES)(waveforms)
    tried, real = [], getattr(Graph, when)

    def fail(self, *args, **kwargs):
        tried.append(self)
        real(self, *args, **kwargs)
        raise error

    monkeypatch.setattr(Graph, when, fail)
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: contextlib.nullcontext())
    there, moved = tiny_model(config), [Elsewhere(waveform) for waveform in waveforms]
    with torch.no_grad(), Watch():
        encoder = EarlyExitEncoder(elsewhere(there.backbone), elsewhere(there.heads), policies.Never(), scores=SCORES)
        encoder._runner = GraphLayerRunner(*encoder.packed, encoder.score_names)
        encoder(moved), encoder(moved)
        if "memory" not in str(error):
            with pytest.raises(RuntimeError, match="unspecified launch failure"):
                encoder(moved)
            return
        for _ in range(3):
            for one, other in zip(encoder(moved).states, expected.states, strict=True):
                torch.testing.assert_close(one.held, other, atol=1e-5, rtol=1e-4)
    assert len(tried) == 2 + config.num_layers  # the front end, as a whole and its first part, and each layer
    assert Graph.replayed == 0


@pytest.mark.parametrize("config", [*KINDS.values(), *RARE_KINDS.values()], ids=[*KINDS, *RARE_KINDS])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("count", [7, 1])
def test_the_same_numbers_and_one_wait_a_layer(model, config, waveforms, monkeypatch, stride, count):
    waveforms = waveforms[-count:]
    policy = spread_policy(model, waveforms) if count > 1 else policies.Fixed(layer=2)

    def runs(backbone, heads):
        for scores, rule in ((SCORES, policies.Never()), (("entropy",), policy), ((), policies.Never())):
            yield EarlyExitEncoder(backbone, heads, rule, scores=scores, score_stride=stride)

    all_expected = [encoder(waveforms) for encoder in runs(model.backbone, model.heads)]
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: contextlib.nullcontext())
    there = tiny_model(config)
    with torch.no_grad(), Watch() as watch:
        moved = [Elsewhere(waveform) for waveform in waveforms]
        encoders = runs(elsewhere(there.backbone), elsewhere(there.heads))
        for encoder, expected in zip(encoders, all_expected, strict=True):
            watch.waits.clear()
            out = encoder(moved)
            layers = int(expected.exit_layer.max()) if encoder.score_names else 0
            assert len(watch.waits) == layers, watch.waits
            assert out.exit_layer.tolist() == expected.exit_layer.tolist()
            for one, other in zip(out.states, expected.states, strict=True):
                assert one.device.type == DEVICE.type
                torch.testing.assert_close(one.held, other, atol=1e-5, rtol=1e-4)
            for one, other in zip(out.scores.values(), expected.scores.values(), strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize(("branch", "alternate"), [("units", True), ("linear", False), ("attention", True)])
def test_exits_at_some_layers_go_through_graphs(waveforms, monkeypatch, cuda, branch, alternate):
    """An exit's units wait through the layers between, whether these are replayed or not."""
    monkeypatch.setattr(Event, "times", itertools.cycle([0.0, 1e9, 0.0] if alternate else [0.0]))

    def make():
        model = tiny_model()
        if branch == "units":
            return model.backbone, model.heads
        config = CTCHeadsConfig(layers=(2, 4), width=32, num_tokens=9, branch=branch, num_heads=4)
        return model.backbone, randomise(CTCHeads(config), 3)

    scores, exits = ("entropy", "change"), (2, 4)
    backbone, heads = make()
    full = EarlyExitEncoder(backbone, heads, policies.Never(), scores=scores, exits=exits)(waveforms).scores["entropy"]
    policy = policies.Entropy(threshold=float(full[:, 0].sort().values[2:4].mean()))
    batches = [waveforms, waveforms[4:]]
    encoder_here = EarlyExitEncoder(backbone, heads, policy, scores=scores, exits=exits)
    all_expected = [encoder_here(batch) for batch in batches]
    assert len(all_expected[0].exit_layer.unique()) > 1
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: contextlib.nullcontext())
    with torch.no_grad(), Watch() as watch:
        encoder = EarlyExitEncoder(*map(elsewhere, make()), policy, scores=scores, exits=exits)
        encoder._runner = GraphLayerRunner(*encoder.packed, encoder.score_names, 1, encoder.exits)
        for _, (batch, expected) in itertools.product(range(4), zip(batches, all_expected, strict=True)):
            watch.waits.clear()
            out = encoder([Elsewhere(waveform) for waveform in batch])
            assert len(watch.waits) == sum(layer <= int(expected.exit_layer.max()) for layer in exits)
            assert out.exit_layer.tolist() == expected.exit_layer.tolist()
            for name, values in out.scores.items():
                torch.testing.assert_close(values, expected.scores[name], atol=1e-4, rtol=1e-4, equal_nan=True)
    assert Graph.replayed > 4


def test_scores_that_the_host_computes_go_without_graphs(monkeypatch):
    monkeypatch.setattr("daisy.runtime.packed_backbone.has_varlen_attention", lambda *args: True)
    backbone = PackedBackbone(tiny_model().backbone)
    heads = PackedCTCHeads(CTCHeads(CTCHeadsConfig(layers=(2, 4), width=32, num_tokens=5)))
    for scores, kind in ((["entropy"], GraphLayerRunner), (["entropy", "text_change"], PackedLayerRunner)):
        assert type(make_layer_runner(backbone, heads, scores)) is kind
    attentive = CTCHeads(CTCHeadsConfig(layers=(2, 4), width=32, num_tokens=5, branch="attention"))
    assert type(make_layer_runner(backbone, PackedCTCHeads(attentive), ["entropy"])) is PackedLayerRunner
