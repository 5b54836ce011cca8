"""The bundled clips, clean and with the bundled noise: made, extracted, drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daisy import _files, audio, checkpoints
from daisy.audio import mixing
from daisy.calibration import intervals, tracing
from daisy.calibration.depth import calibrate_depth
from daisy.encoder import EarlyExitEncoder
from daisy.evaluation import figures
from daisy.extraction import Extractor
from daisy.policies import Policy

FOLDER = Path(__file__).parents[1] / "assets" / "demo"
SNRS_DB: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0, 0.0, -5.0)
DEPTH = 0.6


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """Exit layers of each clip in each condition of `SNRS_DB`, and where the files are."""

    exit_layers: dict[str, list[int]]
    num_layers: int
    policy: Policy
    seconds: float
    audio_sec: float
    figure: Path


def run(out: Path, source: str = "daisy-mini", progress: Callable[[int], None] = lambda count: None) -> Demonstration:
    """Write the noisy clips, extract their features as ``daisy extract`` does, and draw exit layer against SNR.

    The threshold is chosen on the clean clips, without labels, for a mean depth of `DEPTH`.
    """
    clips = {path.stem: audio.read(path) for path in sorted(FOLDER.glob("*.flac")) if path.stem != "noise"}
    noises = mixing.NoiseBank([audio.read(FOLDER / "noise.flac")])
    recordings = []
    for snr_db in SNRS_DB:
        condition = figures.format_snr(snr_db).replace(" ", "")
        mixed = tracing.mix_noise(list(clips.values()), noises, snr_db)
        for name, waveform in zip(clips, mixed, strict=True):
            path = out.absolute() / "audio" / condition / f"{name}.wav"
            _files.write(path, audio.encode_wav(waveform))
            recordings.append(audio.Recording(path=path, name=f"{condition}/{name}.wav"))
    model = checkpoints.load(source)
    clean, _ = tracing.trace(model, list(clips.values()), list(clips), scores=["entropy"])
    policy = calibrate_depth("entropy", clean, DEPTH).policy
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, keep="last")
    extractor = Extractor(encoder, out / "features", checkpoint=checkpoints.digest(source))
    result = extractor.run(recordings, overwrite=True, progress=progress)
    by_path = {row.path: row.exit_layer for row in result.rows}
    exits = [by_path[str(recording.path)] for recording in recordings]  # condition after condition
    columns = [exits[i : i + len(clips)] for i in range(0, len(exits), len(clips))]
    num_layers = model.backbone.config.num_layers
    figure = out / "exit_layers.png"
    drawn = figures.draw_exit_layers_by_snr(
        SNRS_DB,
        {policy.name: [intervals.bootstrap(column, list(clips)) for column in columns]},
        num_layers=num_layers,
        title=f"{len(clips)} clips with recorded rain; {DEPTH:.0%} depth on the clean ones",
        points={policy.name: columns},
    )
    figures.save(drawn, figure)
    totals = result.totals()
    return Demonstration(
        exit_layers={name: [column[i] for column in columns] for i, name in enumerate(clips)},
        num_layers=num_layers,
        policy=policy,
        seconds=float(totals["seconds"] or 0),
        audio_sec=float(totals["audio_sec"] or 0),
        figure=figure,
    )
