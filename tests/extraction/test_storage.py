"""Results in remote storage: a server with S3's protocol, and other protocols of fsspec."""

import io
import json
import tarfile

import pytest
import soundfile
import torch
from safetensors.torch import load

from daisy import EarlyExitEncoder, audio, policies
from daisy.errors import OutputError, UsageError
from daisy.extraction import Extractor, rebuild_index
from daisy.extraction.places import Storage
from tests.conftest import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
# of the server's and the client's connections


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a server on this machine, as s3fs's file system; its server is where the usual variables say."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs (the extra storage)")
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer(
        "127.0.0.1", port=0, verbose=False
    )
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        storage = s3fs.S3FileSystem(use_listings_cache=False)
        storage.mkdir("features")
        yield storage
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    (place / "sub").mkdir()
    for index, name in enumerate(["a.wav", "sub/b.wav", "c.wav", "d.wav"]):
        wave = 0.1 * torch.randn(3000 + 1700 * index, generator=generator)
        soundfile.write(place / name, wave.numpy(), 16000, subtype="FLOAT")
    return place


def extract(folder, out, store="", **options):
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Entropy(threshold=2.0), keep="last")
    running = {name: options.pop(name) for name in ("overwrite", "progress", "shard") if name in options}
    options = {"batch_sec": 0.5, "shard_mb": 0.008, **options}
    return Extractor(encoder, out, checkpoint="0" * 64, store=store, **options).run(audio.find([folder]), **running)


def without_times(index):
    for row in index["recordings"]:
        del row["seconds"]
    return index["recordings"]


def test_a_file_each_in_s3(folder, tmp_path, bucket):
    local = extract(folder, tmp_path / "local")
    extract(folder, tmp_path / "journal", "s3://features/run/1")
    names = {path.removeprefix("features/run/1/") for path in bucket.find("features/run/1")}
    assert names == {"index.json", "index.csv", *(row.output for row in local.rows)}
    for row in local.rows:
        states = load(bucket.cat(f"features/run/1/{row.output}"))["states"]
        assert torch.equal(states, load((tmp_path / "local" / row.output).read_bytes())["states"])
    index = json.loads(bucket.cat("features/run/1/index.json"))
    assert index["settings"]["store"] == "s3://features/run/1"
    assert without_times(index) == without_times(json.loads((tmp_path / "local" / "index.json").read_text()))
    assert {path.name for path in (tmp_path / "journal").iterdir()} == {"journal.jsonl", "index.json", "index.csv"}


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_in_s3(folder, tmp_path, bucket):
    counts, url = [], "s3://features/run/2"

    def stop(count):
        counts.append(count)
        if sum(counts) >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        extract(folder, tmp_path, url, shards="tar", progress=stop)
    kept = {path: bucket.info(path)["LastModified"] for path in bucket.find("features/run/2")}
    assert kept
    bucket.pipe("features/run/2/shard-000009.tar", b"written, and the run was killed before it was noted")
    report = extract(folder, tmp_path, url, shards="tar")
    assert report.num_resumed == sum(counts)
    assert len(report.rows) == 4
    assert {path: bucket.info(path)["LastModified"] for path in kept} == kept
    members = []
    for path in bucket.find("features/run/2"):
        if path.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(bucket.cat(path))) as archive:
                members += [name for name in archive.getnames() if name.endswith(".safetensors")]
    assert sorted(members) == ["a.safetensors", "c.safetensors", "d.safetensors", "sub/b.safetensors"]
    bucket.rm(next(iter(kept)))  # a lost file is made again
    assert extract(folder, tmp_path, url, shards="tar").num_resumed < 4
    with pytest.raises(OutputError, match="holds a run with another shards, store"):
        extract(folder, tmp_path)
    extract(folder, tmp_path, overwrite=True)  # and takes away what the run before has in its own place
    assert [path for path in bucket.find("features/run/2") if path.endswith(".tar")] == []


def test_storage_that_shows_halves_gets_whole_files(folder, tmp_path):
    pytest.importorskip("fsspec", reason="needs fsspec (the extra storage)")
    url = f"file://{tmp_path}/store"
    report = extract(folder, tmp_path / "journal", url)
    names = {str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert names == {"index.json", "index.csv", *(row.output for row in report.rows)}
    assert extract(folder, tmp_path / "journal", url).num_resumed == 4


def test_shares_put_the_index_of_all_into_the_store(folder, tmp_path):
    pytest.importorskip("fsspec", reason="needs fsspec (the extra storage)")
    url, index = f"file://{tmp_path}/store", tmp_path / "store" / "index.json"
    for share in range(2):
        extract(folder, tmp_path / "journal", url, shard=(share, 2))
    assert len(json.loads(index.read_text())["recordings"]) == 4
    index.unlink()
    rebuild_index(tmp_path / "journal")
    assert index.read_bytes() == (tmp_path / "journal" / "index.json").read_bytes()


def test_what_cannot_be_reached(folder, tmp_path, bucket):
    with pytest.raises(UsageError, match="nowhere://x: cannot be reached"):
        Storage("nowhere://x")
    done = []
    with pytest.raises(OutputError, match=r"s3://No_Such/run: cannot be written \("):
        extract(folder, tmp_path, "s3://No_Such/run", progress=done.append)
    assert done == []  # before anything is encoded
    storage = Storage("s3://features/run/3")
    with pytest.raises(OutputError, match=r"s3://features/run/3/a.npy: cannot be written \(.*gone.npy"):
        storage.take(tmp_path / "gone.npy", "a.npy")
