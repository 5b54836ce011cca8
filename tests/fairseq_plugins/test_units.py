"""Units of a k-means made in fairseq's way: its features, its joblib file, scikit-learn's predict."""

import contextlib
import io

import numpy
import pytest
import torch

import daisy
from daisy import audio
from daisy.units import UnitEncoder, read_kmeans
from tests.cli.running import run
from tests.conftest import POST_NORM, PRE_NORM, tiny_model


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_units_are_scikit_learns_on_fairseqs_features(config, corpus, tmp_path):
    joblib, cluster = pytest.importorskip("joblib"), pytest.importorskip("sklearn.cluster")
    from fairseq import checkpoint_utils

    from fairseq_plugins.export import make_stock_checkpoint

    model = tiny_model(config)
    daisy.save(model, tmp_path / "model.safetensors")
    torch.save(make_stock_checkpoint(model), tmp_path / "stock.pt")
    with contextlib.redirect_stdout(io.StringIO()):
        (theirs,), *_ = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "stock.pt")])
    recordings, features = audio.read_manifest(corpus / "data" / "train.tsv"), []
    for recording in recordings:  # as examples/hubert/simple_kmeans/dump_hubert_feature.py does
        waveform = audio.read(recording.path)
        if config.normalize:
            waveform = torch.nn.functional.layer_norm(waveform, waveform.shape)
        with torch.no_grad():
            states, _ = theirs.eval().extract_features(waveform[None], padding_mask=None, mask=False, output_layer=2)
        features.append(states[0].numpy())
    kmeans = cluster.MiniBatchKMeans(n_clusters=9, n_init=3, random_state=0).fit(numpy.concatenate(features))
    joblib.dump(kmeans, tmp_path / "km.bin")
    expected = [kmeans.predict(frames).tolist() for frames in features]
    units = UnitEncoder(model, kmeans=read_kmeans(tmp_path / "km.bin", allow_pickle=True), layer=2)
    assert [units(audio.read(recording.path))[0].units for recording in recordings] == expected
    arguments = ("units", corpus / "data" / "train.tsv", "-c", tmp_path / "model.safetensors", "-o", tmp_path / "out")
    arguments += ("--kmeans", tmp_path / "km.bin", "--layer", "2", "--form", "km")
    refused = run(*arguments)
    assert (refused.returncode, "add --allow-pickle" in refused.stderr) == (2, True)
    assert run(*arguments, "--allow-pickle").returncode == 0
    written = (tmp_path / "out" / "units.km").read_text().splitlines()
    listed = audio.read_manifest(tmp_path / "out" / "units.tsv")
    by_path = {one.path: list(map(int, line.split())) for one, line in zip(listed, written, strict=True)}
    assert [by_path[recording.path] for recording in recordings] == expected
