"""The shape of a HuBERT, and of the networks that differ from it only in their positions: WavLM, data2vec."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from daisy.errors import CheckpointError
from daisy.models.lengths import HUBERT_CONV, ConvLayer, compute_frame_hop, compute_frame_span

FAIRSEQ_EPS = 1e-5
"""Epsilon of every norm in fairseq, and of its normalisation of waveforms."""

SINCE_THE_FIRST_FORM = ("final_norm", "relative_buckets", "relative_max_distance", "pos_stack")
"""Fields that a file's metadata has only where a network has values other than HuBERT's."""


def is_count(value: object) -> bool:
    """Tell whether a value of a configuration is a whole number, at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def is_number(value: object) -> bool:
    """Tell whether a value of a configuration is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Shape of a HuBERT (arXiv:2106.07447, table I); fairseq's name for each field is in brackets.

    Example:
        >>> from daisy import BackboneConfig
        >>> BackboneConfig.large().num_layers, BackboneConfig().frame_hop, BackboneConfig().frame_span
        (24, 320, 400)
    """

    num_layers: int = 12
    """Number of transformer layers, L [encoder_layers]."""
    width: int = 768
    """Width of the hidden states, D [encoder_embed_dim]."""
    ffn_width: int = 3072
    """Inner width of the feed-forward blocks [encoder_ffn_embed_dim]."""
    num_heads: int = 12
    """Attention heads [encoder_attention_heads]."""
    pre_norm: bool = False
    """Layer norm before each block instead of after it [layer_norm_first]."""
    final_norm: bool = True
    """Whether (with ``pre_norm``) the last layer's states pass the final norm; false where later ones were cut off."""
    conv_layers: tuple[ConvLayer, ...] = HUBERT_CONV
    """(channels, kernel, stride) of each convolution [conv_feature_layers]."""
    conv_norm: Literal["group", "layer"] = "group"
    """"group": norm over time, after the first convolution; "layer": over channels, after all [extractor_mode]."""
    conv_bias: bool = False
    """Whether the convolutions have a bias [conv_bias]."""
    pos_kernel: int = 128
    """Kernel of the positional convolution, in frames [conv_pos]."""
    pos_groups: int = 16
    """Groups of the positional convolution [conv_pos_groups]."""
    pos_batch_norm: bool = False
    """Whether a batch norm precedes the positional convolution [conv_pos_batch_norm]."""
    projection_norm: bool = True
    """Whether a layer norm precedes the projection to the width D; Hugging Face's DistilHuBERT has none."""
    layer_norm_eps: float = FAIRSEQ_EPS
    """Epsilon of the norms of projection and transformer, not of convolutions; Hugging Face's models set it."""
    normalize: bool = False
    """Whether each waveform is first normalised to zero mean and unit variance [task.normalize]."""
    normalize_eps: float = FAIRSEQ_EPS
    """Epsilon of that normalisation: 1e-5 in fairseq, 1e-7 in Hugging Face. It matters for quiet recordings."""
    sample_rate: int = 16000
    """Sample rate in Hz."""
    relative_buckets: int | None = None
    """WavLM's buckets of distances between frames, each with an attention bias [num_buckets]; None: no such bias."""
    relative_max_distance: int = 800
    """Distance in frames from which all distances share one bucket [max_distance]; 800 in WavLM."""
    pos_stack: int | None = None
    """data2vec's positional convolutions, one after the other, each with a norm [pos_conv_depth]; None: HuBERT's one,
    without a norm."""

    max_samples: ClassVar[None] = None
    """Maximum length in samples; None: no limit."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values for a checkpoint's metadata; for a whole HuBERT these have never changed."""
        values = dataclasses.asdict(self)
        unlike = {field.name for field in dataclasses.fields(self) if values[field.name] != field.default}
        return {name: value for name, value in values.items() if name in unlike or name not in SINCE_THE_FIRST_FORM}

    def norms_after(self, layer: int) -> bool:
        """Tell whether the final norm is applied to the states of a layer, 1 to L."""
        return self.pre_norm and self.final_norm and layer == self.num_layers

    @classmethod
    def base(cls) -> BackboneConfig:
        """Return the shape of HuBERT Base: 95 M parameters."""
        return cls()

    @classmethod
    def large(cls) -> BackboneConfig:
        """Return the shape of HuBERT Large: 316 M parameters."""
        return cls(
            num_layers=24,
            width=1024,
            ffn_width=4096,
            num_heads=16,
            pre_norm=True,
            conv_norm="layer",
            conv_bias=True,
            normalize=True,
        )

    @classmethod
    def xlarge(cls) -> BackboneConfig:
        """Return the shape of HuBERT X-Large: 964 M parameters."""
        return dataclasses.replace(cls.large(), num_layers=48, width=1280, ffn_width=5120)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneConfig:
        """Make a configuration from the fields of ``dataclasses.asdict``, also after a round trip through JSON.

        Raises:
            CheckpointError: on unknown fields or invalid values.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise CheckpointError(
                f"backbone configuration has unknown fields: {', '.join(sorted(unknown))}; a later daisy may know them"
            )
        conv_layers = tuple((int(c), int(k), int(s)) for c, k, s in values.get("conv_layers", HUBERT_CONV))
        config = cls(**{**values, "conv_layers": conv_layers})
        config.validate()
        return config

    def validate(self) -> None:
        """Check that the values are valid.

        Raises:
            CheckpointError: naming every field that is wrong.
        """
        wrong = [line for field in dataclasses.fields(self) if (line := self._find_fault(field.name, str(field.type)))]
        if not wrong and self.width % self.num_heads:
            wrong.append(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if not wrong and self.width % self.pos_groups:
            wrong.append(f"width {self.width} is not a multiple of pos_groups {self.pos_groups}")
        if not wrong and self.pos_stack is not None and self.pos_batch_norm:
            wrong.append("pos_stack and pos_batch_norm exclude each other")
        if not wrong and self.relative_buckets is not None:
            wrong += self._find_relative_faults(self.relative_buckets)
        if wrong:
            raise CheckpointError("backbone configuration: " + "; ".join(wrong))

    def _find_relative_faults(self, buckets: int) -> list[str]:
        if buckets % 4:
            return [f"relative_buckets {buckets} is not a multiple of 4"]
        if self.relative_max_distance <= buckets // 4:
            return [f"relative_max_distance {self.relative_max_distance} is within relative_buckets {buckets} / 4"]
        return []

    def _find_fault(self, name: str, kind: str) -> str | None:
        """Say what is wrong with one field, whose type is ``kind``; None if nothing is."""
        value = getattr(self, name)
        if kind == "int | None" and value is None:
            return None
        if kind in ("int", "int | None"):
            wanted, fits = "a whole number, at least 1", is_count(value)
        elif kind == "float":
            wanted, fits = "a number of at least 0, below 1", is_number(value) and 0 <= value < 1
        elif kind == "bool":
            wanted, fits = "true or false", isinstance(value, bool)
        elif name == "conv_norm":
            wanted, fits = '"group" or "layer"', value in ("group", "layer")
        else:
            wanted = "(channels, kernel, stride) of each convolution, each at least 1"
            fits = bool(value) and all(len(layer) == 3 and min(layer) >= 1 for layer in value)
        return None if fits else f"{name} must be {wanted}, found {value!r}"

    @property
    def frame_hop(self) -> int:
        """Samples between the starts of two frames."""
        return compute_frame_hop(self.conv_layers)

    @property
    def frame_span(self) -> int:
        """Samples that one frame sees: the shortest usable recording."""
        return compute_frame_span(self.conv_layers)
