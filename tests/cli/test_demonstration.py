"""`daisy demo` with the bundled model: the whole chain, on real speech."""

import dataclasses
import itertools
import json

import pytest
import soundfile

import daisy
from daisy.calibration.families import FAMILIES
from daisy.cli import demonstration
from daisy.errors import UsageError
from daisy.policies import DEFAULT_POLICY
from tests.conftest import POST_NORM, tiny_model


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    out = tmp_path_factory.mktemp("demo")
    return out, demonstration.run(out)


def test_exit_layers_follow_the_noise(shown):
    _, result = shown
    columns = list(zip(*result.exit_layers.values(), strict=True))
    means = [sum(column) / len(column) for column in columns]
    assert len(result.exit_layers) == 8
    assert result.policy.name == DEFAULT_POLICY
    assert sum(means) / len(means) == pytest.approx(demonstration.DEPTH * 12, abs=0.3)
    assert means[-1] > means[0] + 2
    assert all(later > earlier - 0.5 for earlier, later in itertools.pairwise(means))


def test_it_leaves_features_index_and_figure(shown):
    out, result = shown
    assert result.figure.read_bytes().startswith(b"\x89PNG")
    index = json.loads((out / "features" / "index.json").read_text())
    assert index["totals"]["num_recordings"] == 48
    assert index["totals"]["num_failed"] == 0
    assert index["settings"]["policy"] == json.loads(json.dumps(result.policy.to_config()))
    assert len(list((out / "features").rglob("*.safetensors"))) == 48


def test_the_clips_come_at_the_rate_of_the_checkpoint(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    daisy.save(tiny_model(dataclasses.replace(POST_NORM, sample_rate=8000)), tmp_path / "narrow.safetensors")
    result = demonstration.run(tmp_path / "out", str(tmp_path / "narrow.safetensors"))
    seconds = sum(soundfile.info(path).duration for path in demonstration.list_clips())
    assert result.audio_sec == pytest.approx(6 * seconds, abs=0.01)
    assert {soundfile.info(path).samplerate for path in (tmp_path / "out" / "audio").rglob("*.wav")} == {8000}


def test_the_bundled_model_is_small_and_complete():
    path = daisy.checkpoints.format.find("daisy-mini")
    assert path.stat().st_size < 25e6
    model = daisy.load("daisy-mini")
    assert model.heads.config.regressors
    assert model.final_head.num_units == model.heads.config.num_units == 204
    assert {"forecast", "plateau", "entropy", "regressed", "confidence", "patience"} < set(model.policies)
    assert set(model.policies) <= set(FAMILIES) - {"fixed", "oracle"}


def test_the_recordings_are_few_and_attributed():
    files = list(demonstration.FOLDER.glob("*.flac"))
    assert sum(file.stat().st_size for file in files) < 1e6
    text = (demonstration.FOLDER / "ATTRIBUTION.md").read_text()
    assert all(file.stem in text for file in files)
    assert "CC BY 4.0" in text


def test_figures_say_what_they_miss(monkeypatch):
    import sys

    from daisy.evaluation import figures

    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(UsageError, match="figures need matplotlib: pip install"):
        figures.draw_exit_layers_by_snr([None], {}, num_layers=2, title="")
