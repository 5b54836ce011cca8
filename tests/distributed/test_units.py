"""Units computed by Ray's actors equal those of the local engine."""

import numpy
import pytest

from daisy import audio
from daisy.distributed.extraction import RayEngine
from daisy.units import UnitEncoder, UnitExtractor
from tests.conftest import tiny_model
from tests.distributed.recordings import write_recordings


@pytest.mark.parametrize("kind", ["heads", "kmeans"])
def test_units_are_the_local_engines(kind, tmp_path, cluster):
    import torch

    model = tiny_model()
    centres = torch.from_numpy(numpy.random.default_rng(0).standard_normal((9, 32)).astype("float32"))
    options = {"kmeans": centres, "layer": 2} if kind == "kmeans" else {"policy": "fixed", "layer": 3}
    recordings = audio.find([write_recordings(tmp_path / "in")])[:6]
    reports = {}
    for name, engine in (("ray", RayEngine(workers=1)), ("local", None)):
        units = UnitEncoder(model, **options)
        extractor = UnitExtractor(units, tmp_path / name, checkpoint="", forms=("km",), batch_sec=0.01, engine=engine)
        reports[name] = extractor.run(recordings)
    rows = {name: [(row.path, row.exit_layer, row.units) for row in report.rows] for name, report in reports.items()}
    assert rows["ray"] == rows["local"]
    assert len(rows["ray"]) == 6
    assert len({unit for _, _, units in rows["ray"] for unit in units.split()}) > 2
    assert (tmp_path / "ray" / "units.km").read_bytes() == (tmp_path / "local" / "units.km").read_bytes()
