"""Other libraries' wav2vec 2.0, WavLM, data2vec and Whisper with random weights, and ours converted from them.

Networks have the published sizes. Each library builds its own and saves it in the form that its users have; `convert`
reads that form. So the comparison covers the whole way from a user's checkpoint to our states.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shared.peers import System, have_one_length, pad_batch
from daisy.checkpoints import Model
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.mapping import DATA2VEC, WAV2VEC2, WAVLM

Size = Literal["base", "large"]
WHISPER = "Whisper"
FAIRSEQ_SHAPES: dict[Size, dict[str, Any]] = {
    "base": {
        "extractor_mode": "default",
        "encoder_layers": 12,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "layer_norm_first": False,
        "conv_bias": False,
    },
    "large": {
        "extractor_mode": "layer_norm",
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "layer_norm_first": True,
        "conv_bias": True,
    },
}
FAIRSEQ_CHANGES: dict[str, dict[str, Any]] = {
    WAV2VEC2: {"_name": "wav2vec2"},
    WAVLM: {"conv_bias": False, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800},
    DATA2VEC: {
        "_name": "data2vec_audio",
        "extractor_mode": "layer_norm",
        "layer_norm_first": False,
        "conv_bias": False,
        "pos_conv_depth": 5,
        "conv_pos": 95,
    },
}
"""Options of each network besides its shape."""
TRANSFORMERS_SHAPES: dict[Size, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
    },
}
WHISPER_SHAPES: dict[Size, dict[str, Any]] = {
    "base": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    "large": {
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
    },
}
POSITIONS = (
    *("rel_attn_embed.weight", "relative_attention_bias.weight"),
    *("gru_rel_pos_linear.weight", "grep_linear.weight"),
)
"""Endings of the names of the weights that make WavLM's relative positions."""


@dataclass(frozen=True)
class Pair:
    """Another library's network, and ours converted from the checkpoint that its users would have."""

    model: nn.Module
    run: Callable[[nn.Module, Sequence[Tensor]], list[Tensor]]
    """Runs the model on waveforms (N_b,); returns the states of its last layers, at least 1 to L, (B, T, D) each."""
    ours: Model

    @property
    def system(self) -> System:
        """The function to time: from waveforms to the last layer's states."""
        return lambda waveforms: list(self.run(self.model, waveforms)[-1])


def is_normalised(network: str, size: Size) -> bool:
    """Tell whether waveforms are normalised to mean 0 and variance 1, as for the published networks."""
    return size == "large" or network == DATA2VEC


@torch.no_grad()
def spread_weights(model: nn.Module) -> nn.Module:
    """Move norms and biases away from 1 and 0, and scale up WavLM's positions so that they have a visible effect."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(POSITIONS):
            parameter.normal_(generator=generator)
        elif parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def _make(build: Callable[..., nn.Module], *arguments: object, **options: object) -> nn.Module:
    """Make a network whose weights do not depend on earlier random draws."""
    torch.manual_seed(0)
    return spread_weights(build(*arguments, **options))


def _normalise(waveforms: Sequence[Tensor], eps: float | None) -> list[Tensor]:
    """Normalise waveforms to mean 0 and variance 1; leave them unchanged if ``eps`` is None."""
    return list(waveforms) if eps is None else [F.layer_norm(wave, wave.shape, eps=eps) for wave in waveforms]


def _pad(
    model: nn.Module, waveforms: Sequence[Tensor], eps: float | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Normalise and pad to (B, N) in the weights' type; return lengths (B,) and a mask (B, N) too if lengths differ."""
    batch, lengths = pad_batch(_normalise(waveforms, eps))
    batch = batch.to(next(model.parameters()).dtype)
    if have_one_length(waveforms):
        return batch, None, None
    return batch, lengths, torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]


def make_transformers_pair(network: str, size: Size) -> Pair:
    """Make transformers' network, saved and read as a folder."""
    import transformers

    kind = {WAV2VEC2: "Wav2Vec2", WAVLM: "WavLM", DATA2VEC: "Data2VecAudio"}[network]
    shape = {**TRANSFORMERS_SHAPES[size], "conv_bias": size == "large" and network == WAV2VEC2}
    config = getattr(transformers, f"{kind}Config")(**shape)
    model = _make(getattr(transformers, f"{kind}Model"), config)
    normalize = is_normalised(network, size)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    run = partial(run_transformers, 1e-7 if normalize else None)
    return Pair(model, run, _convert_folder(model, extractor))


def run_transformers(eps: float | None, model: nn.Module, waveforms: Sequence[Tensor]) -> list[Tensor]:
    """Run transformers' network, and return layers 0 to L."""
    batch, _, mask = _pad(model, waveforms, eps)
    output = model(batch, attention_mask=None if mask is None else mask.long(), output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


def make_whisper_pair(network: str, size: Size) -> Pair:
    """Make transformers' Whisper with a decoder of one layer, which is ignored."""
    import transformers

    shape = WHISPER_SHAPES[size]
    decoder = {"decoder_layers": 1, "decoder_attention_heads": shape["encoder_attention_heads"]}
    model = _make(transformers.WhisperModel, transformers.WhisperConfig(**shape, **decoder))
    extractor = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    ours = _convert_folder(model, extractor)
    return Pair(model.encoder, partial(run_whisper, extractor), ours)


def run_whisper(extractor: Any, model: nn.Module, waveforms: Sequence[Tensor]) -> list[Tensor]:
    """Run Whisper's encoder on whole windows; return layers 0 to L, cut to the frames of the longest waveform."""
    arrays = [waveform.cpu().numpy() for waveform in waveforms]
    mels = extractor(arrays, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
    weight = next(model.parameters())
    output = model(mels.to(weight.device, weight.dtype), output_hidden_states=True)
    return [states[:, : max(map(len, waveforms)) // 320] for states in output.hidden_states]


def _convert_folder(model: nn.Module, extractor: Any) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        for part in (model, extractor):
            part.save_pretrained(folder)
        return convert(folder)


def make_torchaudio_pair(network: str, size: Size) -> Pair:
    """Make torchaudio's network, of which users have the state dict."""
    from torchaudio import models

    name = {
        (WAV2VEC2, "base"): "wav2vec2_base",
        (WAV2VEC2, "large"): "wav2vec2_large_lv60k",
        (WAVLM, "base"): "wavlm_base",
        (WAVLM, "large"): "wavlm_large",
    }[network, size]
    model = _make(getattr(models, name))
    ours = _convert_file(model.state_dict())
    return Pair(model, partial(run_torchaudio, 1e-5 if is_normalised(network, size) else None), ours)


def run_torchaudio(eps: float | None, model: nn.Module, waveforms: Sequence[Tensor]) -> list[Tensor]:
    """Run torchaudio's network; return layers 1 to L, the last after the final norm, which it applies in `forward`."""
    batch, lengths, _ = _pad(model, waveforms, eps)
    states: list[Tensor] = model.extract_features(batch, lengths)[0]
    transformer = model.encoder.transformer
    return [*states[:-1], transformer.layer_norm(states[-1]) if not transformer.layer_norm_first else states[-1]]


def make_fairseq_pair(network: str, size: Size) -> Pair:
    """Make fairseq's network; data2vec's is in its examples."""
    fields, checkpoint = _describe_for_fairseq(network, size)
    if network == WAV2VEC2:
        module = importlib.import_module("fairseq.models.wav2vec.wav2vec2")
        model = _make(module.Wav2Vec2Model, module.Wav2Vec2Config(**fields))
    else:
        module = importlib.import_module("fairseq.examples.data2vec.models.data2vec_audio")
        model = _make(module.Data2VecAudioModel, module.Data2VecAudioConfig(**fields))
    ours = _convert_file({"args": None, "cfg": checkpoint, "model": model.state_dict()})
    return Pair(model, partial(run_fairseq, 1e-5 if is_normalised(network, size) else None), ours)


def run_fairseq(eps: float | None, model: nn.Module, waveforms: Sequence[Tensor]) -> list[Tensor]:
    """Run fairseq's network, and return layers 1 to L."""
    batch, _, mask = _pad(model, waveforms, eps)
    result = model.extract_features(batch, None if mask is None else ~mask)
    return [*(states.transpose(0, 1) for states, *_ in result["layer_results"][:-1]), result["x"]]


def make_s3prl_pair(network: str, size: Size) -> Pair:
    """Make s3prl's own network (for WavLM the authors' code), and the upstream that its users have."""
    fields, checkpoint = _describe_for_fairseq(network, size)
    place = {WAV2VEC2: "wav2vec2", WAVLM: "wavlm", DATA2VEC: "data2vec"}[network]
    expert = importlib.import_module(f"s3prl.upstream.{place}.expert").UpstreamExpert
    if network == WAVLM:
        module = importlib.import_module("s3prl.upstream.wavlm.WavLM")
        cfg = {**fields, "normalize": is_normalised(network, size)}
        state = {"cfg": cfg, "model": _make(module.WavLM, module.WavLMConfig(cfg)).state_dict()}
    else:
        name = {WAV2VEC2: "Wav2Vec2", DATA2VEC: "Data2VecAudio"}[network]
        module = importlib.import_module(f"s3prl.upstream.{place}.{place}_model")
        made = _make(getattr(module, f"{name}Model"), getattr(module, f"{name}Config")(**fields))
        weights = {**made.state_dict(), **({"_ema": {}} if network == DATA2VEC else {})}  # which s3prl removes
        state = {"task_cfg": checkpoint["task"], "model_cfg": checkpoint["model"], "model_weight": weights}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "converted.pt"
        torch.save(state, path)
        return Pair(expert(str(path)).eval(), run_s3prl, convert(path, allow_pickle=True))


def run_s3prl(model: nn.Module, waveforms: Sequence[Tensor]) -> list[Tensor]:
    """Run s3prl's upstream, which normalises and pads by itself; return layers 0 to L."""
    dtype = next(model.parameters()).dtype
    states: list[Tensor] = model([waveform.to(dtype) for waveform in waveforms])["hidden_states"]
    return states


def _describe_for_fairseq(network: str, size: Size) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of fairseq's configuration class, and the configuration in a checkpoint."""
    model = {**FAIRSEQ_SHAPES[size], **FAIRSEQ_CHANGES[network]}
    task = {"_name": "audio_pretraining", "normalize": is_normalised(network, size), "sample_rate": 16000}
    return {key: value for key, value in model.items() if key != "_name"}, {"model": model, "task": task}


def _convert_file(state: dict[str, Any]) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        torch.save(state, path)
        return convert(path, allow_pickle=True)


SOURCES: dict[str, dict[str, Callable[[str, Size], Pair]]] = {
    WAV2VEC2: {
        "fairseq": make_fairseq_pair,
        "s3prl": make_s3prl_pair,
        "torchaudio": make_torchaudio_pair,
        "transformers": make_transformers_pair,
    },
    WAVLM: {
        "s3prl": make_s3prl_pair,
        "torchaudio": make_torchaudio_pair,
        "transformers": make_transformers_pair,
    },
    DATA2VEC: {
        "fairseq": make_fairseq_pair,
        "s3prl": make_s3prl_pair,
        "transformers": make_transformers_pair,
    },
    WHISPER: {"transformers": make_whisper_pair},
}
"""Maps a network to the libraries that have it, and to functions that make their network and ours."""


def make_pair(network: str, source: str, size: Size) -> Pair | None:
    """Make a pair of `SOURCES`; print a line and return None if the library is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SOURCES[network][source](network, size)
    except ModuleNotFoundError as error:
        print(f"{network} of {source}: left out, {error.name} is not installed")
        return None
