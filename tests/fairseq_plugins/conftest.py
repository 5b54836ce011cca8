"""A tiny corpus and HuBERT; fairseq's commands, as its users run them."""

import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import soundfile

import daisy
from tests import fork_server
from tests.conftest import POST_NORM, tiny_model

if find_spec("fairseq") is None:  # only located: importing it takes seconds in every process of pytest-xdist
    pytest.skip("needs fairseq", allow_module_level=True)
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def noisy_tone(seed, seconds):
    generator = numpy.random.default_rng(seed)
    times = numpy.arange(int(16000 * seconds)) / 16000
    tone = numpy.sin(2 * numpy.pi * generator.uniform(100, 3000) * times * (1 + 0.3 * numpy.sin(times)))
    return 0.3 * tone + 0.03 * generator.standard_normal(len(times))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Write data/{train,valid,noise}.tsv with unit labels, and hubert.safetensors."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "wav").mkdir()
    (folder / "data").mkdir()
    for seed, (split, count) in enumerate((("train", 12), ("valid", 4), ("noise", 2))):
        lines, labels = [str(folder / "wav")], []
        for index in range(count):
            samples = noisy_tone(100 * seed + index, 0.5 + 0.1 * index)
            soundfile.write(folder / "wav" / f"{split}{index}.wav", samples, 16000)
            lines.append(f"{split}{index}.wav\t{len(samples)}")
            labels.append(" ".join(str(frame % 7) for frame in range(len(samples) // 320)))
        (folder / "data" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        (folder / "data" / f"{split}.km").write_text("\n".join(labels) + "\n")
    (folder / "data" / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(7)))
    model = tiny_model(POST_NORM)
    model.heads = None
    daisy.save(model, folder / "hubert.safetensors")
    return folder


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True, env=environment, cwd=ROOT)


def command(*arguments):
    """Run a command, and return what it printed."""
    done = run(*arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def refuse(*arguments):
    """Run a command that must fail, and return what it printed."""
    done = run(*arguments)
    assert done.returncode not in (0, fork_server.CRASHED), done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def heads_options(corpus, folder, updates):
    """Return the options of fairseq-train that train exit heads for some updates into a folder."""
    return (
        corpus / "data", "--user-dir", ROOT / "fairseq_plugins", "--task", "hubert_pretraining",
        "--labels", "[]", "--label-rate", "50", "--min-sample-size", "4000", "--pad-audio", "--cpu",
        "--seed", "1", "--arch", "daisy_hubert", "--hubert-path", corpus / "hubert.safetensors",
        "--criterion", "daisy_exit_heads", "--noise-manifest", corpus / "data" / "noise.tsv",
        "--optimizer", "adam", "--lr", "0.01", "--lr-scheduler", "fixed", "--max-update", updates,
        "--max-tokens", "40000", "--num-workers", "0", "--validate-interval-updates", "4",
        "--save-interval-updates", "4", "--no-epoch-checkpoints", "--log-format", "simple",
        "--log-interval", "1", "--save-dir", folder,
    )  # fmt: skip


@pytest.fixture
def task_config(corpus):
    from fairseq_plugins.pretraining_task import DaisyPretrainingConfig

    return DaisyPretrainingConfig(
        data=str(corpus / "data"), labels=["km"], label_rate=50.0, max_sample_size=8000, min_sample_size=4000, seed=1
    )


def takes_processes_without_gpus():
    """Tell whether fairseq takes torchrun's processes on CPUs: the stock one does, its fork does not."""
    return "fairseq" in {distribution.name for distribution in metadata.distributions()}
