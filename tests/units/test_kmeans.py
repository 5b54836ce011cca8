import numpy
import pytest
import torch
from safetensors.torch import save_file

from daisy.errors import UsageError
from daisy.units import KmeansUnits, read_kmeans

CENTRES = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


def save_npy(path):
    numpy.save(path, CENTRES.double().numpy())


def save_torch_dict(path):
    torch.save({"n_iter": torch.tensor(3), "cluster_centers_": CENTRES}, path)


FORMS = {
    "a.npy": save_npy,
    "a.npz": lambda path: numpy.savez(path, CENTRES.numpy()),
    "named.npz": lambda path: numpy.savez(path, cluster_centers_=CENTRES.numpy(), frames=numpy.zeros((3, 5))),
    "a.safetensors": lambda path: save_file({"anything": CENTRES, "counts": torch.zeros(7)}, path),
    "tensor.pt": lambda path: torch.save(CENTRES, path),
    "dict.pt": save_torch_dict,
}


@pytest.mark.parametrize("name", FORMS)
def test_centres_are_read_from_plain_files(name, tmp_path):
    FORMS[name](tmp_path / name)
    torch.testing.assert_close(read_kmeans(tmp_path / name), CENTRES)


@pytest.fixture(scope="module")
def fitted():
    """What fairseq's learn_kmeans.py dumps, and frames to be assigned."""
    cluster = pytest.importorskip("sklearn.cluster")
    frames = numpy.random.default_rng(0).standard_normal((400, 5)).astype(numpy.float32)
    return cluster.MiniBatchKMeans(n_clusters=7, n_init=2, random_state=0).fit(frames), frames


def test_a_pickled_object_must_be_allowed(fitted, tmp_path):
    joblib = pytest.importorskip("joblib")
    model, frames = fitted
    joblib.dump(model, tmp_path / "km.bin")
    with pytest.raises(UsageError, match="unpickling can run code.*allow_pickle=True"):
        read_kmeans(tmp_path / "km.bin")
    centres = read_kmeans(tmp_path / "km.bin", allow_pickle=True)
    assert KmeansUnits(centres).classify(1, torch.from_numpy(frames)).tolist() == model.predict(frames).tolist()


def test_large_dimensions_that_all_share_cost_no_digits(fitted):
    """Of pre-norm models some dimensions are in the hundreds everywhere, with differences that still count."""
    model, frames = fitted
    shift = numpy.array([0, 4000, 0, 0, -900], dtype=numpy.float32)
    # the same float32 numbers in double precision: what rounding must not change
    centres, moved = (values.astype(numpy.float32) + shift for values in (model.cluster_centers_, frames))
    exact = ((moved[:, None].astype(float) - centres[None].astype(float)) ** 2).sum(-1).argmin(1)
    units = KmeansUnits(torch.from_numpy(centres)).classify(1, torch.from_numpy(moved))
    assert (units.numpy() != exact).mean() < 0.005


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"\x93NUMPY junk"), "no file of k-means centres"),
        (lambda path: numpy.save(path, numpy.zeros((3, 2), dtype=int)), "holds no k-means centres"),
        (lambda path: numpy.save(path, numpy.zeros(3)), "holds no k-means centres"),
    ],
)
def test_other_files_are_refused(save, reason, tmp_path):
    save(tmp_path / "km.npy")
    with pytest.raises(UsageError, match=f"km.npy: {reason}"):
        read_kmeans(tmp_path / "km.npy")


def test_several_arrays_must_be_named(tmp_path):
    torch.save({"one": CENTRES, "two": CENTRES}, tmp_path / "km.pt")
    with pytest.raises(UsageError, match="holds no k-means centres"):
        read_kmeans(tmp_path / "km.pt")


@pytest.mark.parametrize("centres", [torch.full((2, 3), torch.nan), torch.zeros(3), torch.zeros(2, 3).int()])
def test_centres_must_be_numbers_in_rows(centres):
    with pytest.raises(UsageError):
        KmeansUnits(centres)
