"""Tiny corpora in the layouts that s3prl's tasks read, a tiny upstream, and s3prl's own runner."""

import json

import numpy
import pytest
import soundfile
import torch
import yaml

import daisy
from tests.conftest import POST_NORM, tiny_model

pytest.importorskip("s3prl", reason="needs s3prl")

ANY_EXIT = {"name": "random", "histogram": [1, 1, 1, 1]}
LAYERS = POST_NORM.num_layers


def waveform(seed, num_samples):
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(num_samples) / 16000
    tone = torch.sin(2 * torch.pi * (200 + 150 * (seed % 7)) * times * (1 + 0.3 * torch.sin(3 * times)))
    return 0.3 * tone + 0.05 * torch.randn(num_samples, generator=generator)


@pytest.fixture(scope="session")
def hub():
    """Return s3prl's hub with our entries; it takes some seconds to import."""
    from s3prl_upstream import register

    register()
    import s3prl.hub

    return s3prl.hub


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    daisy.save(tiny_model(), path)
    return path


@pytest.fixture
def upstream(hub, checkpoint):
    return hub.daisy_local(checkpoint, ANY_EXIT).eval()


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    """Write a policy with exits at every layer, whatever the weights."""
    path = tmp_path_factory.mktemp("policy") / "any.json"
    path.write_text(json.dumps(ANY_EXIT))
    return path


@pytest.fixture(scope="session")
def fluent(tmp_path_factory):
    """Write Fluent Speech Commands with 12, 4 and 4 utterances, and return the configuration."""
    root = tmp_path_factory.mktemp("fluent")
    (root / "data").mkdir()
    (root / "wavs").mkdir()
    for seed, (split, count) in enumerate((("train", 12), ("valid", 4), ("test", 4))):
        lines = [",path,speakerId,transcription,action,object,location"]
        for i in range(count):
            name = f"{split}{i}.wav"
            soundfile.write(root / "wavs" / name, waveform(100 * seed + i, 6000 + 777 * i).numpy(), 16000)
            lines.append(f"{i},wavs/{name},s,x,{'on' if i % 2 else 'off'},lamp{i // 2 % 2},none")
        (root / "data" / f"{split}_data.csv").write_text("\n".join(lines) + "\n")
    return write_config(root, {"file_path": str(root), "train_batch_size": 4, "eval_batch_size": 3, "num_workers": 0})


def write_config(root, datarc, steps=6, accumulate=1):
    path = root / "config.yaml"
    runner = {
        "total_steps": steps,
        "gradient_clipping": 1,
        "gradient_accumulate_steps": accumulate,
        "log_step": 2,
        "eval_step": 3,
        "save_step": 3,
        "max_keep": 1,
        "eval_dataloaders": ["dev"],
    }
    modelrc = {"projector_dim": 8, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}
    config = {
        "runner": runner,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-2},
        "downstream_expert": {"datarc": datarc, "modelrc": modelrc},
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def launch(hub):
    """Return daisy-s3prl as a function that runs in this process."""
    from s3prl_upstream import run_downstream

    sharing = torch.multiprocessing.get_sharing_strategy()
    yield lambda *arguments: run_downstream.run([*map(str, arguments), "--device", "cpu"])
    torch.multiprocessing.set_sharing_strategy(sharing)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def train(launch, checkpoint, policy, fluent):
    """Return a function that trains intent classification on the tiny upstream; its results are in the folder."""

    def run(folder, *more):
        known = ("-u", "daisy_local", "-k", checkpoint, "-g", policy, "-d", "fluent_commands", "-c", fluent)
        launch("-m", "train", *known, "-p", folder, *more)

    return run


def states(folder, name="states-6.ckpt"):
    return torch.load(folder / name, map_location="cpu", weights_only=False)


def weights(folder, name="states-6.ckpt"):
    """Return all trained weights of a checkpoint in one row."""
    saved = states(folder, name)
    parts = [saved[part][key] for part in ("Featurizer", "Downstream") for key in sorted(saved[part])]
    return torch.cat([part.flatten().double() for part in parts])


def lines(folder):
    return [json.loads(line) for line in (folder / "exits.jsonl").read_text().splitlines()]


def runs(folder):
    return json.loads((folder / "exits_summary.json").read_text())["runs"]


def losses(folder):
    """Return the loss of each logged step from s3prl's tensorboard file."""
    from tensorboardX.proto import event_pb2

    values = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int(numpy.frombuffer(content[at : at + 8], "<u8")[0])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            values += [v.simple_value for v in event.summary.value if v.tag == "fluent_commands/train-intent_loss"]
            at += 16 + length
    return values


def begin_anew(folder):
    """Remove the checkpoints, which s3prl would overwrite and daisy-s3prl would not."""
    for path in folder.glob("*.ckpt"):
        path.unlink()
