"""Recordings in zip archives, as fairseq's own dataset reads them."""

import torch

from daisy import audio
from tests.audio.test_archives import archive  # noqa: F401  a fixture


def test_members_are_those_that_fairseq_reads(archive):  # noqa: F811
    from fairseq.data.audio.hubert_dataset import HubertDataset

    manifest = archive.with_name("train.tsv")
    theirs = HubertDataset(str(manifest), 16000, [], 50.0, [], [])
    recordings = audio.read_manifest(manifest)
    assert len(theirs) == len(recordings) == 3
    for index, recording in enumerate(recordings):
        assert torch.allclose(theirs.get_audio(index), audio.read(recording.path), atol=1e-6)
