"""A corpus with units, noise, and a tiny HuBERT with a prediction head and no exit heads."""

import pytest
import soundfile
import torch

from tests.conftest import tiny_model


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 9), ("valid", 3), ("noise", 2)):
        lines, labels = [str(folder)], []
        for index in range(count):
            samples = 6000 + 900 * index
            wave = 0.1 * torch.randn(samples, generator=generator)
            soundfile.write(folder / f"{split}{index}.wav", wave.numpy(), 16000, subtype="FLOAT")
            lines.append(f"{split}{index}.wav\t{samples}")
            labels.append(" ".join(str((frame + index) % 5) for frame in range(samples // 320)))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.km").write_text("\n".join(labels) + "\n")
    (folder / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(5)))
    return folder


@pytest.fixture
def model():
    made = tiny_model()
    made.heads = None
    return made
