"""Pre-training from one packed file in plain PyTorch, on the CPU: ten updates, stopped and resumed."""

import json

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import daisy
from benchmarks.training import gpu_pretraining, packed_speech
from benchmarks.training.gpu_pretraining import Run
from benchmarks.training.gpu_settings import Settings
from benchmarks.training.packed_batches import Stream, corrupt, draw_masks
from daisy.errors import UsageError
from daisy.models.lengths import HUBERT_CONV, count_frames
from tests.conftest import POST_NORM, tiny_model

NUM_UNITS = 10  # six in the dictionary, of which five occur, and fairseq's four


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Twelve recordings, the first listed twice; each frame's unit is the frame's number modulo 5."""
    folder = tmp_path_factory.mktemp("packed")
    generator = numpy.random.default_rng(0)
    for split, count in (("train", 12), ("valid", 3), ("noise", 2)):
        lines, units = [str(folder)], []
        for index in range(count):
            samples = 0.1 * generator.standard_normal(16000 + 1000 * index)
            soundfile.write(folder / f"{split}{index}.flac", samples, 16000)
            frames = count_frames(len(samples), HUBERT_CONV)
            lines.append(f"{split}{index}.flac\t{len(samples)}")
            units.append(" ".join(str(frame % 5) for frame in range(frames)))
        if split == "train":
            lines.append(lines[1])
            units.append(units[0])
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.km").write_text("\n".join(units) + "\n")
    (folder / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(NUM_UNITS - 4)))
    packed_speech.pack(folder, folder / "packed.safetensors", kbps=32)
    return folder / "packed.safetensors"


def test_a_packed_split_is_what_was_packed(packed):
    frames = packed_speech.unpack(packed, "train")
    assert frames.times.tolist() == [2] + [1] * 11
    assert frames.counts.tolist() == [count_frames(16000 + 1000 * index, HUBERT_CONV) for index in range(12)]
    assert frames.units[:50].tolist() == [frame % 5 for frame in range(49)] + [0]  # 49 frames, then the next recording
    assert frames.samples.shape == (int(frames.counts.sum()), 320)
    third = int(frames.starts[2])
    samples, _ = soundfile.read(packed.parent / "train2.flac", dtype="float32")
    decoded = frames.samples[third : third + 50].flatten().float() / 32768
    assert numpy.corrcoef(samples[:16000], decoded)[0, 1] > 0.8  # white noise, coded
    levels = [len(packed_speech.encode(torch.from_numpy(samples), kbps)) for kbps in (8, 16, 32)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("units", "refusal"),
    [
        ("0 1 2 3 4 " * 20, r"train0\.flac: 100 units for 49 frames: make units at 50 a second"),
        ("0 1 2 3 7 " * 10, r"train0\.flac: has units 0 to 7, and dict\.km\.txt has 6"),
    ],
)
def test_units_that_do_not_fit_are_refused(packed, tmp_path, units, refusal):
    for path in packed.parent.glob("*.[tk]*"):
        (tmp_path / path.name).write_text(path.read_text())
    lines = (tmp_path / "train.km").read_text().splitlines()
    (tmp_path / "train.km").write_text("\n".join([units, *lines[1:-1], units]) + "\n")
    (tmp_path / "dict.km.txt").write_text((packed.parent / "dict.km.txt").read_text())
    with pytest.raises(UsageError, match=refusal):
        packed_speech.pack(tmp_path, tmp_path / "out.safetensors", kbps=32)


def test_a_stream_hears_every_frame_as_often_as_it_is_listed(packed):
    frames = packed_speech.unpack(packed, "train")
    stream = Stream(frames, torch.device("cpu"), torch.Generator().manual_seed(0))
    total = int((frames.counts * frames.times).sum())
    waveforms, units = stream.draw(1, total - 1)
    assert waveforms.shape == (1, (total - 1) * 320 + 80)
    assert units.shape == (1, total - 1)
    heard = torch.bincount(units[0] - 4, minlength=5).sum()
    assert int(heard) == total - 1
    steps = (units[0, 1:] - units[0, :-1]) % 5
    assert int((steps != 1).sum()) <= 12  # only where a recording ends


def test_noise_is_mixed_at_the_ratios_asked_for():
    generator = torch.Generator().manual_seed(0)
    waveforms, noise = torch.randn(64, 8000, generator=generator), 3000 * torch.randn(50000, generator=generator)
    settings = Settings(noise_prob=1.0, talkers_prob=0.0, snr_db=(10.0, 10.0), gain_db=(0.0, 0.0))
    mixed = corrupt(waveforms, noise, settings, generator)
    ratios = 10 * torch.log10(waveforms.square().mean(1) / (mixed - waveforms).square().mean(1))
    assert torch.allclose(ratios, torch.full((64,), 10.0), atol=0.1)
    still = Settings(noise_prob=0.0, talkers_prob=0.0, gain_db=(0.0, 0.0))
    assert torch.equal(corrupt(waveforms, noise, still, generator), waveforms)
    talkers = Settings(noise_prob=0.0, talkers_prob=1.0, snr_db=(-5.0, 0.0), gain_db=(0.0, 0.0))
    with_talker = corrupt(waveforms, noise, talkers, generator) - waveforms
    correlation = torch.cosine_similarity(with_talker, waveforms.roll(1, 0), dim=1)
    assert torch.allclose(correlation, torch.ones(64), atol=1e-4)


def test_masks_are_spans_of_ten_and_some_rows_have_none():
    settings = Settings(unmasked_prob=0.25)
    masked = draw_masks(400, 500, settings, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert 0.18 < float((~masked.any(1)).float().mean()) < 0.33
    share = float(masked[masked.any(1)].float().mean())
    assert share == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.02)
    row = masked[masked.any(1)][0].int()
    edges = (torch.cat([row, row.new_zeros(1)]) - torch.cat([row.new_zeros(1), row])).nonzero()[:, 0]
    lengths = edges[1::2] - edges[::2]
    assert int(lengths[:-1].min()) >= 10


def test_ten_updates_learn_and_go_on_where_they_were_stopped(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu_pretraining.SHAPES, "tiny", POST_NORM)
    settings = Settings(shape="tiny", updates=10, batch=4, crop_frames=30, lr=0.01)
    whole = Run(packed, tmp_path / "whole.safetensors", settings, torch.device("cpu"))
    whole.train()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed[-1]["valid_nats_4"] < printed[0]["nats_4"] - 0.2  # five of nine units occur

    stopped = Run(packed, tmp_path / "stopped.safetensors", settings, torch.device("cpu"))
    for _ in range(4):
        progress = stopped._progress()
        for group in stopped.optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, progress / settings.warmup) * max(0.02, 1 - progress)
        stopped._step()
        stopped.update += 1
    stopped._save()
    again = Run(packed, tmp_path / "stopped.safetensors", settings, torch.device("cpu"))
    assert again.update == 4
    again.train()
    ours, theirs = (daisy.load(tmp_path / f"{name}.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert (ours.heads.config.num_units, ours.final_head.num_units) == (NUM_UNITS, NUM_UNITS)
    assert int(ours.encoder("fixed", layer=2)(torch.zeros(16000)).exit_layer) == 2
    with pytest.raises(UsageError, match="is of a run with other settings"):
        Run(
            packed,
            tmp_path / "stopped.safetensors",
            Settings(shape="tiny", updates=11, crop_frames=30),
            torch.device("cpu"),
        )


def test_a_front_end_that_learns_has_a_tenth_of_the_gradient_and_a_penalty(packed, monkeypatch):
    """As fairseq's `HubertModel.forward_features` has it, and its ``feature_grad_mult`` and ``features_pen``."""
    monkeypatch.setitem(gpu_pretraining.SHAPES, "tiny", POST_NORM)
    waveforms = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    units = torch.zeros(2, 49, dtype=torch.int64)
    masked = torch.zeros(2, 49, dtype=torch.bool)
    losses, gradients = {}, {}
    for factor, weight in ((1.0, 0.0), (0.1, 0.0), (0.1, 1e7)):
        settings = Settings(shape="tiny", layer_drop=0.0, front_end_gradient=factor, features_weight=weight)
        model = gpu_pretraining.Pretraining(settings, NUM_UNITS).eval()
        loss, _ = model(waveforms, units, masked)
        loss.backward()
        losses[factor, weight] = float(loss.detach())
        gradients[factor, weight] = model.backbone.feature_extractor.conv_layers[-1].conv.weight.grad
    assert torch.allclose(gradients[0.1, 0.0], 0.1 * gradients[1.0, 0.0], rtol=0.02, atol=1e-4)
    assert losses[0.1, 0.0] == losses[1.0, 0.0]
    features, _ = model.backbone.front_end(waveforms)
    penalty = 1e7 * float(features.square().mean())
    assert losses[0.1, 1e7] - losses[0.1, 0.0] == pytest.approx(penalty, rel=0.03)


def test_too_little_noise_is_refused(packed, monkeypatch):
    monkeypatch.setitem(gpu_pretraining.SHAPES, "tiny", POST_NORM)
    with pytest.raises(UsageError, match=r"has 32320 samples of noise, and a stretch of --crop-frames 250 takes 80320"):
        Run(packed, packed.parent / "none.safetensors", Settings(shape="tiny", updates=1), torch.device("cpu"))


def test_a_run_is_not_gone_on_with_on_other_audio_or_from_another_start(packed, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_pretraining.SHAPES, "tiny", POST_NORM)
    audio, start, out = tmp_path / "audio.safetensors", tmp_path / "start.safetensors", tmp_path / "out.safetensors"
    audio.write_bytes(packed.read_bytes())
    daisy.save(tiny_model(), start)
    make = lambda: Run(audio, out, Settings(start=str(start), updates=1, crop_frames=30), torch.device("cpu"))  # noqa: E731
    make()._save()
    assert make().update == 0
    save_file({**load_file(audio), "more": torch.zeros(1)}, audio)
    with pytest.raises(
        UsageError, match=r"^.*out\.state: is of a run with other settings \(packed_digest\); use another"
    ):
        make()
    audio.write_bytes(packed.read_bytes())
    daisy.save(tiny_model(seed=1), start)
    with pytest.raises(UsageError, match=r"other settings \(start_digest\)"):
        make()
