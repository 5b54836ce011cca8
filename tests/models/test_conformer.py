import dataclasses
import sys

import pytest
import torch

from daisy import CheckpointError
from daisy.models import Conformer, ConformerConfig, CTCHeads, CTCHeadsConfig
from daisy.models import conformer as conformer_module
from daisy.models.lengths import count_frames
from tests.conftest import randomise

torchaudio = pytest.importorskip("torchaudio")
TINY = ConformerConfig(num_layers=4, width=32, ffn_width=48, num_heads=4, kernel=7, num_mels=20)
SPLIT = dataclasses.replace(TINY, split_blocks=(1, 2))


def make(config=TINY, seed=0):
    return randomise(Conformer(config), seed)


@pytest.mark.parametrize(
    ("config", "millions", "parameters"),
    [(ConformerConfig(), 31.54, 31_536_128), (ConformerConfig.splitformer(), 36.68, 36_683_264)],
)
def test_published_shapes_have_the_published_sizes(config, millions, parameters):
    """31.5 M and 36.7 M in arXiv:2309.09546 and 2506.18035, with six exits of 256 tokens."""
    with torch.device("meta"):
        backbone = Conformer(config)
        heads = CTCHeads(CTCHeadsConfig(layers=tuple(config.block_ends), width=config.width, num_tokens=256))
    assert {sum(p.numel() for p in layer.parameters()) for layer in backbone.layers} == {2_573_568}
    count = sum(p.numel() for module in (backbone, heads) for p in module.parameters())
    assert count == parameters
    assert round(count / 1e6, 2) == millions


@torch.no_grad()
def run_as_published(backbone, mel):
    """The public code's order of computation in torchaudio's own modules: (1, S, M) to the states at block ends."""
    config = backbone.config
    ours = backbone.state_dict()

    def make_theirs(prefixes):
        theirs = torchaudio.models.Conformer(
            config.width, config.num_heads, config.ffn_width, len(prefixes), config.kernel, dropout=config.dropout
        )
        for layer, prefix in zip(theirs.conformer_layers, prefixes, strict=True):
            layer.load_state_dict({k.removeprefix(prefix): v for k, v in ours.items() if k.startswith(prefix)})
        return theirs.eval()

    x = mel.transpose(1, 2)
    for index in range(2):
        x = torch.nn.functional.conv1d(
            x, ours[f"subsampling.{index}.weight"], ours[f"subsampling.{index}.bias"], stride=2
        )
    x = x.transpose(1, 2)
    place = torch.arange(x.shape[1], dtype=torch.float64)[:, None]
    rate = 10000.0 ** (-torch.arange(0, config.width, 2, dtype=torch.float64) / config.width)
    positions = torch.zeros(x.shape[1], config.width, dtype=torch.float64)
    positions[:, 0::2], positions[:, 1::2] = (place * rate).sin(), (place * rate).cos()
    x, ends = x + positions.float(), []
    for block, last in enumerate(config.block_ends, 1):
        entering, length = x, torch.tensor([x.shape[1]])
        layers = range(last - config.block_layers, last)
        x = make_theirs([f"layers.{index}." for index in layers])(x, length)[0]
        if block in config.split_blocks:
            if entering.shape[1] % 2:
                entering = torch.cat([entering, torch.zeros(1, 1, config.width)], 1)
            halved = entering[:, ::2]
            beside = make_theirs([f"half_rate.{block}."])(halved, torch.tensor([halved.shape[1]]))[0]
            x = x + beside.repeat_interleave(2, 1)[:, : x.shape[1]]
        ends.append(x)
    return ends


@pytest.mark.parametrize("config", [TINY, SPLIT], ids=["conformer", "splitformer"])
@pytest.mark.parametrize("num_samples", [960, 16000, 16640])  # 1, 24 and 25 frames
def test_states_are_torchaudios_in_the_published_order(config, num_samples):
    backbone = make(config)
    waveform = 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states, num_frames = backbone(waveform[None])
        expected = run_as_published(backbone, backbone.compute_mel(waveform)[None])
    assert num_frames.tolist() == [states[0].shape[1]]
    for layer, wanted in zip(config.block_ends, expected, strict=True):
        torch.testing.assert_close(states[layer], wanted, atol=1e-5, rtol=1e-5)


def test_mel_spectra_are_torchaudios():
    waveform = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(1))
    mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=1024, win_length=320, hop_length=160, n_mels=20)(waveform).T
    torch.testing.assert_close(make(TINY.as_published()).compute_mel(waveform), mel)
    log = dataclasses.replace(TINY, normalize=False)
    torch.testing.assert_close(make(log).compute_mel(waveform), (mel + 1e-6).log())
    normed = make().compute_mel(waveform)
    torch.testing.assert_close(normed.mean(0), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(0, correction=0), torch.ones(20), atol=1e-4, rtol=0)
    assert make().compute_mel(torch.zeros(8000)).abs().max() == 0  # digital silence is finite


@pytest.mark.parametrize("config", [TINY, SPLIT], ids=["conformer", "splitformer"])
def test_an_utterance_is_the_same_alone_and_in_a_batch(config):
    backbone = make(config)
    generator = torch.Generator().manual_seed(2)
    lengths = [960, 1599, 1600, 9000, 16000, 16640]
    waveforms = [0.1 * torch.randn(n, generator=generator) for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=3.0)
    with torch.no_grad():
        states, num_frames = backbone(padded, torch.tensor(lengths))
        assert num_frames.tolist() == [count_frames(n, config.conv_layers) for n in lengths] == [1, 1, 2, 13, 24, 25]
        for index, waveform in enumerate(waveforms):
            alone, _ = backbone(waveform[None])
            for layer, of_layer in enumerate(states):
                torch.testing.assert_close(
                    of_layer[index, : num_frames[index]], alone[layer][0], atol=1e-5, rtol=1e-5, msg=f"layer {layer}"
                )


@pytest.mark.parametrize("shape", [TINY, SPLIT], ids=["conformer", "splitformer"])
def test_published_choices_let_padding_into_the_results(shape):
    """What `as_published` says of itself: convolutions hear what pads an utterance, so it depends on its batch."""
    backbone = make(shape.as_published())
    waveforms = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        states, num_frames = backbone(waveforms, torch.tensor([16000, 9000]))
        alone, _ = backbone(waveforms[1:, :9000])
    difference = (states[-1][1, : num_frames[1]] - alone[-1][0]).abs().amax(1)
    assert difference.max() > 0.01
    torch.testing.assert_close(states[-1][0], backbone(waveforms[:1])[0][-1][0].detach(), atol=1e-5, rtol=1e-5)


def test_training_norms_by_frames_that_are_no_padding():
    """Running statistics after a padded batch are those of the same frames without padding."""
    config = dataclasses.replace(TINY, dropout=0.0, spec_augment=False)
    generator = torch.Generator().manual_seed(3)
    waveforms = [0.1 * torch.randn(n, generator=generator) for n in (16000, 5000)]
    norms = []
    for pad in (0, 30000):
        backbone = make(config).train()
        rows = [backbone.subsample(backbone.compute_mel(waveform)) for waveform in waveforms]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        padded = torch.nn.functional.pad(padded, (0, 0, 0, pad // 640))
        num_frames = torch.tensor([len(row) for row in rows])
        backbone.run_layers(backbone.embed(padded, num_frames), num_frames)
        norms.append(backbone.layers[0].conv_module.sequential[3])
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norms[0], name), getattr(norms[1], name), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(norms[0].running_mean, make(config).layers[0].conv_module.sequential[3].running_mean)


def test_every_weight_learns_and_spectra_are_masked_in_training_only():
    backbone = make(dataclasses.replace(SPLIT, dropout=0.0))
    waveforms, lengths = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    in_evaluation = [backbone.front_end(waveforms, lengths)[0] for _ in range(2)]
    assert torch.equal(*in_evaluation)
    backbone.train()
    torch.manual_seed(0)
    in_training = [backbone.front_end(waveforms, lengths)[0] for _ in range(2)]
    assert not torch.equal(*in_training)
    assert torch.equal(in_training[0][1, 13:], torch.zeros(11, 32))
    states = backbone.run_layers(backbone.embed(in_training[0], torch.tensor([24, 13])), torch.tensor([24, 13]))
    states[-1].square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    plain = make(dataclasses.replace(SPLIT, spec_augment=False)).train()
    assert torch.equal(*(plain.front_end(waveforms, lengths)[0] for _ in range(2)))


def test_masks_cover_bands_and_stretches_of_time():
    """Up to 27 bands twice, and a twentieth of 200 frames five times, each as wide as chance has it."""
    mel = torch.arange(200.0 * 80).reshape(200, 80)
    torch.manual_seed(1)
    counts = []
    for _ in range(50):
        changed = conformer_module.mask_at_random(mel) != mel
        whole_bands, whole_frames = changed.all(0), changed.all(1)
        assert not changed[~whole_frames][:, ~whole_bands].any()
        counts.append((int(whole_bands.sum()), int(whole_frames.sum())))
    bands, frames = zip(*counts, strict=True)
    assert (max(bands) <= 54, max(frames) <= 50) == (True, True)
    assert 15 < sum(bands) / 50 < 30  # two times 13 on average, less where they overlap
    assert 15 < sum(frames) / 50 < 25  # five times 4.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 30}, "width 30 is not even, or not a multiple of num_heads 4"),
        ({"kernel": 8}, "kernel must be odd, found 8"),
        ({"num_layers": 5}, "num_layers 5 is not a multiple of block_layers 2"),
        ({"split_blocks": (1, 3)}, r"split_blocks has \[3\], and there are 2 blocks"),
        ({"split_blocks": (0,)}, r"split_blocks must be numbers of blocks, from 1, found \(0,\)"),
        ({"log": 1}, "log must be true or false, found 1"),
        ({"dropout": 1.0}, "dropout must be a number of at least 0, below 1"),
        ({"fft_size": 256}, "fft_size must be 320 to 1918, found 256"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(CheckpointError, match=message):
        Conformer(dataclasses.replace(TINY, **settings))


def test_configurations_round_trip_and_name_what_they_do_not_know():
    assert ConformerConfig.from_dict(SPLIT.to_dict()) == SPLIT
    with pytest.raises(CheckpointError, match="unknown fields: depth; a later daisy may know them"):
        ConformerConfig.from_dict({"kind": "conformer", "depth": 3})


def test_without_torchaudio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.models.conformer", None)
    with pytest.raises(CheckpointError, match=r"a Conformer needs torchaudio .*daisy-speech\[recognition\]"):
        Conformer(TINY)
