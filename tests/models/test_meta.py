"""Networks built without memory, whose weights come from a file."""

import subprocess
import sys

import pytest

from daisy.models import Backbone, ExitHeads, HeadsConfig
from daisy.models.meta import build_without_memory
from tests.conftest import POST_NORM, PRE_NORM


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM])
def test_shapes_are_those_of_a_network_with_memory(config):
    heads = HeadsConfig(num_layers=config.num_layers, width=config.width, num_units=9)
    with build_without_memory():
        without = Backbone(config), ExitHeads(heads)
    for module, real in zip(without, (Backbone(config), ExitHeads(heads)), strict=True):
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in real.state_dict().items()}
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()} == shapes


def test_loading_a_network_does_not_import_sympy():
    """It takes a second, which every command would wait for."""
    code = "import sys, torch; before = 'sympy' in sys.modules; import daisy; daisy.load('daisy-mini'); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(before, 'sympy' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = done.stdout.split()
    if before == "True":
        pytest.skip("this torch imports sympy itself")
    assert after == "False"
