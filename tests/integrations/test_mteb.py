"""A task of mteb, made from local audio, run through daisy by mteb itself."""

import pytest
import torch

import daisy
from tests.conftest import spread_policy, tiny_model

mteb = pytest.importorskip("mteb", reason="needs mteb, which is in no extra")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # of mteb's many libraries

from mteb.abstasks.classification import AbsTaskClassification  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

from daisy.integrations.mteb import DaisyEncoder  # noqa: E402

PITCHES = (200, 1700)


def make_split(count, seed):
    """Tones of two pitches in noise, at the rate of telephones; a few shorter than one frame."""
    generator = torch.Generator().manual_seed(seed)
    audio, labels = [], []
    for index in range(count):
        length = 180 if index == 3 else 1600 + 97 * index
        wave = torch.sin(torch.arange(length) * (PITCHES[index % 2] * 2 * torch.pi / 8000))
        wave = 0.1 * (wave + 0.3 * torch.randn(length, generator=generator))
        audio.append({"array": wave.tolist(), "sampling_rate": 8000})
        labels.append(index % 2)
    return datasets.Dataset.from_dict({"audio": audio, "label": labels})


class Tones(AbsTaskClassification):
    metadata = TaskMetadata(
        name="Tones",
        description="Which of two tones.",
        reference=None,
        dataset={"path": "local/tones", "revision": "1"},
        type="AudioClassification",
        category="a2c",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
        date=("2026-01-01", "2026-01-02"),
        domains=["Spoken"],
        task_subtypes=["Sentiment Analysis"],
        license="mit",
        annotations_creators="derived",
        dialect=[],
        modalities=["audio"],
        sample_creation="created",
        bibtex_citation="",
    )
    input_column_name = "audio"
    n_experiments = 2

    def load_data(self, **_):
        self.dataset = datasets.DatasetDict(train=make_split(24, 0), test=make_split(12, 1))
        self.data_loaded = True


def hear(row):
    """A waveform at the model's rate, of one frame at least."""
    waveform = daisy.audio.resample(torch.tensor(row["audio"]["array"]), 8000, 16000)
    return torch.nn.functional.pad(waveform, (0, max(0, 400 - len(waveform))))


def test_a_task(tmp_path):
    waveforms = [hear(row) for row in make_split(12, 1)]
    model = tiny_model()
    model.policies = {"entropy": {"threshold": spread_policy(model, waveforms).threshold}}
    daisy.save(model, tmp_path / "tiny.safetensors")
    encoder = DaisyEncoder(str(tmp_path / "tiny.safetensors"), policy="entropy", batch_sec=1.0)
    (result,) = mteb.evaluate(encoder, Tones(), cache=None).task_results
    assert result.scores["test"][0]["accuracy"] > 0.8
    assert len(set(encoder.exit_layers)) > 1
    again = encoder.mteb_model_meta.load_model()
    assert (again.encoder.policy, again.batch_sec) == (encoder.encoder.policy, 1.0)
    encoder.exit_layers.clear()
    loader = torch.utils.data.DataLoader(make_split(12, 1), batch_size=5)
    vectors = encoder.encode(loader)
    own = model.encoder("entropy")
    assert encoder.exit_layers == [int(own(waveform).exit_layer) for waveform in waveforms]
    for vector, waveform in zip(vectors, waveforms, strict=True):
        mean = own(waveform).states[0][-1].mean(0)
        torch.testing.assert_close(torch.from_numpy(vector), mean, rtol=0, atol=1e-4 * float(mean.std()))
