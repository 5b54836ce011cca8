"""The shape of a Conformer with exits, and of a Splitformer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from daisy.errors import CheckpointError
from daisy.models.config import is_count, is_number
from daisy.models.lengths import ConvLayer

MELS_OF_A_FRAME, MELS_BETWEEN_FRAMES = 7, 4
"""Frame arithmetic of two convolutions of kernel 3 and stride 2, one after the other, without padding."""


@dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """Shape of a Conformer; the default is that of Wright et al. (arXiv:2309.09546): 31.5 M parameters with its exits.

    A layer is one Conformer layer, as in the papers: 12, in blocks of 2, with an exit after each block.

    Example:
        >>> from daisy.models import ConformerConfig
        >>> config = ConformerConfig.splitformer()
        >>> config.split_blocks, config.frame_hop, config.frame_span, list(config.block_ends)
        ((1, 6), 640, 960, [2, 4, 6, 8, 10, 12])
    """

    num_layers: int = 12
    """Number of Conformer layers, L."""
    width: int = 256
    """Width of the hidden states, D."""
    ffn_width: int = 2048
    """Inner width of the feed-forward modules."""
    num_heads: int = 8
    """Attention heads. The public code has 8, its README says 6, which does not divide 256."""
    kernel: int = 31
    """Kernel of the depthwise convolutions, in frames; odd."""
    block_layers: int = 2
    """Layers per block."""
    split_blocks: tuple[int, ...] = ()
    """Blocks, from 1, with a parallel layer at half the frame rate: Splitformer (arXiv:2506.18035) has one at the first
    and the last."""
    dropout: float = 0.1
    """Dropout probability in training."""
    num_mels: int = 80
    """Mel bands."""
    fft_size: int = 1024
    """Samples per Fourier transform."""
    window_samples: int = 320
    """Length of the window in samples."""
    hop_samples: int = 160
    """Samples between two spectra; four of them make a frame."""
    log: bool = True
    """Whether the logarithm of the mel energies is taken; it is not in the public code."""
    normalize: bool = True
    """Whether each band is normalised to zero mean and unit deviation over the utterance; not in the public code."""
    spec_augment: bool = True
    """Whether bands and stretches of time are masked in training; none are in the public code."""
    mask_padding: bool = True
    """Whether padding is kept out of convolutions, half-rate layers and batch statistics; not in the public code,
    where an utterance's result depends on its batch."""
    sample_rate: int = 16000
    """Sample rate in Hz."""

    kind: ClassVar[str] = "conformer"
    max_samples: ClassVar[None] = None
    pre_norm: ClassVar[bool] = False
    """Always false: a layer ends with a norm."""

    @classmethod
    def splitformer(cls) -> ConformerConfig:
        """Return the shape of Splitformer: 36.7 M parameters with its exits."""
        return cls(split_blocks=(1, 6))

    @classmethod
    def mini(cls) -> ConformerConfig:
        """Return a shape that two CPU cores can train: 12 layers of width 128, 4.7 M parameters with its exits."""
        return cls(width=128, ffn_width=512, num_heads=4, kernel=15)

    def as_published(self) -> ConformerConfig:
        """Return the same shape with the public code's choices: plain energies, no masking, padding not masked."""
        return dataclasses.replace(self, log=False, normalize=False, spec_augment=False, mask_padding=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConformerConfig:
        """Make a configuration from the values of `to_dict`, also after a round trip through JSON.

        Raises:
            CheckpointError: on unknown fields or invalid values.
        """
        values = {name: value for name, value in values.items() if name != "kind"}
        if unknown := set(values) - {field.name for field in dataclasses.fields(cls)}:
            raise CheckpointError(
                f"Conformer configuration has unknown fields: {', '.join(sorted(unknown))}; a later daisy may know them"
            )
        config = cls(**{**values, "split_blocks": tuple(values.get("split_blocks", ()))})
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
        wrong = [line for field in dataclasses.fields(self) if (line := self._find_fault(field.name, str(field.type)))]
        if not wrong:
            wrong = self._find_misfits()
        if wrong:
            raise CheckpointError("Conformer configuration: " + "; ".join(wrong))

    def _find_fault(self, name: str, kind: str) -> str | None:
        """Say what is wrong with one field, whose type is ``kind``; None if nothing is."""
        value = getattr(self, name)
        if kind == "int":
            wanted, fits = "a whole number, at least 1", is_count(value)
        elif kind == "float":
            wanted, fits = "a number of at least 0, below 1", is_number(value) and 0 <= value < 1
        elif kind == "bool":
            wanted, fits = "true or false", isinstance(value, bool)
        else:
            wanted, fits = "numbers of blocks, from 1", all(is_count(block) for block in value)
        return None if fits else f"{name} must be {wanted}, found {value!r}"

    def _find_misfits(self) -> list[str]:
        """Say which fields do not go together."""
        misfits = []
        if self.width % self.num_heads or self.width % 2:
            misfits.append(f"width {self.width} is not even, or not a multiple of num_heads {self.num_heads}")
        if self.kernel % 2 == 0:
            misfits.append(f"kernel must be odd, found {self.kernel}")
        if self.num_layers % self.block_layers:
            misfits.append(f"num_layers {self.num_layers} is not a multiple of block_layers {self.block_layers}")
        if beyond := [block for block in self.split_blocks if block > self.num_layers // self.block_layers]:
            misfits.append(f"split_blocks has {beyond}, and there are {self.num_layers // self.block_layers} blocks")
        if not self.window_samples <= self.fft_size <= 2 * self.frame_span - 2:
            misfits.append(
                f"fft_size must be {self.window_samples} to {2 * self.frame_span - 2}, found {self.fft_size}"
            )
        return misfits

    @property
    def block_ends(self) -> range:
        """The last layer of each block."""
        return range(self.block_layers, self.num_layers + 1, self.block_layers)

    @property
    def conv_layers(self) -> tuple[ConvLayer, ...]:
        """The front end's frame arithmetic, written as one convolution over samples.

        A recording of N samples has N // hop + 1 spectra, padded at both ends, from which the convolutions make frames.
        """
        span = (MELS_OF_A_FRAME - 1) * self.hop_samples
        return ((self.width, span, MELS_BETWEEN_FRAMES * self.hop_samples),)

    @property
    def frame_hop(self) -> int:
        """Samples between the starts of two frames."""
        return MELS_BETWEEN_FRAMES * self.hop_samples

    @property
    def frame_span(self) -> int:
        """Samples of the shortest usable recording."""
        return (MELS_OF_A_FRAME - 1) * self.hop_samples
