"""The shape of Whisper's encoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from daisy.errors import CheckpointError
from daisy.models.config import FAIRSEQ_EPS, BackboneConfig, is_count
from daisy.models.lengths import ConvLayer

FFT_SIZE, HOP_SAMPLES, MELS_OF_A_FRAME = 400, 160, 2
"""Samples per Fourier transform, samples between two spectra, and spectra per frame, in all published Whispers."""


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Shape of Whisper's encoder (arXiv:2212.04356); the default is that of Whisper base.

    Example:
        >>> from daisy.models import WhisperConfig
        >>> config = WhisperConfig()
        >>> config.max_samples, config.frame_hop, config.frame_span
        (480000, 320, 320)
    """

    num_layers: int = 6
    """Number of transformer layers, L."""
    width: int = 512
    """Width of the hidden states, D."""
    ffn_width: int = 2048
    """Inner width of the feed-forward blocks."""
    num_heads: int = 8
    """Attention heads."""
    num_mels: int = 80
    """Mel bands; 128 in Whisper large v3."""
    window_frames: int = 1500
    """Frames that are computed whatever the recording's length: 30 s, filled up with silence."""
    final_norm: bool = True
    """Whether the final norm is applied to the last layer's states; false where later layers were cut off."""
    sample_rate: int = 16000
    """Sample rate in Hz."""

    kind: ClassVar[str] = "whisper"
    pre_norm: ClassVar[bool] = True
    """Always true: a layer's norms come before its blocks."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WhisperConfig:
        """Make a configuration from the values of `to_dict`, also after a round trip through JSON.

        Raises:
            CheckpointError: on unknown fields or invalid values.
        """
        values = {name: value for name, value in values.items() if name != "kind"}
        if unknown := set(values) - {field.name for field in dataclasses.fields(cls)}:
            raise CheckpointError(
                f"Whisper configuration has unknown fields: {', '.join(sorted(unknown))}; a later daisy may know them"
            )
        config = cls(**values)
        config.validate()
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the values for a checkpoint's metadata."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def validate(self) -> None:
        """Check that the values are valid.

        Raises:
            CheckpointError: naming every field that is wrong.
        """
        values = dataclasses.asdict(self)
        wrong = [] if isinstance(values.pop("final_norm"), bool) else ["final_norm must be true or false"]
        wrong += [
            f"{name} must be a whole number, at least 1, found {value!r}"
            for name, value in values.items()
            if not is_count(value)
        ]
        if not wrong and self.width % self.num_heads:
            wrong.append(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if not wrong and self.sample_rate != 16000:
            wrong.append(f"sample_rate must be 16000, found {self.sample_rate}")
        if wrong:
            raise CheckpointError("Whisper configuration: " + "; ".join(wrong))

    def norms_after(self, layer: int) -> bool:
        """Tell whether the final norm is applied to the states of a layer, 1 to L."""
        return self.final_norm and layer == self.num_layers

    def make_layer_config(self) -> BackboneConfig:
        """Return the shape of a HuBERT whose layers compute the same as Whisper's."""
        return BackboneConfig(
            num_layers=self.num_layers,
            width=self.width,
            ffn_width=self.ffn_width,
            num_heads=self.num_heads,
            pre_norm=True,
            layer_norm_eps=FAIRSEQ_EPS,
        )

    @property
    def max_samples(self) -> int:
        """Samples per window: the longest recording that can be run at once."""
        return self.window_frames * self.frame_hop

    @property
    def conv_layers(self) -> tuple[ConvLayer, ...]:
        """The front end's frame arithmetic, written as one convolution over samples.

        Frame t is centred at sample 320 t. A recording has one frame for each whole stretch of 320 samples.
        """
        return ((self.width, self.frame_span, self.frame_hop),)

    @property
    def frame_hop(self) -> int:
        """Samples between the starts of two frames."""
        return MELS_OF_A_FRAME * HOP_SAMPLES

    @property
    def frame_span(self) -> int:
        """Samples of the shortest usable recording."""
        return self.frame_hop
