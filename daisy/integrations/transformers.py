"""Convert models of transformers that are already in memory."""

from __future__ import annotations

from typing import Any

from daisy.checkpoints import Model
from daisy.checkpoints.converters import huggingface
from daisy.checkpoints.converters.mapping import assemble, describe_keys
from daisy.errors import CheckpointError, UsageError
from daisy.models import ExitHeads


def from_hf(model: Any, feature_extractor: Any = None, *, heads: ExitHeads | None = None) -> Model:
    """Convert a HuBERT, wav2vec 2.0, WavLM or data2vec-audio model of transformers, to run it with exits.

    The weights are copied, in float32; later training is not followed. Of models with a head on top, such as
    `HubertForCTC`, only the network is used. Without heads, use the policies fixed, never or deadline. Train heads
    on the saved model (`daisy.save`) by ``daisy train-heads`` or the fairseq plugin.

    Args:
        model: model in any precision, on any device; the result is on the same device.
        feature_extractor: its `Wav2Vec2FeatureExtractor`, or a processor that has one, which gives the rate and whether
            waveforms are normalised; None: 16 kHz, and normalised if the convolutions have layer norms, as in
            the published models.
        heads: exit heads trained for this model.

    Returns:
        The converted model, whose states are those of ``model`` on each utterance alone.

    Raises:
        CheckpointError: on other kinds of models, or on unknown parts that change the computation.
        UsageError: on a feature extractor that lacks either of these values.

    For example, with 6 of HuBERT Base's 12 layers::

        model = daisy.from_hf(HubertModel.from_pretrained("facebook/hubert-base-ls960"))
        states = model.encoder("fixed", layer=6)(waveform).last_hidden_state
    """
    config = _read_config(model)
    fields = huggingface.read_backbone_fields(config)
    heard, assumed = _read_preprocessing(feature_extractor, fields["conv_norm"])
    network = huggingface.NETWORKS[config["model_type"]]
    tensors, left_out = huggingface.rename_weights(model.state_dict(), network)
    parts = {"backbone": {**fields, **heard}}
    taken = assemble(parts, tensors, left_out=describe_keys(left_out), assumed=assumed, network=network)
    taken.provenance["converted_from"] = f"transformers {type(model).__name__}"
    name = getattr(model, "name_or_path", "")
    if name:
        taken.provenance["converted_from"] += f", {name}"
    if heads is not None:
        taken = Model(backbone=taken.backbone, heads=heads, provenance=taken.provenance)
    return taken.to(model.device)


def _read_config(model: Any) -> dict[str, Any]:
    """Read the configuration of a supported model."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if config is None or kind not in huggingface.NETWORKS:
        what = f"a model of type {kind!r}" if kind else f"a {type(model).__name__}"
        raise CheckpointError(f"{what} is not supported: known are transformers' {', '.join(huggingface.NETWORKS)}")
    values: dict[str, Any] = config.to_dict()
    return values


def _read_preprocessing(feature_extractor: Any, conv_norm: str) -> tuple[dict[str, Any], str]:
    """Read the preprocessing of the audio, and say what of it was assumed."""
    if feature_extractor is None:
        normalize = conv_norm == "layer"
        assumed = f"sample_rate 16000, normalize {str(normalize).lower()}: no feature extractor was given"
        return huggingface.make_preprocessing(16000, normalize), assumed
    given = getattr(feature_extractor, "feature_extractor", feature_extractor)
    if not hasattr(given, "sampling_rate") or not hasattr(given, "do_normalize"):
        raise UsageError(
            f"a {type(given).__name__} does not tell the rate and whether waveforms are normalised: give the model's "
            "Wav2Vec2FeatureExtractor"
        )
    return huggingface.make_preprocessing(given.sampling_rate, given.do_normalize), ""
