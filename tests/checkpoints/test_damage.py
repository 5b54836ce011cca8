"""A few of the damaged checkpoints of ``python -m benchmarks.robustness.checkpoints``, which makes hundreds."""

import logging

import pytest
import torch

from benchmarks.robustness import checkpoints as robustness
from benchmarks.robustness.checkpoint_forms import FORMS, FairseqForm, OwnForm
from daisy import CheckpointError
from daisy.checkpoints.converters import convert


def test_damaged_checkpoints_are_refused_in_one_line_or_right(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    counts, problems = robustness.run(tmp_path, count=60, seed=7)
    assert problems == []
    assert sum(counts.values()) == 60
    for form in FORMS:
        assert counts[form.name, "refused"] > 0
    assert sum(count for (_, outcome), count in counts.items() if outcome == "read") >= 5


@pytest.mark.parametrize("form", dict.fromkeys(FORMS))
def test_undamaged_ones_are_read(form, tmp_path):
    form = form(torch.Generator())
    form.write(tmp_path, *form.make_parts())
    assert robustness.judge(form, tmp_path) == ("read", "")


def test_a_flipped_bit_of_a_weight_is_noticed_where_the_form_has_checksums(tmp_path):
    """torch.load itself does not look at those of the zip archive that it reads."""
    for kind in (OwnForm, FairseqForm):
        folder = tmp_path / kind.name
        folder.mkdir()
        form = kind(torch.Generator())
        tensors, config = form.make_parts()
        form.write(folder, tensors, config)
        path = folder / form.file_name
        data = bytearray(path.read_bytes())
        weights = next(value for name, value in tensors.items() if name.endswith("k_proj.weight"))
        place = bytes(data).index(weights.numpy().tobytes()[:64])
        data[place] ^= 1
        path.write_bytes(bytes(data))
        assert robustness.judge(form, folder) == ("refused", "")
    with pytest.raises(CheckpointError, match=r"hubert\.pt: damaged: its record \S+/data/\d+ is not what was written"):
        convert(path)


def test_a_file_without_checksums_is_read(tmp_path, monkeypatch):
    """What `torch.serialization.set_crc32_options(False)` leaves: none of them fits."""
    form = FairseqForm(torch.Generator())
    form.write(tmp_path, *form.make_parts())
    monkeypatch.setattr("daisy.checkpoints.converters.reading._is_whole", lambda archive, record: False)
    assert robustness.judge(form, tmp_path) == ("read", "")
