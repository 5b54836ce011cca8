"""Other people's HuBERT on the same weights, to be timed beside ours: fairseq, s3prl, torchaudio, transformers."""

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
import torchaudio
from torch import Tensor, nn

from daisy import checkpoints
from daisy.checkpoints.converters import huggingface
from daisy.models import Backbone
from daisy.models.heads import FinalHead

System = Callable[[Sequence[Tensor]], list[Tensor]]
"""Waveforms (N_b,) to the last layer's states, at least (T_b, D) each."""


def padded(waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, N) and (B,) lengths."""
    batch = nn.utils.rnn.pad_sequence(list(waveforms), True)
    return batch, torch.tensor([len(w) for w in waveforms], device=batch.device)


def alike(waveforms: Sequence[Tensor]) -> bool:
    """Whether no mask is needed."""
    return len(set(map(len, waveforms))) == 1


def make_torchaudio_model(backbone: Backbone) -> torchaudio.models.Wav2Vec2Model:
    """Make torchaudio's model with the backbone's weights."""
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


def of_torchaudio(backbone: Backbone, dtype: torch.dtype) -> System:
    """Torchaudio's model with the same weights; all layers' states."""
    model = make_torchaudio_model(backbone).to(dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        batch, lengths = padded(waveforms)
        return list(model.extract_features(batch.to(dtype), None if alike(waveforms) else lengths)[0][-1])

    return run


def of_transformers(backbone: Backbone, dtype: torch.dtype) -> System:
    """Transformers' HubertModel with scaled dot product attention; all layers' states."""
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
    ours = {f"backbone.{name}": weight for name, weight in backbone.state_dict().items()}
    rules = (*huggingface.RULES, (r"encoder\.pos_conv_embed\.conv\.weight", huggingface.POSITION + "weight"))
    model.load_state_dict({name: ours[_ours(name, rules)] for name in model.state_dict()})
    model.to(backbone.device, dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        batch, lengths = padded(waveforms)
        mask = None
        if not alike(waveforms):
            mask = (torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]).long()
        return list(model(batch.to(dtype), attention_mask=mask, output_hidden_states=True).hidden_states[-1])

    return run


def _ours(name: str, rules: Sequence[tuple[str, str | None]]) -> str:
    return next(match.expand(to or "") for pattern, to in rules if (match := re.fullmatch(pattern, name)))


def of_fairseq(backbone: Backbone, dtype: torch.dtype) -> System:
    """Fairseq's HubertModel, its last layer's states."""
    from fairseq import checkpoint_utils

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        (model,), *_ = checkpoint_utils.load_model_ensemble_and_task([str(_stock(backbone, Path(folder)))])
    model.remove_pretraining_modules()
    model.eval().to(backbone.device, dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        batch, lengths = padded(waveforms)
        mask = None if alike(waveforms) else torch.arange(batch.shape[1], device=batch.device) >= lengths[:, None]
        return list(model.extract_features(batch.to(dtype), padding_mask=mask, mask=False)[0])

    return run


def of_s3prl(backbone: Backbone, dtype: torch.dtype) -> System:
    """s3prl's upstream ``hubert_local``; all layers' states."""
    from s3prl.upstream.hubert.convert import load_and_convert_fairseq_ckpt
    from s3prl.upstream.hubert.expert import UpstreamExpert

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "s3prl.pt"
        load_and_convert_fairseq_ckpt(str(_stock(backbone, Path(folder))), str(converted))
        model = UpstreamExpert(str(converted)).eval().to(backbone.device, dtype)

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        return list(model([waveform.to(dtype) for waveform in waveforms])["hidden_states"][-1])

    return run


def _stock(backbone: Backbone, folder: Path) -> Path:
    from fairseq_plugins.export import stock_checkpoint

    head = FinalHead(backbone.config.width, 256, 504)
    backbone = copy.deepcopy(backbone).cpu()
    path = folder / "fairseq.pt"
    torch.save(stock_checkpoint(checkpoints.Model(backbone=backbone, final_head=head)), path)
    return path


PEERS: dict[str, Callable[[Backbone, torch.dtype], System]] = {
    "fairseq": of_fairseq,
    "s3prl": of_s3prl,
    "torchaudio": of_torchaudio,
    "transformers": of_transformers,
}


def build(names: Sequence[str], backbone: Backbone, dtype: torch.dtype = torch.float32) -> dict[str, System]:
    """The peers that are installed, each ready to run, with weights of a type."""
    found = {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = PEERS[name](backbone, dtype)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error.name} is not installed")
    return found
