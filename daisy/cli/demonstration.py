"""The demonstration on bundled clips, clean and with bundled noise: mixing, extraction, figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from daisy import _files, audio, checkpoints
from daisy.audio import mixing
from daisy.calibration import intervals, tracing
from daisy.calibration.depth import calibrate_depth
from daisy.checkpoints import Model
from daisy.cli.options import DEFAULT_CHECKPOINT, DEFAULT_POLICY, SNRS_DB
from daisy.encoder import EarlyExitEncoder
from daisy.evaluation import figures
from daisy.evaluation.captions import say_exits
from daisy.extraction import ExtractionReport, Extractor
from daisy.policies import Policy

FOLDER = Path(__file__).parents[1] / "assets" / "demo"
"""Folder of the clips, the noise, and their credits."""
DEPTH = 0.6
"""Mean executed share of the layers, over all clips and conditions."""

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """Exit layers of each clip in each condition of `SNRS_DB`, and the paths of the files."""

    exit_layers: dict[str, list[int]]
    num_layers: int
    policy: Policy
    seconds: float
    audio_sec: float
    figure: Path


def list_clips() -> list[Path]:
    """List the bundled clips of speech."""
    return sorted(path for path in FOLDER.glob("*.flac") if path.stem != "noise")


def run(out: Path, source: str = DEFAULT_CHECKPOINT, progress: Progress = lambda count: None) -> Demonstration:
    """Write the noisy clips, extract their features as ``daisy extract`` does, and draw exit layer against SNR.

    The default policy is set without labels on these same clips, clean and noisy, for a mean depth of `DEPTH`.

    Args:
        out: folder to write to.
        source: checkpoint with exit heads.
        progress: called with the number of recordings just run; each is run once to set the policy, and once to
            extract.

    Returns:
        The exit layer of each clip, and the path of the figure.

    Raises:
        DaisyError: as loading, extracting and drawing do.
    """
    model = checkpoints.load(source)
    sample_rate = model.backbone.config.sample_rate
    clips = {path.stem: audio.read(path, sample_rate) for path in list_clips()}
    noisy_clips = _mix_clips(clips, sample_rate)
    recordings = _write_clips(noisy_clips, out.absolute() / "audio", sample_rate)
    policy = _choose_policy(model, noisy_clips, progress)
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, keep="last")
    extractor = Extractor(encoder, out / "features", checkpoint=checkpoints.digest(source))
    report = extractor.run(recordings, overwrite=True, progress=progress)
    exit_layers = _sort_exit_layers(report, recordings, list(clips))
    num_layers = model.backbone.config.num_layers
    totals = report.totals()
    return Demonstration(
        exit_layers=exit_layers,
        num_layers=num_layers,
        policy=policy,
        seconds=float(totals["seconds"] or 0),
        audio_sec=float(totals["audio_sec"] or 0),
        figure=_draw(exit_layers, policy, num_layers, out / "exit_layers.png"),
    )


def _mix_clips(clips: dict[str, Tensor], sample_rate: int) -> dict[str, Tensor]:
    """Mix each clip with noise at each SNR, one SNR after the other; keys are paths, with a folder for each SNR."""
    noises = mixing.NoiseBank([audio.read(FOLDER / "noise.flac", sample_rate)])
    noisy_clips: dict[str, Tensor] = {}
    for snr_db in SNRS_DB:
        condition = figures.format_snr(snr_db).replace(" ", "")
        mixed = tracing.mix_noise(list(clips.values()), noises, snr_db)
        noisy_clips |= {f"{condition}/{name}.wav": waveform for name, waveform in zip(clips, mixed, strict=True)}
    return noisy_clips


def _write_clips(noisy_clips: dict[str, Tensor], folder: Path, sample_rate: int) -> list[audio.Recording]:
    """Write the clips, in order."""
    for name, waveform in noisy_clips.items():
        _files.write(folder / name, audio.encode_wav(waveform, sample_rate))
    return [audio.Recording(path=folder / name, name=name) for name in noisy_clips]


def _choose_policy(model: Model, noisy_clips: dict[str, Tensor], progress: Progress) -> Policy:
    """Set the default policy to `DEPTH` on all clips."""
    runs, _ = tracing.trace(model, list(noisy_clips.values()), list(noisy_clips), progress=progress)
    return calibrate_depth(DEFAULT_POLICY, runs, DEPTH).policy


def _sort_exit_layers(
    report: ExtractionReport, recordings: list[audio.Recording], names: list[str]
) -> dict[str, list[int]]:
    """Return the exit layers of each clip, one for each SNR."""
    by_path = {row.path: row.exit_layer for row in report.rows}
    exit_layers = [by_path[str(recording.path)] for recording in recordings]
    return {name: exit_layers[place :: len(names)] for place, name in enumerate(names)}


def _draw(exit_layers: dict[str, list[int]], policy: Policy, num_layers: int, path: Path) -> Path:
    """Plot the clips' exit layers against SNR, with the mean and its confidence interval."""
    names = list(exit_layers)
    by_ratio = [list(layers) for layers in zip(*exit_layers.values(), strict=True)]
    curve = [intervals.bootstrap(layers, names) for layers in by_ratio]
    figure = figures.draw_exit_layers_by_snr(
        SNRS_DB,
        {policy.name: curve},
        num_layers=num_layers,
        title=say_exits(policy.name, curve, [figures.format_snr(snr_db) for snr_db in SNRS_DB], "rain"),
        points={policy.name: by_ratio},
    )
    figures.save(figure, path)
    return path
