"""A GPU's path without a GPU: tensors of the CPU that say they are elsewhere, and an eye on who makes the host wait."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from daisy import EarlyExitEncoder, graphs, policies
from tests.conftest import tiny_model
from tests.test_encoder import spread_policy

DEVICE = torch.device("lazy")  # one that every build of torch knows
SCORES = ("entropy", "confidence", "margin", "change", "regressed", "num_frames")
aten = torch.ops.aten
NEED_VALUES = (aten.nonzero, aten._local_scalar_dense, aten.masked_select, aten.equal, aten.is_nonzero)


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
    """Refuses what mixes devices, and notes what a GPU's host would wait for."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given, _ = tree_flatten((args, kwargs))
        there = [x for x in given if isinstance(x, Elsewhere)]
        here = [x for x in given if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)]
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
        held = tree_map_only(Elsewhere, lambda x: x.held, (args, kwargs))
        found = func(*held[0], **held[1])
        if leaves or not (there or arrives):
            return found
        return tree_map_only(torch.Tensor, lambda x: wrappers[id(x)] if id(x) in wrappers else Elsewhere(x), found)


def elsewhere(module):
    """The module with its tensors there."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(Elsewhere(weight.detach()), requires_grad=False)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = Elsewhere(buffer)
    return module


class Now:
    """A replay that only runs, every second one without buffers where ``alternate`` says so."""

    alternate, made = False, 0

    def __init__(self, buffers):
        Now.made += 1
        self.pays = not self.alternate or Now.made % 2 == 0

    def __call__(self, run):
        return run()

    def timed(self, run):
        return run()


def attend_by_owner(split, layout):
    """As CUDA's kernel for many lengths, which looks at no length on the host."""
    queries, keys, values = split.permute(1, 2, 0, 3)
    same = layout.owners[:, None] == layout.owners
    weights = (queries @ keys.transpose(1, 2)).masked_fill(~same, -torch.inf).softmax(-1)
    return (weights @ values).transpose(0, 1).flatten(1)


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.fixture
def no_graphs(monkeypatch):
    """`daisy.graphs` but for the graphs."""
    monkeypatch.setattr("daisy.attention._padded", attend_by_owner)
    monkeypatch.setattr(graphs, "_Replay", Now)
    for name in ("current_stream", "Stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))


@pytest.mark.parametrize(
    ("stride", "whole", "alternate", "reads"), [(1, True, False, "feed_forward"), (3, False, True, "states")]
)
def test_batches_go_through_buffers(model, config, waveforms, monkeypatch, no_graphs, stride, whole, alternate, reads):
    """Rows and utterances that are added, and what another batch has left there, do not show."""
    monkeypatch.setattr(Now, "alternate", alternate)
    model.heads.config = dataclasses.replace(model.heads.config, reads=reads)
    monkeypatch.setattr(graphs, "MEMORY", 256 if whole else 2**60)  # the front end is too large, but for its first part
    policy = spread_policy(model, waveforms)
    expected = EarlyExitEncoder(model.backbone, model.heads, policy, scores=SCORES, score_stride=stride)
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: contextlib.nullcontext())
    there = tiny_model(config)
    with torch.no_grad(), Watch():
        backbone, heads = elsewhere(there.backbone), elsewhere(there.heads)
        heads.config = model.heads.config
        encoder = EarlyExitEncoder(backbone, heads, policy, scores=SCORES, score_stride=stride)
        encoder._known = graphs.Graphs(*encoder.inference, encoder.score_names, stride)
        for batch in (waveforms, waveforms[6:], waveforms[1:4], waveforms[3:]):
            moved = [Elsewhere(waveform) for waveform in batch]
            with monkeypatch.context() as patch:  # a batch that is broken off
                patch.setattr(type(policy), "decide", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    encoder(moved)
            want, out = expected(batch), encoder(moved)
            assert encoder._known._known
            assert out.exit_layer.tolist() == want.exit_layer.tolist()
            for one, other in zip(out.states, want.states, strict=True):
                torch.testing.assert_close(one.held, other, atol=1e-5, rtol=1e-4)
            for one, other in zip(out.scores.values(), want.scores.values(), strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("count", [7, 1])
def test_the_same_numbers_and_one_wait_a_layer(model, config, waveforms, monkeypatch, stride, count):
    waveforms = waveforms[-count:]
    policy = spread_policy(model, waveforms) if count > 1 else policies.Fixed(layer=2)

    def runs(backbone, heads):
        for scores, rule in ((SCORES, policies.Never()), (("entropy",), policy), ((), policies.Never())):
            yield EarlyExitEncoder(backbone, heads, rule, scores=scores, score_stride=stride)

    expected = [encoder(waveforms) for encoder in runs(model.backbone, model.heads)]
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: contextlib.nullcontext())
    there = tiny_model(config)
    with torch.no_grad(), Watch() as watch:
        moved = [Elsewhere(waveform) for waveform in waveforms]
        for encoder, want in zip(runs(elsewhere(there.backbone), elsewhere(there.heads)), expected, strict=True):
            watch.waits.clear()
            out = encoder(moved)
            layers = int(want.exit_layer.max()) if encoder.score_names else 0
            assert len(watch.waits) == layers, watch.waits
            assert out.exit_layer.tolist() == want.exit_layer.tolist()
            for one, other in zip(out.states, want.states, strict=True):
                assert one.device.type == DEVICE.type
                torch.testing.assert_close(one.held, other, atol=1e-5, rtol=1e-4)
            for one, other in zip(out.scores.values(), want.scores.values(), strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)
