"""Other libraries' HuBERT with the same weights, to time against ours: fairseq, s3prl, torchaudio, transformers."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from daisy import checkpoints
from daisy.checkpoints.converters import huggingface
from daisy.checkpoints.converters.mapping import POSITION
from daisy.models import Backbone
from daisy.models.heads import FinalHead

System = Callable[[Sequence[Tensor]], list[Tensor]]
"""Maps waveforms (N_b,) to the last layer's states, at least (T_b, D) each."""
NUM_UNITS = 504
"""Number of units of fairseq's HuBERT Base: 500 clusters and four special symbols."""


def pad_batch(waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad waveforms to (B, N), and return their (B,) lengths."""
    batch = nn.utils.rnn.pad_sequence(list(waveforms), True)
    return batch, torch.tensor([len(w) for w in waveforms], device=batch.device)


def have_one_length(waveforms: Sequence[Tensor]) -> bool:
    """Tell whether all waveforms have the same length, so that no mask is needed."""
    return len(set(map(len, waveforms))) == 1


def make_torchaudio_model(backbone: Backbone) -> nn.Module:
    """Make torchaudio's model with the backbone's weights."""
    import torchaudio

    config = backbone.config
    model = torchaudio.models.wav2vec2_model(
        extractor_mode=f"{config.conv_norm}_norm",
        extractor_conv_layer_config=list(config.conv_layers),
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.pos_kernel,
        encoder_pos_conv_groups=config.pos_groups,
        encoder_num_layers=config.num_layers,
        encoder_num_heads=config.num_heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=config.ffn_width,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=config.pre_norm,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()
    nn.utils.parametrize.remove_parametrizations(model.encoder.transformer.pos_conv_embed.conv, "weight")
    weights = backbone.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.to(backbone.device, backbone.dtype)


def build_torchaudio(backbone: Backbone, dtype: torch.dtype) -> System:
    """Build torchaudio's model; it computes all layers' states."""
    model = make_torchaudio_model(backbone).to(dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        batch, lengths = pad_batch(waveforms)
        return list(model.extract_features(batch.to(dtype), None if have_one_length(waveforms) else lengths)[0][-1])

    return run


def make_transformers_model(backbone: Backbone) -> nn.Module:
    """Make transformers' HubertModel with the backbone's weights and scaled dot product attention."""
    from transformers import HubertConfig, HubertModel

    config = backbone.config
    channels, kernels, strides = zip(*config.conv_layers, strict=True)
    model = HubertModel(
        HubertConfig(
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_width,
            conv_dim=channels,
            conv_kernel=kernels,
            conv_stride=strides,
            conv_bias=config.conv_bias,
            feat_extract_norm=config.conv_norm,
            do_stable_layer_norm=config.pre_norm,
            num_conv_pos_embeddings=config.pos_kernel,
            num_conv_pos_embedding_groups=config.pos_groups,
            attn_implementation="sdpa",
        )
    ).eval()
    nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
    weights = {f"backbone.{name}": weight for name, weight in backbone.state_dict().items()}
    rules = (*huggingface.RULES, (r"encoder\.pos_conv_embed\.conv\.weight", POSITION + "weight"))
    model.load_state_dict({name: weights[_translate(name, rules)] for name in model.state_dict()})
    return model.to(backbone.device)


def build_transformers(backbone: Backbone, dtype: torch.dtype) -> System:
    """Build transformers' HubertModel; it computes all layers' states."""
    model = make_transformers_model(backbone).to(dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        batch, lengths = pad_batch(waveforms)
        mask = None
        if not have_one_length(waveforms):
            mask = (torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]).long()
        return list(model(batch.to(dtype), attention_mask=mask, output_hidden_states=True).last_hidden_state)

    return run


def _translate(name: str, rules: Sequence[tuple[str, str | None]]) -> str:
    """Translate the name of a weight to ours."""
    return next(match.expand(to or "") for pattern, to in rules if (match := re.fullmatch(pattern, name)))


def make_fairseq_model(backbone: Backbone) -> nn.Module:
    """Make fairseq's HubertModel with the backbone's weights."""
    from fairseq import checkpoint_utils

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        (model,), *_ = checkpoint_utils.load_model_ensemble_and_task([str(_save_stock(backbone, Path(folder)))])
    model.remove_pretraining_modules()
    made: nn.Module = model.eval().to(backbone.device)
    return made


def build_fairseq(backbone: Backbone, dtype: torch.dtype) -> System:
    """Build fairseq's HubertModel; it returns only its last layer's states."""
    model = make_fairseq_model(backbone).to(dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        batch, lengths = pad_batch(waveforms)
        mask = (
            None
            if have_one_length(waveforms)
            else torch.arange(batch.shape[1], device=batch.device) >= lengths[:, None]
        )
        return list(model.extract_features(batch.to(dtype), padding_mask=mask, mask=False)[0])

    return run


def build_s3prl(backbone: Backbone, dtype: torch.dtype) -> System:
    """Build s3prl's upstream ``hubert_local``; it computes all layers' states."""
    from s3prl.upstream.hubert.convert import load_and_convert_fairseq_ckpt
    from s3prl.upstream.hubert.expert import UpstreamExpert

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "s3prl.pt"
        load_and_convert_fairseq_ckpt(str(_save_stock(backbone, Path(folder))), str(converted))
        model = UpstreamExpert(str(converted)).eval().to(backbone.device, dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        return list(model([waveform.to(dtype) for waveform in waveforms])["hidden_states"][-1])

    return run


def _save_stock(backbone: Backbone, folder: Path) -> Path:
    """Save a backbone in the form that fairseq's own code reads."""
    from fairseq_plugins.export import make_stock_checkpoint

    head = FinalHead(backbone.config.width, 256, NUM_UNITS)
    backbone = copy.deepcopy(backbone).cpu()
    path = folder / "fairseq.pt"
    torch.save(make_stock_checkpoint(checkpoints.Model(backbone=backbone, final_head=head)), path)
    return path


PEERS: dict[str, Callable[[Backbone, torch.dtype], System]] = {
    "fairseq": build_fairseq,
    "s3prl": build_s3prl,
    "torchaudio": build_torchaudio,
    "transformers": build_transformers,
}


def build_peers(names: Sequence[str], backbone: Backbone, dtype: torch.dtype = torch.float32) -> dict[str, System]:
    """Build the installed peers, ready to run.

    Args:
        names: names of peers in `PEERS`.
        backbone: backbone whose weights they get.
        dtype: type of their weights.
    """
    systems = {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                systems[name] = PEERS[name](backbone, dtype)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error.name} is not installed")
    return systems
