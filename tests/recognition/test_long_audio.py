"""Long recordings in windows: the same text as in one run, wherever the windows are cut."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from daisy import Backbone, Model, policies
from daisy.errors import AudioError
from daisy.extraction import windows
from daisy.models import CTCHeads, CTCHeadsConfig
from daisy.recognition import Recogniser, decode_greedily
from daisy.recognition.long_audio import find_seam, join_windows, transcribe_in_windows
from tests.conftest import PRE_NORM, randomise
from tests.recognition.conftest import TOKENS


@pytest.fixture(scope="module")
def local_model():
    """A recogniser whose frames see their neighbours only: without attention, and without statistics over time."""
    backbone = randomise(Backbone(dataclasses.replace(PRE_NORM, normalize=False)), 4)
    exits = randomise(CTCHeads(CTCHeadsConfig(layers=(2, 4), width=32, num_tokens=len(TOKENS))), 5)
    with torch.no_grad():
        for layer in backbone.encoder.transformer.layers:
            layer.attention.out_proj.weight.zero_()
        exits.classifiers["2"].weight.mul_(3)
        exits.classifiers["4"].weight.mul_(3)
    return Model(backbone=backbone, ctc=exits, tokens=TOKENS)


@pytest.mark.parametrize("num_samples", [80_000, 80_321, 95_000])
def test_windows_give_the_text_of_one_run(local_model, num_samples):
    """Several short utterances in one recording; what a frame sees is less than the context."""
    pieces = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (20_000, 31_000, 44_000)]
    waveform = 0.1 * torch.cat(pieces)[:num_samples]
    recogniser = Recogniser(local_model, policies.Fixed(layer=1), scores=["entropy"])
    (whole,) = recogniser([waveform])
    assert len(whole.words) >= 10
    read = lambda start, stop: waveform[start:stop]  # noqa: E731
    split = transcribe_in_windows(recogniser, read, num_samples, window_sec=1.5, context_sec=0.4)
    assert len(split.window_exits) > 5
    assert (split.text, split.num_frames, split.exit_layer) == (whole.text, whole.num_frames, 2)
    assert [(w.text, w.start_sec, w.end_sec) for w in split.words] == [
        (w.text, w.start_sec, w.end_sec) for w in whole.words
    ]
    assert split.confidence == pytest.approx(whole.confidence, rel=1e-4)
    assert split.scores["entropy"][1] == pytest.approx(whole.scores["entropy"][1], rel=0.1)
    one = transcribe_in_windows(recogniser, read, num_samples, window_sec=10.0, context_sec=0.4)
    assert (one.text, one.window_exits) == (whole.text, [2])


def test_the_deepest_windows_exit_is_told(local_model):
    waveform = torch.cat([0.001 * torch.randn(30_000), torch.randn(30_000)])
    read = lambda start, stop: waveform[start:stop]  # noqa: E731
    never = Recogniser(local_model, policies.Never(), scores=["entropy"])
    entropies = [
        float(never.run([read(*windows.span(window, PRE_NORM))])[0].scores["entropy"][0, 0])
        for window in windows.cut(187, *windows.to_frames(1.0, 0.2, PRE_NORM))
    ]
    assert len(entropies) > 3
    threshold = sorted(entropies)[1] + 1e-4
    recogniser = Recogniser(local_model, policies.Entropy(threshold=threshold))
    split = transcribe_in_windows(recogniser, read, 60_000, window_sec=1.0, context_sec=0.2)
    assert split.window_exits == [2 if entropy <= threshold else 4 for entropy in entropies]
    assert split.exit_layer == 4
    assert [score is None for score in split.scores["entropy"]] == [True, False, True, False]  # exits at 2 and 4


def test_windows_that_memory_does_not_hold_together_run_apart(local_model):
    class Small(Recogniser):
        def run(self, waveforms, num_samples=None):
            if sum(map(len, waveforms)) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().run(waveforms, num_samples)

    waveform = 0.1 * torch.randn(80_000, generator=torch.Generator().manual_seed(1))
    how = {"window_sec": 1.0, "context_sec": 0.2, "batch_sec": 5.0}
    read = lambda start, stop: waveform[start:stop]  # noqa: E731
    limit = 40_000
    together = transcribe_in_windows(Recogniser(local_model, "never"), read, 80_000, **how)
    apart = transcribe_in_windows(Small(local_model, "never"), read, 80_000, **how)
    assert len(apart.window_exits) == len(together.window_exits) > 5
    assert apart.text == together.text
    assert [word.end_sec for word in apart.words] == [word.end_sec for word in together.words]
    limit = 10_000
    with pytest.raises(AudioError, match="^one of its windows does not fit into memory"):
        transcribe_in_windows(Small(local_model, "never"), read, 80_000, **how)


def collapse_at(seam, before, after):
    """Tokens of a path that changes from one window to the other."""
    path = torch.cat([before[:seam], after[seam:]])
    return decode_greedily(F.one_hot(path, 9).float().log()).tokens


@pytest.mark.parametrize(
    ("before", "after", "tokens"),
    [
        ([5, 0, 0, 0, 0, 6, 0, 0], [5, 0, 0, 0, 0, 6, 0, 0], (5, 6)),
        ([0, 0, 0, 5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 5, 0, 0], (5,)),  # a token two frames later
        ([0, 0, 0, 0, 0, 5, 0, 0], [0, 0, 0, 5, 0, 0, 0, 0], (5,)),
        ([5, 5, 5, 5, 5, 5, 5, 5], [0, 0, 5, 5, 5, 5, 5, 5], (5,)),  # within one token
        ([5, 0, 5, 0, 7, 7, 7, 7], [8, 8, 8, 0, 5, 0, 0, 0], (5, 5, 5)),  # hardly anything in common
        ([5, 5], [6, 6], (5, 6)),  # nothing in common
        ([], [], ()),
    ],
)
def test_no_token_is_lost_or_doubled_at_a_seam(before, after, tokens):
    paths = [torch.tensor(path, dtype=torch.int64) for path in (before, after)]
    seam = find_seam(*paths)
    assert 0 <= seam <= len(before)
    assert not seam or seam == len(before) // 2 or before[seam - 1] == after[seam - 1]
    assert (collapse_at(seam, *paths) if before else ()) == tokens


@pytest.mark.parametrize("num_frames", [10, 57, 58, 200, 203])
@pytest.mark.parametrize("context", [0, 4, 9])
def test_every_frame_is_there_once(num_frames, context):
    frames = torch.arange(num_frames)
    path = torch.randint(9, (num_frames,), generator=torch.Generator().manual_seed(3))
    outputs = torch.cat([F.one_hot(path, 9), frames[:, None]], 1)
    cuts = windows.cut(num_frames, 30, context)
    joined = join_windows(cuts, [outputs[window.start : window.stop] for window in cuts])
    assert joined[:, -1].tolist() == frames.tolist()
