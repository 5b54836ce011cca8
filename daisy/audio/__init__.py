"""Recordings: found, read, resampled, batched; and speech made harder to hear."""

from daisy.audio.augmentation import Augmentation, Augmenter
from daisy.audio.batching import batch_by_length
from daisy.audio.conditions import Condition
from daisy.audio.files import AudioFile, encode_wav, num_samples, read, resample
from daisy.audio.manifests import format_manifest_line, format_manifest_root, read_manifest
from daisy.audio.mixing import NoiseBank, mix
from daisy.audio.recordings import (
    Channel,
    Recording,
    assign_speakers,
    count_repeats,
    read_speakers,
    take_channels,
)
from daisy.audio.search import Findings, find, search
from daisy.audio.transcripts import read_texts, write_transcripts

__all__ = [
    "AudioFile",
    "Augmentation",
    "Augmenter",
    "Channel",
    "Condition",
    "Findings",
    "NoiseBank",
    "Recording",
    "assign_speakers",
    "batch_by_length",
    "count_repeats",
    "encode_wav",
    "find",
    "format_manifest_line",
    "format_manifest_root",
    "mix",
    "num_samples",
    "read",
    "read_manifest",
    "read_speakers",
    "read_texts",
    "resample",
    "search",
    "take_channels",
    "write_transcripts",
]
