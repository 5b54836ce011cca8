import torch

from daisy import EarlyExitEncoder, policies
from daisy.runtime.packing_cache import pack_backbone, pack_heads
from tests.conftest import RARE_KINDS, tiny_model
from tests.runtime.conftest import run_plain


def test_changed_weights_are_laid_out_anew():
    backbone = tiny_model().backbone
    first = pack_backbone(backbone, "float32")
    assert pack_backbone(backbone, "float32") is first
    assert pack_backbone(backbone, "bfloat16") is not first
    with torch.no_grad():
        backbone.encoder.transformer.layers[2].attention.k_proj.weight.mul_(2)
    assert pack_backbone(backbone, "float32") is not first
    heads = tiny_model().heads
    laid_out = pack_heads(heads, "float32")
    assert pack_heads(heads, "float32") is laid_out
    with torch.no_grad():
        heads.units[1].weight.mul_(2)
    assert pack_heads(heads, "float32") is not laid_out


def test_changed_statistics_are_laid_out_anew():
    backbone = tiny_model(RARE_KINDS["post-norm"]).backbone
    first = pack_backbone(backbone, "float32")
    assert pack_backbone(backbone, "float32") is first
    backbone.encoder.transformer.pos_conv_embed.batch_norm.running_mean.add_(1)
    assert pack_backbone(backbone, "float32") is not first


def test_every_weight_and_statistic_is_looked_at():
    """All that `Module.parameters` and `Module.buffers` have, one after the other."""
    model = tiny_model(RARE_KINDS["pre-norm"])
    for module, pack in ((model.backbone, pack_backbone), (model.heads, pack_heads)):
        tensors = [*module.parameters(), *module.buffers()]
        assert len(tensors) > 10
        for tensor in tensors:
            before = pack(module, "float32")
            with torch.no_grad():
                tensor.add_(1)
            assert pack(module, "float32") is not before


def test_weights_changed_behind_autograd_are_forgotten_on_demand(waveforms):
    backbone = tiny_model().backbone
    encoder = EarlyExitEncoder(backbone, None, policies.Never())
    before = encoder(waveforms[4:5]).states[0]
    backbone.encoder.transformer.layers[0].attention.v_proj.weight.data.mul_(2)
    assert torch.equal(encoder(waveforms[4:5]).states[0], before)
    encoder.refresh_weights()
    states, *_ = run_plain(backbone, waveforms[4:5])
    torch.testing.assert_close(encoder(waveforms[4:5]).states[0], torch.stack(states), atol=1e-5, rtol=1e-4)
