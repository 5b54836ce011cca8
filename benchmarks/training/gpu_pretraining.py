"""Pre-trains a HuBERT with exits in plain PyTorch, from one packed file to a checkpoint: minutes of one large GPU.

    python -m benchmarks.training.gpu_pretraining speech.safetensors out.safetensors --start daisy-mini --minutes 9

All audio is kept decoded on the device; a batch is a stretch of an endless stream of recordings in random order, with
noise and other talkers mixed in, and masked as in HuBERT. The losses are those of the plugin's
`daisy_exit_pretraining`. The state is saved every minute beside the checkpoint, and another call continues from there.
``--updates`` counts updates instead of minutes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import daisy
from benchmarks.shared.script import make_parser, parse_positive, run_script
from benchmarks.training.gpu_settings import Settings, add_digests
from benchmarks.training.packed_batches import SPECIAL_SYMBOLS, Stream, corrupt, draw_masks
from benchmarks.training.packed_speech import HOP, read_num_units, unpack
from daisy import _files
from daisy.checkpoints import Model
from daisy.models import Backbone, BackboneConfig, ExitObjective, FinalHead, LayerLosses

SHAPES = {
    "mini": BackboneConfig(
        num_layers=12, width=256, ffn_width=1024, num_heads=4,
        conv_layers=((128, 10, 5), *((128, 3, 2),) * 4, *((128, 2, 2),) * 2),
    ),
    "small": BackboneConfig(
        num_layers=12, width=384, ffn_width=1536, num_heads=6,
        conv_layers=((256, 10, 5), *((256, 3, 2),) * 4, *((256, 2, 2),) * 2),
    ),
    "base": BackboneConfig(),
}  # fmt: skip


class Pretraining(nn.Module):
    """A backbone, HuBERT's own head and the exit heads, with all their losses."""

    def __init__(self, settings: Settings, num_units: int):
        super().__init__()
        torch.manual_seed(settings.seed)
        start = daisy.load(settings.start) if settings.start else None
        self.backbone = start.backbone if start else Backbone(SHAPES[settings.shape])
        config = self.backbone.config
        self.final_head = FinalHead(config.width, config.width, num_units)
        nn.init.normal_(self.final_head.embeddings, std=config.width**-0.5)
        self.exits = ExitObjective(config.num_layers, config.width, num_units, range(1, config.num_layers + 1))
        if start and start.heads is not None:
            self.exits.start_from(start.heads)
        if start and start.final_head is not None and start.final_head.num_units == num_units:
            self.final_head = start.final_head
        self.settings = settings
        self.requires_grad_(True)
        self.front_end_learns = settings.train_front_end or start is None
        self.backbone.feature_extractor.requires_grad_(self.front_end_learns)

    def forward(self, waveforms: Tensor, units: Tensor, masked: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and the logged values: nats and accuracy by layer."""
        with torch.autocast(waveforms.device.type, torch.bfloat16):
            states, features = self._run(waveforms, masked)
        states = [of_layer.float() for of_layer in states]
        losses = self.exits(states, units, torch.ones_like(masked), masked)
        final = F.cross_entropy(self.final_head(states[-1]).flatten(0, 1), units.flatten())
        exits = sum_losses(losses) / units.numel() / len(states)
        logged = {"final_nats": final.detach()}
        for layer, judged in enumerate(losses.judged, 1):
            logged[f"nats_{layer}"] = judged.loss.sum().detach() / units.numel()
            logged[f"accuracy_{layer}"] = judged.num_correct.sum() / units.numel()
        loss = final + self.settings.exit_weight * exits
        if self.front_end_learns:
            loss = loss + self.settings.features_weight * features.float().square().mean()
        return loss, logged

    def _run(self, waveforms: Tensor, masked: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run the network, and return the states of layers 1 to L and the convolutions' output."""
        with torch.set_grad_enabled(self.front_end_learns and torch.is_grad_enabled()):
            features, _ = self.backbone.front_end(waveforms)
        if self.front_end_learns:
            features = torch.lerp(features.detach(), features, self.settings.front_end_gradient)
        projected = self.backbone.project(features)
        projected = torch.where(masked[..., None], self.backbone.mask_embedding.to(projected.dtype), projected)
        states = [self.backbone.position(projected, None)]
        kept = torch.rand(self.backbone.config.num_layers) >= (self.settings.layer_drop if self.training else 0.0)
        for layer, keep in enumerate(kept.tolist(), 1):
            states.append(self.backbone.layer(layer, states[-1], None) if keep else states[-1])
        return states[1:], features


def sum_losses(losses: LayerLosses) -> Tensor:
    """Sum all layers' losses over all frames, and the regressors' Huber losses weighted by frames."""
    total = torch.zeros((), device=losses.predicted[0].device)
    for judged, predicted in zip(losses.judged, losses.predicted, strict=True):
        errors = F.huber_loss(predicted, judged.mean(), reduction="none")
        total = total + judged.loss.sum() + (errors * judged.num_counted).sum()
    return total


class Run:
    """A training run, with all the state that is saved and restored."""

    def __init__(self, packed: Path, out: Path, settings: Settings, device: torch.device):
        settings = add_digests(settings, packed)
        self.out, self.settings, self.device = out, settings, device
        train = unpack(packed, "train")
        self.valid = unpack(packed, "valid")
        self.noise = unpack(packed, "noise").samples.flatten().to(device)
        if len(self.noise) < (needed := (settings.crop_frames + 1) * HOP):
            raise daisy.UsageError(
                f"{packed}: has {len(self.noise)} samples of noise, and a stretch of --crop-frames "
                f"{settings.crop_frames} takes {needed}: pack more noise, or train on shorter stretches"
            )
        self.model = Pretraining(settings, read_num_units(packed) + SPECIAL_SYMBOLS).to(device).train()
        learnt = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            learnt, lr=settings.lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=device.type == "cuda"
        )
        self.stream = Stream(train, device, torch.Generator().manual_seed(settings.seed))
        self.random = torch.Generator(device).manual_seed(settings.seed)
        self.update, self.elapsed = 0, 0.0
        self.state_path = out.with_suffix(".state")
        if self.state_path.is_file():
            self._restore()

    def train(self) -> None:
        """Train until the time or the updates are used up, and write the checkpoint."""
        began, saved, logged_at = time.perf_counter() - self.elapsed, time.perf_counter(), time.perf_counter()
        while (progress := self._progress()) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * min(1.0, progress / self.settings.warmup) * max(0.02, 1 - progress)
            loss, logged = self._step()
            self.update += 1
            self.elapsed = time.perf_counter() - began
            if self.update % 50 == 0 or self.update <= 3:
                rate = (50 if self.update > 3 else 1) / (time.perf_counter() - logged_at)
                logged_at = time.perf_counter()
                print_log(self.update, self.elapsed, rate, {"loss": loss, **logged})
            if time.perf_counter() - saved > 60:
                self._save()
                saved = time.perf_counter()
        self._save()
        print_log(self.update, self.elapsed, 0.0, self._validate())
        daisy.save(self._make_model(), self.out)

    def _progress(self) -> float:
        if self.settings.updates is not None:
            return self.update / self.settings.updates
        assert self.settings.minutes is not None
        return self.elapsed / (60 * self.settings.minutes)

    def _step(self) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        waveforms, units = self.stream.draw(settings.batch, settings.crop_frames)
        waveforms = corrupt(waveforms, self.noise, settings, self.random)
        masked = draw_masks(*units.shape, settings, self.random, self.device)
        loss, logged = self.model(waveforms, units, masked)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        return loss.detach(), logged

    @torch.no_grad()
    def _validate(self) -> dict[str, Tensor]:
        """Compute the losses on clean dev audio without masks."""
        settings = self.settings
        stream = Stream(self.valid, self.device, torch.Generator().manual_seed(0))
        batch = max(1, min(settings.batch, len(self.valid.units) // (settings.crop_frames + 1)))
        waveforms, units = stream.draw(batch, settings.crop_frames)
        self.model.eval()
        _, logged = self.model(waveforms, units, torch.zeros_like(units, dtype=torch.bool))
        self.model.train()
        return {f"valid_{name}": value for name, value in logged.items()}

    def _save(self) -> None:
        state = {
            "settings": json.dumps(asdict(self.settings)),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "elapsed": self.elapsed,
            "order": self.stream.order,
            "random": [self.stream.generator.get_state(), self.random.get_state(), torch.get_rng_state()],
        }
        _files.write(self.state_path, lambda stream: torch.save(state, stream))

    def _restore(self) -> None:
        state: dict[str, Any] = torch.load(self.state_path, weights_only=True, map_location="cpu")
        before, now = json.loads(state["settings"]), json.loads(json.dumps(asdict(self.settings)))
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise daisy.UsageError(
                f"{self.state_path}: is of a run with other settings ({', '.join(changed)}); use another file"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update, self.elapsed, self.stream.order = state["update"], state["elapsed"], state["order"]
        self.stream.generator.set_state(state["random"][0])
        self.random.set_state(state["random"][1])
        torch.set_rng_state(state["random"][2])

    def _make_model(self) -> Model:
        provenance = {
            "source": "benchmarks.training.gpu_pretraining",
            "settings": asdict(self.settings),
            "updates": self.update,
        }
        model = self.model.cpu()
        return Model(
            backbone=model.backbone, heads=model.exits.heads, final_head=model.final_head, provenance=provenance
        )


def print_log(update: int, elapsed: float, rate: float, values: dict[str, Tensor]) -> None:
    """Print one line of JSON."""
    numbers = {name: round(float(value), 3) for name, value in values.items()}
    print(
        json.dumps({"update": update, "sec": round(elapsed, 1), "updates_per_sec": round(rate, 2), **numbers}),
        flush=True,
    )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("packed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers: takes a minute, then faster")
    defaults = Settings()
    for name in ("shape", "start", "seed", "batch", "crop_frames", "lr", "layer_drop"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--train-front-end", action="store_true")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float)
    length.add_argument("--updates", type=parse_positive)
    arguments = vars(parser.parse_args())
    if arguments["start"] and arguments["shape"] != defaults.shape:
        raise daisy.UsageError(f"--shape {arguments['shape']}: the network has the shape of --start")
    if arguments["minutes"] is not None and arguments["minutes"] <= 0:
        raise daisy.UsageError(f"--minutes {arguments['minutes']:g}: must be above 0")
    packed, out, device, compiled = (arguments.pop(name) for name in ("packed", "out", "device", "compile"))
    torch.backends.cuda.matmul.allow_tf32 = True
    run = Run(packed, out, replace(defaults, **arguments), torch.device(device))
    if compiled:
        for layer in run.model.backbone.encoder.transformer.layers:
            layer.compile()
        run.model.backbone.feature_extractor.compile()
    run.train()


if __name__ == "__main__":
    run_script(main)
