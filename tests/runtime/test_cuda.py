"""On a CUDA device, if there is one: same numbers as on the CPU, graphs, and synchronisation with the host."""

import dataclasses
import math
import threading
import warnings

import pytest
import torch

from daisy import EarlyExitEncoder, policies
from daisy.runtime.linear import round_up_rows
from daisy.runtime.static_buffers import MAX_UTTERANCES
from tests.conftest import KIN_KINDS, KINDS, RARE_KINDS, spread_policy, tiny_model
from tests.runtime.test_cuda_graphs import SCORES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Full precision, and graphs whether they pay or not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr("daisy.runtime.graph_cache.LAUNCH_BOUND_RATIO", math.inf)


def pair(config, policy=None, **settings):
    """The same encoder on the CPU and on the device."""
    models = tiny_model(config), tiny_model(config)
    models[1].backbone.cuda(), models[1].heads.cuda()
    return [EarlyExitEncoder(m.backbone, m.heads, policy or policies.Never(), **settings) for m in models]


def replays(monkeypatch):
    """Layers that are replayed."""
    replayed = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(graph), replay(graph)))
    return replayed


def check(out, expected, atol=1e-4):
    assert out.exit_layer.tolist() == expected.exit_layer.tolist()
    for one, other in zip(out.states, expected.states, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=atol, rtol=1e-3)
    for name, values in expected.scores.items():
        torch.testing.assert_close(out.scores[name], values, atol=atol, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("config", [*KINDS.values(), *RARE_KINDS.values(), *KIN_KINDS.values()])
@pytest.mark.parametrize("chosen", [slice(None), slice(4, 5), slice(0, 1), slice(1, 6)])
@pytest.mark.parametrize("stride", [1, 3])
def test_the_numbers_of_the_cpu(config, waveforms, chosen, stride, monkeypatch):
    cpu, cuda = pair(config, scores=SCORES, score_stride=stride)
    replayed, expected = replays(monkeypatch), cpu(waveforms[chosen])
    for _ in range(5):  # plain, timed, captured, replayed, replayed
        out = cuda([waveform.cuda() for waveform in waveforms[chosen]])
        assert out.states[0].device.type == "cuda"
        check(out, expected)
    assert len(replayed) == 2 * (1 + config.num_layers)


@pytest.mark.parametrize("stride", [1, 2])
def test_utterances_leave_in_any_batch(config, waveforms, monkeypatch, stride):
    policy = spread_policy(tiny_model(config), waveforms)
    cpu, cuda = pair(config, policy, scores=SCORES, score_stride=stride)
    replayed = replays(monkeypatch)
    for batch in 4 * (waveforms, waveforms[::-1], waveforms[2:5], waveforms[:1], waveforms[3:]):
        check(cuda(batch), cpu(batch))
    assert replayed


def test_large_batches_go_without_graphs_until_they_are_small(config, waveforms, monkeypatch):
    policy = spread_policy(tiny_model(config), waveforms)
    cpu, cuda = pair(config, policy, scores=("change",))
    expected = cpu(waveforms)
    rows = [int(expected.num_frames[expected.exit_layer >= layer].sum()) for layer in range(1, config.num_layers + 1)]
    monkeypatch.setattr(
        "daisy.runtime.static_buffers.MAX_STATE_VALUES", round_up_rows(rows[-1]) * config.width
    )  # too few for the front end
    replayed = replays(monkeypatch)
    for _ in range(5):
        check(cuda(waveforms), expected)
    small = [r for r in rows if round_up_rows(r) <= round_up_rows(rows[-1])]
    assert len(small) < len(rows)
    assert len(replayed) == 2 * len(small)


def test_a_graph_that_does_not_pay_is_not_made(config, waveforms, monkeypatch):
    cpu, cuda = pair(config)
    monkeypatch.setattr("daisy.runtime.graph_cache.LAUNCH_BOUND_RATIO", 0.0)
    replayed = replays(monkeypatch)
    for _ in range(5):
        check(cuda(waveforms), cpu(waveforms))
    assert len(replayed) == 2  # of the small kernels before the convolutions


def test_bfloat16(config, waveforms, monkeypatch):
    cpu, cuda = pair(config, dtype="bfloat16", scores=("entropy",))
    replayed, expected = replays(monkeypatch), pair(config, scores=("entropy",))[0](waveforms)
    for _ in range(5):
        out = cuda(waveforms)
        torch.testing.assert_close(out.scores["entropy"], expected.scores["entropy"], atol=0.05, rtol=0)
        for one, other in zip(out.states, expected.states, strict=True):
            assert one.dtype == torch.bfloat16
            assert torch.cosine_similarity(one.cpu().float(), other, dim=-1).mean() > 0.999
    assert len(replayed) == 2 * (1 + config.num_layers)
    assert cpu(waveforms).states[0].dtype == torch.bfloat16


def test_the_host_waits_once_a_layer(config, waveforms):
    _, cuda = pair(config, scores=SCORES)
    batch = [waveform.cuda() for waveform in waveforms]
    for _ in range(4):
        cuda(batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cuda(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    assert len(waits) == config.num_layers, [str(warning.message) for warning in waits]


def test_what_is_no_number_stays_with_its_utterance(config, waveforms):
    cpu, cuda = pair(config, scores=("entropy", "regressed"))
    expected = cpu(waveforms[3:6])
    broken = waveforms[4].clone()
    broken[[0, 8000, -1]] = torch.nan
    for _ in range(5):
        out = cuda([waveforms[3].cuda(), broken.cuda(), waveforms[5].cuda()])
        assert out.states[1].isnan().any()
        for utterance in (0, 2):
            torch.testing.assert_close(out.states[utterance].cpu(), expected.states[utterance], atol=1e-4, rtol=1e-3)
            for name, values in expected.scores.items():
                torch.testing.assert_close(out.scores[name][utterance], values[utterance], atol=1e-4, rtol=1e-3)


def test_other_streams_and_threads(config, waveforms, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cuda.matmul.allow_tf32)
    cpu, cuda = pair(config, scores=("entropy",))
    replayed, expected = replays(monkeypatch), cpu(waveforms)
    for _ in range(4):
        check(cuda(waveforms), expected)
    with torch.cuda.stream(torch.cuda.Stream()):
        check(cuda(waveforms), expected)
    failures = []

    def work():
        try:
            for _ in range(5):
                check(cuda(waveforms), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert len(replayed) > 2 * (1 + config.num_layers)


@pytest.mark.parametrize("keep", ["all", "last"])
def test_heads_that_read_the_feed_forward_output(config, waveforms, monkeypatch, keep):
    cpu, cuda = pair(config, scores=("entropy", "change"), keep=keep)
    for encoder in (cpu, cuda):
        encoder.heads.config = dataclasses.replace(encoder.heads.config, reads="feed_forward")
    replayed, expected = replays(monkeypatch), cpu(waveforms)
    for _ in range(5):
        check(cuda(waveforms), expected)
    assert replayed


def test_a_start_in_inference_mode(config, waveforms):
    cpu, cuda = pair(config, scores=("entropy",))
    with torch.inference_mode():
        for _ in range(4):
            cuda(waveforms)
    check(cuda(waveforms[2:]), cpu(waveforms[2:]))
    check(cuda(waveforms), cpu(waveforms))


def test_more_utterances_than_there_are_buffers_for(config, waveforms):
    cpu, cuda = pair(config, scores=("entropy",))
    many = (waveforms * 6)[: MAX_UTTERANCES + 4]
    for _ in range(4):
        check(cuda(many), cpu(many))


def test_torchs_settings_stay_as_they_were(config, waveforms, monkeypatch):
    """Convolutions in TF32, products not: neither the front end nor a graph of the layers takes the other's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    cpu, cuda = pair(config)
    for _ in range(4):
        check(cuda(waveforms), cpu(waveforms), atol=0.1)
        assert torch.get_float32_matmul_precision() == before


def test_changed_weights(config, waveforms):
    cpu, cuda = pair(config, scores=("entropy",))
    for _ in range(4):
        cuda(waveforms)
    with torch.no_grad():
        for encoder in (cpu, cuda):
            encoder.backbone.encoder.transformer.layers[1].attention.k_proj.weight.mul_(2)
    for _ in range(4):
        check(cuda(waveforms), cpu(waveforms))
