import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daisy import EarlyExitEncoder, policies
from daisy.errors import AudioError, UsageError
from daisy.extraction.windows import Window, cut, run
from tests.conftest import tiny_model


def check_windows(num_frames, length, context):
    windows = cut(num_frames, length, context)
    kept = [frame for window in windows for frame in range(window.first, window.last)]
    assert kept == list(range(num_frames))
    assert len({(window.start, window.stop) for window in windows}) == len(windows)  # none is computed twice
    for window in windows:
        assert 0 <= window.start <= window.first < window.last <= window.stop <= num_frames
        assert window.stop - window.start == length or window.start == 0
        assert window.stop - window.start <= length
        assert window.first - window.start >= context or window.start == 0
        assert window.stop - window.last == context or window.stop == num_frames


@pytest.mark.parametrize(
    ("num_frames", "length", "context"),
    [(1, 10, 2), (6, 10, 2), (7, 10, 2), (11, 10, 2), (14, 10, 2), (15, 10, 2), (100, 10, 2), (99, 7, 0), (50, 9, 4)],
)
def test_windows_keep_every_frame_once(num_frames, length, context):
    check_windows(num_frames, length, context)


@settings(max_examples=200)
@given(st.integers(1, 300), st.integers(0, 20), st.integers(1, 30))
def test_windows_of_any_size_keep_every_frame_once(num_frames, context, step):
    check_windows(num_frames, step + 2 * context, context)


def test_a_window_by_hand():
    assert cut(13, 10, 2) == [Window(0, 0, 6, 8), Window(3, 6, 13, 13)]
    assert cut(17, 10, 2) == [Window(0, 0, 6, 8), Window(4, 6, 12, 14), Window(7, 12, 17, 17)]
    assert cut(10, 10, 2) == [Window(0, 0, 10, 10)]


def test_pieces_are_the_windows_own_runs(model):
    """Each window's samples give its states; deciding is the window's own."""
    waveform = torch.randn(40000, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.01, 0.3, 40000)
    scores = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["entropy"])([waveform]).scores
    policy = policies.Entropy(threshold=float(scores["entropy"][0].median()))
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, keep="last")
    read = lambda start, stop: waveform[start:stop]  # noqa: E731
    pieces = list(run(encoder, read, len(waveform), window_sec=0.8, context_sec=0.2, batch_sec=2.0))
    assert sum(len(piece.states) for piece in pieces) == (40000 - 400) // 320 + 1 == 124
    assert len(pieces) == 6  # of 20 frames each, but for the last
    second = encoder([waveform[10 * 320 : 49 * 320 + 400]])
    assert int(second.exit_layer[0]) == pieces[1].exit_layer
    torch.testing.assert_close(pieces[1].states, second.states[0][0, 10:30], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pieces[1].scores["entropy"], second.scores["entropy"][0], equal_nan=True)


def test_windows_that_memory_does_not_hold_together_run_apart(model):
    class Small(EarlyExitEncoder):
        def __call__(self, waveforms):
            runs.append(len(waveforms))
            if len(waveforms) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(waveforms)

    waveform = 0.1 * torch.randn(40000, generator=torch.Generator().manual_seed(1))
    encoder = Small(model.backbone, None, policies.Fixed(layer=2), keep="last")
    pieces = {}
    for limit in (6, 2):
        runs = []
        read = lambda start, stop: waveform[start:stop]  # noqa: E731
        pieces[limit] = list(run(encoder, read, len(waveform), window_sec=0.8, context_sec=0.2, batch_sec=4.9))
        assert runs == ([6] if limit == 6 else [6, 3, 1, 1, 1, 1, 1, 1])
    for one, other in zip(pieces[6], pieces[2], strict=True):
        torch.testing.assert_close(one.states, other.states, atol=1e-5, rtol=1e-4)
    limit = 0
    with pytest.raises(AudioError, match="^one of its windows does not fit into memory"):
        list(run(encoder, read, len(waveform), window_sec=0.8, context_sec=0.2))


def test_a_long_enough_context_changes_little():
    model = tiny_model()
    waveform = 0.1 * torch.randn(64000, generator=torch.Generator().manual_seed(2))
    encoder = EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=2), keep="last")
    whole = encoder([waveform]).states[0][0]
    read = lambda start, stop: waveform[start:stop]  # noqa: E731

    def error(context_sec):
        pieces = run(encoder, read, len(waveform), window_sec=1.6, context_sec=context_sec)
        return float((torch.cat([piece.states for piece in pieces]) - whole).square().mean())

    assert error(0.6) < error(0.0)
    with pytest.raises(UsageError, match=r"a window of 1 s with 0.5 s of context on each side keeps nothing"):
        next(run(encoder, read, len(waveform), window_sec=1.0, context_sec=0.5))
    with pytest.raises(UsageError, match=r"must be seconds, found nan and 0.5"):
        next(run(encoder, read, len(waveform), window_sec=float("nan"), context_sec=0.5))
    for window_sec, context_sec in ((0.0, 2.0), (1.0, -0.1)):
        with pytest.raises(UsageError, match="a window must have a frame"):
            next(run(encoder, read, len(waveform), window_sec=window_sec, context_sec=context_sec))
