"""Texts of attention decoders: the search, their times, and their use with CTC's."""

import itertools

import pytest
import torch

import daisy
from daisy import CheckpointError, UsageError, checkpoints
from daisy.models import AttentionDecoders, DecodersConfig
from daisy.recognition import AttentionSearch, Recogniser, transcribe
from daisy.recognition.attention import count_frames
from daisy.recognition.decoding import align
from tests.cli.running import run
from tests.conftest import randomise
from tests.recognition.conftest import tiny_recogniser

pytest.importorskip("torchaudio")


@pytest.fixture(scope="module")
def model():
    model = tiny_recogniser("conformer")
    config = DecodersConfig(
        layers=model.ctc.config.layers, width=32, num_tokens=len(model.tokens), begin=2, end=2, num_blocks=1,
        num_heads=4, ffn_width=24,
    )  # fmt: skip
    decoders = randomise(AttentionDecoders(config), 7)
    return daisy.Model(backbone=model.backbone, ctc=model.ctc, tokens=model.tokens, decoders=decoders)


def score(model, layer, states, text):
    """The log-probability of a text and its end."""
    previous = torch.tensor([[2, *text]])
    logits = model.decoders(layer, states[None], None, previous)[0]
    logits[:, model.tokens.blank] = float("-inf")
    return float(logits.log_softmax(-1)[range(len(text) + 1), [*text, 2]].sum())


@torch.no_grad()
def test_a_wide_beam_finds_the_likeliest_text(model):
    states = torch.randn(2, 32, generator=torch.Generator().manual_seed(3)) * 2
    log_probs = model.ctc(4, states[None])[0].log_softmax(-1)
    letters = [token for token in range(len(model.tokens)) if token not in (model.tokens.blank, 2)]
    texts = [text for size in range(3) for text in itertools.product(letters, repeat=size)]
    texts = [text for text in texts if count_frames(list(text)) <= 2]
    best = max(texts, key=lambda text: score(model, 4, states, text) / (len(text) + 1))
    hypothesis = AttentionSearch(model, beam_size=300).read(4, states, log_probs)
    assert hypothesis.tokens == best
    assert hypothesis.score == pytest.approx(score(model, 4, states, best), abs=1e-4)
    assert len(hypothesis.frames) == len(hypothesis.tokens)


def test_times_are_those_at_which_ctc_says_the_tokens():
    path = torch.tensor([0, 3, 3, 0, 3, 4, 0])
    log_probs = (torch.nn.functional.one_hot(path, 5) * 5.0).log_softmax(-1)
    assert align(log_probs, [3, 3, 4], 0) == (range(1, 3), range(4, 5), range(5, 6))
    assert align(log_probs, [], 0) == ()
    assert (count_frames([3, 3, 4]), count_frames([])) == (4, 0)


def test_outputs_that_are_no_numbers_are_refused(model):
    states = torch.full((5, 32), torch.nan)
    with pytest.raises(CheckpointError, match="the attention decoder at layer 4 gives no numbers"):
        AttentionSearch(model).read(4, states, torch.zeros(5, len(model.tokens)).log_softmax(-1))


def test_each_recording_is_read_at_its_exit_alone_and_in_a_batch(model, speech):
    recognise = Recogniser(model, "random", histogram=(1, 1, 1), decode=AttentionSearch(model, 3))
    together = recognise(speech)
    assert len({transcript.exit_layer for transcript in together}) > 1
    for waveform, transcript in zip(speech, together, strict=True):
        (alone,) = recognise([waveform])
        assert (alone.text, alone.exit_layer) == (transcript.text, transcript.exit_layer)
    by_ctc = Recogniser(model, "random", histogram=(1, 1, 1))(speech)
    assert [t.exit_layer for t in by_ctc] == [t.exit_layer for t in together]
    assert [t.text for t in by_ctc] != [t.text for t in together]
    for transcript in together:
        times = [word.start_sec for word in transcript.words]
        assert times == sorted(times)


def test_they_stand_in_the_file_and_are_cut_with_it(model, tmp_path):
    daisy.save(model, tmp_path / "both.safetensors")
    again = daisy.load(tmp_path / "both.safetensors")
    torch.testing.assert_close(again.decoders.state_dict(), model.decoders.state_dict())
    assert "attention decoders: depth 1" in repr(again)
    cut = checkpoints.truncate(again, 4)
    assert cut.decoders.config.layers == (2, 4)
    with pytest.raises(CheckpointError, match="do not fit CTC exits"):
        daisy.Model(backbone=cut.backbone, ctc=cut.ctc, tokens=cut.tokens, decoders=model.decoders)
    with pytest.raises(CheckpointError, match="attention decoders need CTC exits"):
        daisy.Model(backbone=cut.backbone, decoders=model.decoders)


def test_without_decoders_or_in_windows_it_says_so(model, speech):
    with pytest.raises(CheckpointError, match="no attention decoders"):
        AttentionSearch(tiny_recogniser("conformer"))
    recognise = Recogniser(model, decode=AttentionSearch(model))
    with pytest.raises(UsageError, match="as a whole, not in windows"):
        list(transcribe(recognise, [], window_sec=30.0))


def test_the_command_reads_with_them(model, tmp_path, speech):
    daisy.save(model, tmp_path / "both.safetensors")
    (tmp_path / "a.wav").write_bytes(daisy.audio.encode_wav(speech[-1].clamp(-1, 1)))
    call = ("transcribe", "a.wav", "-c", "both.safetensors", "-p", "fixed", "--set", "layer=4")
    done = run(*call, "--decoder", "attention", "--beam", "3", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = Recogniser(model, "fixed", layer=4, decode=AttentionSearch(model, 3))(
        [daisy.audio.read(tmp_path / "a.wav")]
    )
    assert expected[0].text in done.stdout
    done = run(*call, "--decoder", "attention", "--lexicon", "a.txt", cwd=tmp_path)
    assert (done.returncode, "not of --decoder attention" in done.stderr) == (2, True)
    assert "attention decoders" in run("info", "both.safetensors", cwd=tmp_path).stdout
