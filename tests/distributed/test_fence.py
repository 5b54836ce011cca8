"""Workers of a run that has ended do not write into the folder of another that has begun."""

from dataclasses import replace

import pytest

from daisy import audio
from daisy.audio import Recording
from daisy.distributed.extraction.fence import Fence
from daisy.errors import OutputError
from daisy.extraction.batch_encoder import Batch
from daisy.extraction.places import Folder
from daisy.extraction.run_folder import RunFolder
from daisy.extraction.shards import EVERYTHING
from daisy.extraction.tasks import Task, TaskEncoder
from tests.distributed.recordings import make_extractor, write_recordings


def test_a_shard_of_a_run_that_is_over_gets_no_name(tmp_path):
    recording = audio.find([write_recordings(tmp_path / "in")])[0]
    assert isinstance(recording, Recording)
    extractor = make_extractor(tmp_path / "out", shards="tar")
    batch = Batch(recordings=[recording], outputs=["0.safetensors"], num_samples=1600)
    task = Task(batches=[batch], shard="shard-000000.tar")
    with RunFolder(extractor.out, extractor.settings, EVERYTHING) as folder:
        fence = Fence.read(folder.journal)
        assert b"pid" in fence.signature
        place, rest = Folder(extractor.out), (extractor.settings, 1.0)
        ours = TaskEncoder(extractor.encoder, place, *rest, check=fence.check)
        theirs = TaskEncoder(extractor.encoder, place, *rest, check=replace(fence, signature=b"earlier").check)
        with pytest.raises(OutputError, match="another run has begun there"):
            list(theirs.encode(task))
        assert [path.name for path in extractor.out.iterdir() if "shard" in path.name] == []
        ((_, row),) = ours.encode(task)
        assert row.shard == "shard-000000.tar"
        assert (extractor.out / row.shard).is_file()
    fence.check()  # nobody has begun anything
