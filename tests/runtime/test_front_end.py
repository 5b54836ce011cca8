import pytest
import torch

from daisy.runtime.cpu_front_end import CpuFrontEnd
from daisy.runtime.cuda_front_end import CudaFrontEnd
from tests.conftest import tiny_model
from tests.runtime.conftest import run_packed


def test_blocks_of_the_front_end_do_not_show(model, waveforms, monkeypatch):
    whole = run_packed(model.backbone, waveforms[-2:], [50, 74])[0][0]
    monkeypatch.setattr(
        "daisy.runtime.cpu_front_end.MAX_VALUES_PER_BLOCK", 33 * 64 * model.backbone.config.conv_layers[0][0]
    )
    in_blocks = run_packed(model.backbone, waveforms[-2:], [50, 74])[0][0]
    torch.testing.assert_close(whole, in_blocks, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_front_end_of_other_devices_is_that_of_cpus(config, waveforms, dtype, error):
    """Recordings with an offset of the mean too, whose moments cancel."""
    backbone = tiny_model(config).backbone
    waveforms = [waveform + 0.3 for waveform in waveforms]
    for some in (waveforms, waveforms[4:5], waveforms[:1] * 3):
        expected = CpuFrontEnd(backbone, "float32")(some)
        features = CudaFrontEnd(backbone, dtype)(some)
        assert features.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        assert (features.float() - expected).norm() < error * expected.norm()


@torch.no_grad()
def test_long_batches_go_through_the_front_end_in_parts(model, waveforms, monkeypatch):
    whole = CudaFrontEnd(model.backbone, "float32")(waveforms)
    channels, _, stride = model.backbone.config.conv_layers[0]
    monkeypatch.setattr("daisy.runtime.cuda_front_end.MAX_VALUES_PER_PASS", 8000 * channels // stride)
    sizes, convolve_pass = [], CudaFrontEnd._convolve_pass
    monkeypatch.setattr(
        CudaFrontEnd, "_convolve_pass", lambda *args: sizes.append(len(args[1])) or convolve_pass(*args)
    )
    torch.testing.assert_close(CudaFrontEnd(model.backbone, "float32")(waveforms), whole, atol=1e-5, rtol=1e-4)
    assert sizes == [5, 1, 1]


@torch.no_grad()
def test_the_front_end_leaves_torchs_settings_as_they_were(waveforms):
    backbone = tiny_model().backbone
    for setting in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(setting)
        try:
            CudaFrontEnd(backbone, "float32")(waveforms[-1:])
            assert torch.get_float32_matmul_precision() == setting
        finally:
            torch.set_float32_matmul_precision("highest")
