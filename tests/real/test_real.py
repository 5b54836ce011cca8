"""The shared small HuBERT on real recordings; skipped where ../shared is absent."""

import csv

import pytest
import soundfile
import torch

from daisy import EarlyExitEncoder, audio, policies
from daisy.checkpoints.converters import convert
from daisy.extraction import Extractor
from daisy.models.lengths import HUBERT_CONV, count_frames


@pytest.fixture(scope="module")
def hubert(shared):
    return convert(shared / "models" / "hubert_mini.pt", allow_pickle=True)


@pytest.fixture(scope="module")
def recordings(shared):
    """64 utterances of 1 to 17 seconds from four sets."""
    waveforms = []
    for name in ("librispeech", "commands", "keywords", "digits"):
        with open(shared / "data" / name / "index.csv", newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
        waveforms += [audio.read(shared / "data" / name / row["path"]) for row in rows[:: len(rows) // 16][:16]]
    return waveforms


def test_states_are_fairseqs_own(shared, hubert, tmp_path):
    """Single, unpadded: within 1e-4 of each layer's standard deviation."""
    checkpoint_utils = pytest.importorskip("fairseq.checkpoint_utils", reason="needs fairseq")
    (tmp_path / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(100)))
    path = str(shared / "models" / "hubert_mini.pt")
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([path], arg_overrides={"data": str(tmp_path)})
    theirs = models[0].float().eval()
    outputs = []
    for layer in theirs.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output[0][:, 0]))
    encoder = EarlyExitEncoder(hubert.backbone, None, policies.Never())
    for name in ("librispeech/test/103-1240-0000.flac", "broken/good.flac", "broken/zeros_1s.wav"):
        waveform = audio.read(shared / "data" / name)
        states = encoder([waveform]).states[0]
        outputs.clear()
        with torch.no_grad():
            last = theirs.extract_features(waveform[None], output_layer=12)[0][0]
        assert len(outputs) == 12
        assert torch.equal(outputs[-1][: len(last)], last)  # fairseq may add a frame, and takes it off at the end
        for layer, output in enumerate(outputs, 1):
            expected = output[: len(last)]
            assert (states[layer] - expected).abs().max() < 1e-4 * expected.std()


@pytest.fixture(scope="module")
def alone(hubert, recordings):
    """An encoder whose exits spread on real audio, and its output for each utterance by itself."""
    heads = stand_in_heads(hubert)
    full = EarlyExitEncoder(hubert.backbone, heads, policies.Never(), keep="last", scores=["entropy"])
    entropies = torch.cat([full([waveform]).scores["entropy"] for waveform in recordings[::4]])
    encoder = EarlyExitEncoder(hubert.backbone, heads, policies.Entropy(threshold=float(entropies[:, 5].median())))
    return encoder, [encoder([waveform]) for waveform in recordings]


@pytest.mark.parametrize("size", [7, 64])
def test_64_utterances_in_any_batch(recordings, alone, size):
    """The same exits, and states within 1e-4 of the standard deviation, as alone."""
    encoder, single = alone
    assert len({len(waveform) for waveform in recordings}) > 50
    assert len({int(out.exit_layer) for out in single}) > 2
    order = torch.randperm(64, generator=torch.Generator().manual_seed(size)).tolist()
    for start in range(0, 64, size):
        indices = order[start : start + size]
        out = encoder([recordings[i] for i in indices])
        for place, index in enumerate(indices):
            expected = single[index].states[0]
            assert single[index].exit_layer[0] == out.exit_layer[place]
            assert (expected - out.states[place]).abs().max() < 1e-4 * expected.std()


def stand_in_heads(hubert):
    """Unit classifiers that approximate the final head at every layer: enough to spread exits on real audio."""
    from daisy import ExitHeads, HeadsConfig

    config = hubert.backbone.config
    final = hubert.final_head
    heads = ExitHeads(HeadsConfig(num_layers=config.num_layers, width=config.width, num_units=final.num_units))
    with torch.no_grad():
        weight = torch.nn.functional.normalize(final.embeddings, dim=-1) @ final.projection.weight
        for classifier in heads.units:
            classifier.weight.copy_(weight)
            classifier.bias.zero_()
    return heads


def test_broken_files(shared, hubert, tmp_path):
    """Every file of the collection is read, or refused in one line that says why; the run goes on."""
    policy = policies.Fixed(layer=2)
    encoder = EarlyExitEncoder(hubert.backbone, None, policy, keep="last")
    recordings = audio.find([str(shared / "data" / "broken")])
    report = Extractor(encoder, tmp_path, checkpoint="0" * 64).run(recordings)
    reasons = {path.rpartition("/")[2]: str(reason) for path, reason in report.failed.items()}
    assert reasons == {
        "empty.wav": "empty file (0 bytes)",
        "text.wav": "not readable as audio (Format not recognised)",
        "truncated.flac": "not readable as audio (Error : flac decoder lost sync)",
        "truncated_header.wav": "not readable as audio (Error in WAV file. No 'data' chunk marker)",
        "five_ms.wav": "too short: 80 samples at 16000 Hz, one frame needs 400 (25 ms)",
        "nan_float.wav": "101 of 16000 samples are NaN or infinite",
        "zero_samples.wav": "holds no samples",
        "x.wav": "is a folder",
    }
    durations = {row.output: round(row.duration_sec, 2) for row in report.rows}
    assert durations == {
        "good.safetensors": 3.0,
        "zeros_1s.safetensors": 1.0,
        "eight_channels_96k.safetensors": 0.3,
        "stereo_44k.safetensors": durations["stereo_44k.safetensors"],
        "mulaw_8k.safetensors": 3.0,
        "wrong_length.safetensors": 1.0,
        "flac_24bit.safetensors": 1.0,
    }
    assert [row.output for row in report.rows if row.silent] == ["zeros_1s.safetensors"]


def test_frame_count_of_the_published_model(shared):
    """The layer-9 features of hubert_base_ls960 that fairseq's tests pin: 596 frames."""
    folder = shared / "data" / "hubert_base"
    num_samples = soundfile.info(folder / "6313-76958-0021.flac").frames
    assert count_frames(num_samples, HUBERT_CONV) == int((folder / "sample.base.L9.len").read_text()) == 596
