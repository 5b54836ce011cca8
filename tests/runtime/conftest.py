"""The backbone by its plain modules and packed, layer by layer."""

import pytest
import torch

from daisy.models.packing import PackedLayout
from daisy.runtime import private_ops
from daisy.runtime.packed_backbone import PackedBackbone


def use_mkl(monkeypatch):
    """Use MKL for all float32 products."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        pytest.skip("this build of torch has no packed MKL products")
    monkeypatch.setattr("daisy.runtime.linear.MKL_MIN_FEATURES", 1)
    monkeypatch.setattr(private_ops, "has_mkl_linear", lambda: True)


@torch.no_grad()
def run_plain(backbone, waveforms):
    """Return states of layers 0 to L, feed-forward outputs of layers 1 to L, (F, D) each, and each number of frames."""
    num_samples = torch.tensor([len(w) for w in waveforms])
    features, num_frames = backbone.front_end(torch.nn.utils.rnn.pad_sequence(waveforms, True), num_samples)
    states, fed = [backbone.embed(features, num_frames)], []
    for layer in range(1, backbone.config.num_layers + 1):
        state, feed_forward = backbone.layer_with_feed_forward(layer, states[-1], num_frames)
        states.append(state)
        fed.append(feed_forward)
    lengths = num_frames.tolist()
    layout = PackedLayout(num_frames)
    return [layout.unpad(state) for state in states], [layout.unpad(output) for output in fed], lengths


@torch.no_grad()
def run_packed(backbone, waveforms, lengths, dtype="float32", return_feed_forward=True):
    """Return the first two of these from the packed backbone."""
    packed, layout = PackedBackbone(backbone, dtype), PackedLayout(torch.tensor(lengths))
    states, fed = [packed.embed(packed.front_end(waveforms), layout)], []
    for layer in range(1, backbone.config.num_layers + 1):
        state, feed_forward = packed.layer(layer, states[-1], layout, return_feed_forward)
        states.append(state)
        fed.append(feed_forward)
    return states, fed
