"""Recordings: found, read, resampled, batched; and speech made harder to hear."""

from daisy.audio.augmentation import Augmentation, Augmenter
from daisy.audio.batching import batch_by_length
from daisy.audio.conditions import Condition
from daisy.audio.files import AudioFile, encode_wav, num_samples, read, resample
from daisy.audio.mixing import NoiseBank, mix
from daisy.audio.recordings import (
    Recording,
    assign_speakers,
    count_repeats,
    find,
    format_manifest_line,
    read_manifest,
    read_speakers,
)

__all__ = [
    "AudioFile",
    "Augmentation",
    "Augmenter",
    "Condition",
    "NoiseBank",
    "Recording",
    "assign_speakers",
    "batch_by_length",
    "count_repeats",
    "encode_wav",
    "find",
    "format_manifest_line",
    "mix",
    "num_samples",
    "read",
    "read_manifest",
    "read_speakers",
    "resample",
]
