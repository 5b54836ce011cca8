"""The forms of checkpoints that daisy reads, all of one tiny model, and ways to damage them."""

from __future__ import annotations

import copy
import json
import re
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import daisy
from daisy import BackboneConfig, ExitHeads, FinalHead, HeadsConfig
from daisy.checkpoints import Model
from daisy.checkpoints.converters import fairseq

OTHER_VALUES = (0, -1, 1, 3, 2**20, 10**12, 0.5, -1e-5, 1e300, float("nan"), True, False, None, "x", "", [], [1, 2], {})
"""Values that replace others in a damaged configuration."""
OTHER_TYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool)
NO_NUMBERS = (float("nan"), float("inf"), -float("inf"))
BYTE_DAMAGES = ("flip anywhere", "flip header", "cut end", "cut piece", "zero piece")
TENSOR_DAMAGES = ("drop", "rename", "retype", "reshape", "no number")
CONFIGURATION_DAMAGES = ("configuration", "no configuration")
SHAPE = BackboneConfig(
    num_layers=2,
    width=32,
    ffn_width=48,
    num_heads=4,
    conv_layers=((16, 10, 5), *((16, 3, 2),) * 4, *((16, 2, 2),) * 2),
    pos_kernel=16,
    pos_groups=4,
)
UNITS = 11


@cache
def make_model() -> Model:
    """Make the model to be damaged, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = HeadsConfig(num_layers=SHAPE.num_layers, width=SHAPE.width, num_units=UNITS)
        model = Model(
            backbone=daisy.Backbone(SHAPE), heads=ExitHeads(heads), final_head=FinalHead(SHAPE.width, 8, UNITS)
        )
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    model.policies = {"entropy": {"threshold": 1.25}}
    return model


class Form(ABC):
    """A checkpoint in one form, and the damage done to it.

    Args:
        generator: random generator of the damage.
    """

    name: ClassVar[str]
    file_name: ClassVar[str] = "hubert.safetensors"
    is_converted: ClassVar[bool] = True
    has_checksums: ClassVar[bool] = False
    overrides: ClassVar[dict[str, str] | None] = None

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.hides_damage = False
        """Whether numbers without a checksum in this form were changed."""
        self.is_rounded = False
        """Whether weights without a checksum in this form were rounded."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The undamaged weights, by our names."""
        return make_model().state_dict()

    @abstractmethod
    def make_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Make the tensors, under this form's names, and its configuration."""

    @abstractmethod
    def write(self, folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        """Write a checkpoint of this form."""

    def find(self, folder: Path) -> Path:
        """Return the path to give to the reader."""
        return folder / self.file_name

    def write_damaged(self, folder: Path) -> str:
        """Write a checkpoint with one kind of damage, and return its description."""
        folder.mkdir(parents=True)
        tensors, config = self.make_parts()
        if self._draw(2):
            self.write(folder, tensors, config)
            path = folder / self.file_name
            kind = BYTE_DAMAGES[self._draw(len(BYTE_DAMAGES))]
            path.write_bytes(self._damage_bytes(bytearray(path.read_bytes()), kind))
            self.hides_damage = not self.has_checksums
            return kind
        kinds = (*TENSOR_DAMAGES, *CONFIGURATION_DAMAGES) if config else TENSOR_DAMAGES
        kind = kinds[self._draw(len(kinds))]
        where = self._damage_parts(tensors, config, kind)
        self.write(folder, tensors, config)
        return f"{kind} {where}"

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def _damage_bytes(self, data: bytearray, kind: str) -> bytes:
        start = self._draw(len(data))
        stop = min(len(data), start + 1 + self._draw(len(data) // 3))
        if kind == "cut end":
            del data[start:]
        elif kind == "cut piece":
            del data[start:stop]
        elif kind == "zero piece":
            data[start:stop] = bytes(stop - start)
        else:
            head = 8 + int.from_bytes(data[:8], "little") if self.file_name.endswith(".safetensors") else 2000
            reach = min(head, len(data)) if kind == "flip header" else len(data)
            for _ in range(1 + self._draw(20)):
                data[self._draw(reach)] ^= 1 << self._draw(8)
        return bytes(data)

    def _damage_parts(self, tensors: dict[str, Tensor], config: dict[str, Any], kind: str) -> str:
        name = sorted(tensors)[self._draw(len(tensors))]
        tensor = tensors[name]
        if kind == "drop":
            del tensors[name]
        elif kind == "rename":
            tensors[name + "s" if self._draw(2) else name[1:]] = tensors.pop(name)
        elif kind == "retype":
            dtype = OTHER_TYPES[self._draw(len(OTHER_TYPES))]
            tensors[name] = tensor.to(dtype)
            self.is_rounded = dtype in (torch.float16, torch.bfloat16)
            return f"{name} to {dtype}"
        elif kind == "reshape":
            shapes = (tensor.reshape(-1), tensor[None], tensor.reshape(-1)[:-1])
            tensors[name] = shapes[self._draw(len(shapes))].clone()
        elif kind == "no number":
            tensors[name] = tensor.clone()
            tensors[name].view(-1)[self._draw(tensor.numel())] = NO_NUMBERS[self._draw(len(NO_NUMBERS))]
        else:
            return self._damage_configuration(config, kind)
        return name

    def _damage_configuration(self, config: dict[str, Any], kind: str) -> str:
        while True:  # sometimes descends into sections
            name = sorted(config)[self._draw(len(config))]
            if not isinstance(config[name], dict) or not config[name] or not self._draw(3):
                break
            config = config[name]
        if kind == "no configuration":
            del config[name]
            return name
        config[name] = copy.copy(OTHER_VALUES[self._draw(len(OTHER_VALUES))])
        return f"{name} to {config[name]!r}"


class OwnForm(Form):
    """daisy's own form."""

    name, is_converted, has_checksums = "daisy", False, True

    def make_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with_digest = _save_once()
        with safe_open(with_digest, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no dict
            return tensors, json.loads(file.metadata()["daisy"])

    def write(self, folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        save_file(tensors, folder / self.file_name, {"daisy": json.dumps(config)})


class OlderForm(OwnForm):
    """daisy's own form from before it had a digest."""

    name, has_checksums = "daisy, older", False

    def make_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, config = super().make_parts()
        del config["digest"]
        return tensors, config


class HuggingFaceForm(Form):
    """A Hugging Face folder with safetensors."""

    name, file_name = "Hugging Face", "model.safetensors"

    def make_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = (
            (r"backbone\.encoder\.transformer\.(.*)", r"encoder.\1"),
            (r"backbone\.encoder\.(feature_projection\..*)", r"\1"),
            (r"backbone\.(feature_extractor\..*)", r"\1"),
            (r"backbone\.mask_embedding", "masked_spec_embed"),
        )
        tensors = {
            match.expand(new): weight.clone()
            for name, weight in self.weights.items()
            for old, new in names
            if (match := re.fullmatch(old, name))
        }
        channels, kernels, strides = zip(*SHAPE.conv_layers, strict=True)
        return tensors, {
            "model_type": "hubert",
            "num_hidden_layers": SHAPE.num_layers,
            "hidden_size": SHAPE.width,
            "intermediate_size": SHAPE.ffn_width,
            "num_attention_heads": SHAPE.num_heads,
            "conv_dim": list(channels),
            "conv_kernel": list(kernels),
            "conv_stride": list(strides),
            "num_conv_pos_embeddings": SHAPE.pos_kernel,
            "num_conv_pos_embedding_groups": SHAPE.pos_groups,
            "layer_norm_eps": 1e-5,
            "preprocessor": {"sampling_rate": 16000, "do_normalize": False},
        }

    def write(self, folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        save_file(tensors, folder / self.file_name)
        rest = dict(config)
        (folder / "preprocessor_config.json").write_text(json.dumps(rest.pop("preprocessor", {})), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(rest), encoding="utf-8")

    def find(self, folder: Path) -> Path:
        return folder


class FairseqForm(Form):
    """A file written by torch.save, whose records have checksums."""

    name, file_name, has_checksums = "fairseq", "hubert.pt", True

    @property
    def weights(self) -> dict[str, Tensor]:
        return _convert_once()

    def make_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model_fields = {
            "encoder_layers": SHAPE.num_layers,
            "encoder_embed_dim": SHAPE.width,
            "encoder_ffn_embed_dim": SHAPE.ffn_width,
            "encoder_attention_heads": SHAPE.num_heads,
            "conv_feature_layers": str(list(SHAPE.conv_layers)),
            "conv_pos": SHAPE.pos_kernel,
            "conv_pos_groups": SHAPE.pos_groups,
            "logit_temp": 0.1,
            "extractor_mode": "default",
            "layer_norm_first": False,
        }
        task_fields = {"normalize": False, "sample_rate": 16000, "labels": ["km"]}
        return fairseq.weights(make_model()), {"model": model_fields, "task": task_fields}

    def write(self, folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        torch.save({"args": None, "cfg": config, "model": tensors}, folder / self.file_name)


class TorchaudioForm(Form):
    """A state dict without a configuration."""

    name, file_name, has_checksums, overrides = "torchaudio", "hubert.pth", True, {"num_heads": "4"}

    def make_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights = make_model().backbone.state_dict()
        del weights["mask_embedding"]
        return weights, {}

    def write(self, folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        torch.save(tensors, folder / self.file_name)


FORMS = (OwnForm, OlderForm, HuggingFaceForm, OwnForm, FairseqForm, TorchaudioForm)
"""The forms in turn: every third is daisy's own."""


@cache
def _save_once() -> Path:
    """Write the model in daisy's form, and return the file, which is removed when the process ends."""
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    daisy.save(make_model(), folder / "hubert.safetensors")
    return folder / "hubert.safetensors"


@cache
def _convert_once() -> dict[str, Tensor]:
    """Read the undamaged weights in fairseq's form, whose weight norm rounds those of the positional convolution."""
    config = FairseqForm(torch.Generator()).make_parts()[1]
    model = fairseq.from_parts(config["model"], config["task"], fairseq.weights(make_model()))
    return model.state_dict()
