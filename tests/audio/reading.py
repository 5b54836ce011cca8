"""Helpers shared by the tests that read files."""

import numpy
import pytest
import torch

from daisy import AudioError, audio

RATE = 16000


def noise(seconds=3.0, seed=0, channels=1):
    samples = 0.1 * numpy.random.default_rng(seed).standard_normal((int(seconds * RATE), channels))
    return samples.astype("float32")


def read_in_parts(path, step=7001):
    file = audio.AudioFile(path)
    parts = [file.read(start, min(start + step, file.num_samples)) for start in range(0, file.num_samples, step)]
    return torch.cat(parts)


def assert_same_everywhere(path, expected):
    """Check that a file gives the same samples whole and in parts, and the same count; ``expected`` is (N,)."""
    waveform = audio.read(path)
    assert torch.equal(waveform, torch.as_tensor(expected))
    assert torch.equal(read_in_parts(path), waveform)
    assert audio.num_samples(path) == len(waveform)


def assert_refused(path, message):
    for read in (audio.read, read_in_parts):
        with pytest.raises(AudioError) as error:
            read(path)
        assert message in str(error.value)
        assert str(error.value).startswith(f"{path}: ")
