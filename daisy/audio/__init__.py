"""Find, read, resample and batch recordings, and make speech harder to hear."""

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
    measure_recording,
    read_recording,
    read_speakers,
    take_channels,
)
from daisy.audio.references import read_references, require_references
from daisy.audio.search import Findings, find, search
from daisy.audio.transcripts import write_transcripts
from daisy.audio.weighting import SetShare, check_weights, find_sets, measure_shares, weigh_sets

__all__ = [
    "AudioFile",
    "Augmentation",
    "Augmenter",
    "Channel",
    "Condition",
    "Findings",
    "NoiseBank",
    "Recording",
    "SetShare",
    "assign_speakers",
    "batch_by_length",
    "check_weights",
    "count_repeats",
    "encode_wav",
    "find",
    "find_sets",
    "format_manifest_line",
    "format_manifest_root",
    "measure_recording",
    "measure_shares",
    "mix",
    "num_samples",
    "read",
    "read_manifest",
    "read_recording",
    "read_references",
    "read_speakers",
    "require_references",
    "resample",
    "search",
    "take_channels",
    "weigh_sets",
    "write_transcripts",
]
