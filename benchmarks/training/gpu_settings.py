"""Settings of a pre-training with `benchmarks.training.gpu_pretraining`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from daisy import _files, checkpoints


@dataclass(frozen=True)
class Settings:
    """Settings of a run; a run that continues another must have the same."""

    shape: str = "mini"
    start: str = ""
    minutes: float | None = None
    updates: int | None = None
    crop_frames: int = 250
    batch: int = 128
    lr: float = 1e-3
    warmup: float = 0.03
    """Share of the run that is warm-up."""
    exit_weight: float = 3.0
    unmasked_prob: float = 0.3
    mask_prob: float = 0.065
    """Share of frames that begin a masked span of ten."""
    noise_prob: float = 0.4
    talkers_prob: float = 0.25
    snr_db: tuple[float, float] = (-5.0, 20.0)
    gain_db: tuple[float, float] = (-10.0, 6.0)
    layer_drop: float = 0.05
    train_front_end: bool = False
    """Whether the front end of a start is trained; without a start it always is."""
    front_end_gradient: float = 0.1
    """Factor of the gradient that reaches the front end, as in HuBERT's pre-training."""
    features_weight: float = 10.0
    """Weight of the mean square of the convolutions' output, where they learn."""
    seed: int = 0
    packed_digest: str = ""
    start_digest: str = ""
    """SHA-256 of the packed file and of the start: a file may change under the same name."""


def add_digests(settings: Settings, packed: Path) -> Settings:
    """Add the digests of the packed file and of the start, if there is one."""
    start = checkpoints.digest(settings.start) if settings.start else ""
    return replace(settings, packed_digest=_files.digest(packed), start_digest=start)
