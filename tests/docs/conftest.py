"""Files that the pages name: short recordings, tiny networks, and the programs, which run in forks."""

import dataclasses
import json
import shutil
from importlib.util import find_spec

import numpy
import pytest
import soundfile

import daisy
from daisy import audio
from daisy.checkpoints.format import ASSETS
from daisy.policies import Fixed, write_policy
from tests.conftest import KIN_KINDS, POST_NORM, randomise, tiny_model
from tests.programs import start_programs
from tests.recognition.conftest import tiny_recogniser

RATE = 16000
FOLDERS = {
    "recordings": 2, "dev": 8, "test": 8, "train": 3, "lectures": 1, "more": 1, "data/speech/train": 8,
    "noises/rain": 1, "keywords/train": 1, "librispeech/train": 1, "robotutor/train": 1,
}  # fmt: skip
"""Number of recordings in each folder."""


@pytest.fixture(scope="session")
def clips():
    """Return a little more than a second of each demonstration clip."""
    paths = sorted(path for path in (ASSETS / "demo").glob("*.flac") if path.stem != "noise")
    return [audio.read(path)[8000 : 28000 + 1600 * index].numpy() for index, path in enumerate(paths)]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Make a HuBERT of twelve layers with exit heads, a WavLM, a recogniser, a policy for daisy-mini and a k-means."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = tiny_model(dataclasses.replace(POST_NORM, num_layers=12))
    daisy.save(model, folder / "hubert.safetensors")
    wavlm = dataclasses.replace(KIN_KINDS["WavLM"], num_layers=12)
    daisy.save(daisy.Model(backbone=randomise(daisy.Backbone(wavlm)).eval()), folder / "wavlm.safetensors")
    daisy.save(tiny_recogniser("hubert", units=True), folder / "recogniser.safetensors")
    write_policy(
        folder / "policy.json",
        Fixed(layer=5),
        checkpoint="daisy-mini",
        digest=daisy.checkpoints.digest("daisy-mini"),
        target={},
        attained={},
        data={},
    )
    if find_spec("sklearn"):
        import joblib
        from sklearn.cluster import KMeans

        points = numpy.random.default_rng(0).standard_normal((50, POST_NORM.width)).astype("float32")
        joblib.dump(KMeans(5, n_init=1, random_state=0).fit(points), folder / "km.bin")
    return folder


@pytest.fixture
def place(tmp_path, clips, checkpoints):
    """Make a folder with everything that pages name, except for files that their commands make."""
    for path in checkpoints.iterdir():
        shutil.copy(path, tmp_path)
    texts, speakers = ["path,text"], ["path,speaker"]
    for folder, count in FOLDERS.items():
        (tmp_path / folder).mkdir(parents=True)
        for index, clip in enumerate(clips[:count]):
            name = f"{folder}/{folder.split('/')[0]}{index}.{'flac' if folder == 'more' else 'wav'}"
            soundfile.write(tmp_path / name, clip, RATE)
            texts.append(f"{name},{'ab c' if index % 2 else 'be'}")
            speakers.append(f"{name},speaker{index}")
    for name, clip in (("a.flac", clips[0]), ("b.wav", clips[1]), ("talk.wav", clips[2])):
        soundfile.write(tmp_path / name, clip, RATE)
    (tmp_path / "text.csv").write_text("\n".join(texts) + "\n")
    (tmp_path / "speakers.csv").write_text("\n".join(speakers) + "\n")
    write_manifest(tmp_path / "train.tsv", tmp_path / "train")
    write_manifest(tmp_path / "corpus.tsv", tmp_path / "dev")
    (tmp_path / "manifests").mkdir()
    for split, folder in (("train", "data/speech/train"), ("valid", "dev"), ("noise", "noises/rain")):
        write_manifest(tmp_path / "manifests" / f"{split}.tsv", tmp_path / folder)
    write_commands_corpus(tmp_path, clips)
    (tmp_path / "daisy" / "assets").mkdir(parents=True)
    (tmp_path / "daisy" / "assets" / "demo").symlink_to(ASSETS / "demo")
    return tmp_path


def write_commands_corpus(place, clips):
    """Write Fluent Speech Commands with twelve recordings, and a configuration that ends after six steps."""
    (place / "fluent" / "data").mkdir(parents=True)
    (place / "fluent" / "wavs").mkdir()
    for split, count in (("train", 6), ("valid", 3), ("test", 3)):
        lines = [",path,speakerId,transcription,action,object,location"]
        for index in range(count):
            soundfile.write(place / "fluent" / "wavs" / f"{split}{index}.wav", clips[index], RATE)
            lines.append(f"{index},wavs/{split}{index}.wav,s,x,on,lamp,none")
        (place / "fluent" / "data" / f"{split}_data.csv").write_text("\n".join(lines) + "\n")
    runner = {
        "total_steps": 4, "gradient_clipping": 1, "gradient_accumulate_steps": 1, "log_step": 2, "eval_step": 2,
        "save_step": 2, "max_keep": 1, "eval_dataloaders": ["dev"],
    }  # fmt: skip
    data = {"file_path": str(place / "fluent"), "train_batch_size": 3, "eval_batch_size": 3, "num_workers": 0}
    model = {"projector_dim": 8, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}
    config = {
        "runner": runner,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 0.01},
        "downstream_expert": {"datarc": data, "modelrc": model},
    }
    (place / "config.yaml").write_text(json.dumps(config))  # which YAML also reads


def write_manifest(path, folder):
    lines = [f"{file.name}\t{soundfile.info(file).frames}" for file in sorted(folder.iterdir())]
    path.write_text("\n".join([str(folder), *lines]) + "\n")


@pytest.fixture(scope="session")
def s3prl_programs(tmp_path_factory):
    """Return daisy-s3prl and Python as programs that run in forks of a process that has imported s3prl."""
    modules = [name for name in ("s3prl.hub", "s3prl.nn", "s3prl_upstream.run_downstream") if find_spec("s3prl")]
    with start_programs(tmp_path_factory.mktemp("s3prl"), ["daisy-s3prl", "python"], modules) as folder:
        yield folder
