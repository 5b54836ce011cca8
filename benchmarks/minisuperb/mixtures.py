"""Corpora of the tasks with mixtures: SE and SS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.minisuperb.draft import Draft, list_versions
from benchmarks.minisuperb.sources import Clip, add_noise, cut_piece, cut_pieces, make_generator

PIECE_SEC = {"train": 2.0, "dev": 4.0, "test": 4.0}
"""Length of pieces in the tasks with a recurrent network over 100 frames per second, which dominates the cost."""
VOICEBANK_SNRS_DB = (0.0, 5.0, 10.0, 15.0)
"""Ratios of VoiceBank-DEMAND's training set."""
PAIRS = {"train": 2400, "dev": 40, "test": 60}
LEVEL, MAX_GAIN_DB = 0.05, 2.5
"""Level of the first talker (RMS), and the maximum difference of the second talker's in dB."""


def build_enhancement(draft: Draft) -> None:
    """Build SE: VoiceBank layout, noisy/wav.scp and clean/wav.scp; one piece per recording, two in training."""
    for split, seconds in PIECE_SEC.items():
        recordings = draft.read_clips("librispeech", split)
        if split == "train":
            clips = [piece for recording in recordings for piece in cut_pieces(recording, seconds)[:2]]
        else:
            clips = [cut_piece(recording, seconds, draft.seed) for recording in recordings]
        for name, snr_db in list_versions(split).items():
            ratios: Sequence[float | None] = [snr_db] if split == "test" else VOICEBANK_SNRS_DB
            _write_mixtures(draft, name, _mix_noise(clips, ratios, "test" if split == "test" else "train", draft.seed))


def _mix_noise(
    clips: Iterable[Clip], ratios: Sequence[float | None], noise_split: str, seed: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield clips with and without noise, cycling through the ratios."""
    for index, clip in enumerate(clips):
        degraded = add_noise(clip, ratios[index % len(ratios)], noise_split, seed)
        yield clip.name, {"noisy": degraded.waveform, "clean": clip.waveform}


def build_separation(draft: Draft) -> None:
    """Build SS: LibriMix layout, mix_clean, s1 and s2; mixtures are as long as the shorter talker's piece ("min").

    In the noisy test sets, the lists of ``mix_clean`` hold the mixture with noise, LibriMix's mix_both, so that the
    same configuration reads them.
    """
    for split, count in PAIRS.items():
        recordings = draft.read_clips("librispeech", split)
        clips = [piece for recording in recordings for piece in cut_pieces(recording, PIECE_SEC[split])[:4]]
        count = count if draft.limit is None else min(count, draft.limit)
        pairs = _draw_pairs(clips, count, make_generator(draft.seed, split, "pairs"))
        for name, snr_db in list_versions(split).items():
            _write_mixtures(draft, name, _mix_talkers(draft, pairs, split, snr_db))


def _mix_talkers(
    draft: Draft, pairs: Iterable[tuple[Tensor, Tensor]], split: str, snr_db: float | None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the mixture of each pair of talkers, with noise if there is any, and each talker alone."""
    for index, (first, second) in enumerate(pairs):
        mixed = draft.degrade(Clip(f"{index:04d}", first + second), split, snr_db)
        yield mixed.name, {"mix_clean": mixed.waveform, "s1": first, "s2": second}


def _draw_pairs(clips: list[Clip], count: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Draw pairs of pieces by different speakers; their levels differ by at most `MAX_GAIN_DB`."""
    pairs: list[tuple[Tensor, Tensor]] = []
    while len(pairs) < count:
        first, second = (clips[index] for index in torch.randint(len(clips), (2,), generator=generator).tolist())
        if first.speaker != second.speaker:
            length = min(len(first.waveform), len(second.waveform))
            a, b = (clip.waveform[:length] / clip.waveform[:length].square().mean().sqrt() for clip in (first, second))
            gain_db = 2 * MAX_GAIN_DB * float(torch.rand(1, generator=generator)) - MAX_GAIN_DB
            pairs.append((LEVEL * a, LEVEL * b * 10 ** (gain_db / 20)))
    return pairs


def _write_mixtures(draft: Draft, split: str, mixtures: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
    """Write mixtures, given by name and kind of audio, and Kaldi's lists for each kind."""
    lists: dict[str, list[str]] = {}
    for name, audio in mixtures:
        paths = {kind: Path(split) / "wav" / kind / f"{name}.wav" for kind in audio}
        draft.save({paths[kind]: waveform for kind, waveform in audio.items()})
        for kind, path in paths.items():
            lists.setdefault(kind, []).append(f"{name} {draft.final / path}")
    for kind, lines in lists.items():
        draft.write_lines(Path(split) / kind / "wav.scp", lines)
