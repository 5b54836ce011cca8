"""The model: a backbone with its heads and default policies, and the methods that make encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from daisy import _files
from daisy import policies as exit_policies
from daisy.encoder import EarlyExitEncoder, Keep, choose_exits
from daisy.errors import CheckpointError, PolicyError
from daisy.models import (
    AttentionDecoders,
    Backbone,
    BackboneConfig,
    ConformerConfig,
    CTCHeads,
    CTCHeadsConfig,
    ExitHeads,
    FinalHead,
    Tokens,
    Whisper,
)
from daisy.models.heads import missing_heads
from daisy.models.kinds import AnyBackbone, AnyHeads
from daisy.policies.base import count_exit
from daisy.policies.file import read_policy
from daisy.policies.scores import WITHOUT_HEADS
from daisy.runtime.dtypes import Precision, cast_precision, without_cast

HeadsKind = Literal["units", "ctc"]
"""The heads whose scores a policy reads: the exit heads on units, or the CTC exits."""


class Model(nn.Module):
    """A backbone, its heads, the tokens of recognised text, and default policies.

    This is an ordinary torch module. Weights stay in float32; a dtype given to
    ``to`` (or `daisy.load`) is that in which encoders made afterwards compute.

    Args:
        backbone: the layers of a HuBERT, of a Conformer or of Whisper.
        heads: the exit heads; None where there are none.
        final_head: HuBERT's own prediction head; None where the source had none (fine-tuned models, Hugging Face).
        policies: default settings of policies for this model, by policy name.
        provenance: origin of the model: source, training data, calibration.
        ctc: exits that recognise text; None where the model does not recognise speech.
        tokens: tokens of these exits' outputs.
        ctc_policies: default settings of policies that read the scores of ``ctc``, by policy name.
        decoders: attention decoders at the exits of ``ctc``; None where only the CTC exits give text.

    Raises:
        CheckpointError: where ``ctc``, ``tokens`` and ``decoders`` do not match.

    Example:
        >>> import daisy, torch
        >>> model = daisy.load("daisy-mini")
        >>> encoder = model.encoder("entropy", threshold=2.0)
        >>> out = encoder(torch.zeros(16000))
        >>> out.last_hidden_state.shape
        torch.Size([1, 49, 256])
    """

    backbone: AnyBackbone
    heads: ExitHeads | None
    final_head: FinalHead | None
    ctc: CTCHeads | None
    decoders: AttentionDecoders | None

    def __init__(
        self,
        *,
        backbone: AnyBackbone,
        heads: ExitHeads | None = None,
        final_head: FinalHead | None = None,
        policies: dict[str, dict[str, Any]] | None = None,
        provenance: dict[str, Any] | None = None,
        ctc: CTCHeads | None = None,
        tokens: Tokens | None = None,
        ctc_policies: dict[str, dict[str, Any]] | None = None,
        decoders: AttentionDecoders | None = None,
    ):
        super().__init__()
        _check_tokens(ctc, tokens)
        _check_decoders(ctc, decoders)
        self.backbone, self.heads, self.final_head = backbone, heads, final_head
        self.ctc, self.tokens, self.decoders = ctc, tokens, decoders
        self.policies = {} if policies is None else policies
        self.ctc_policies = {} if ctc_policies is None else ctc_policies
        self.provenance = {} if provenance is None else provenance
        self.path: Path | None = None
        """The file that the model was read from."""
        self.dtype: Precision = "float32"
        """Default data type in which the model's encoders compute."""
        self.eval()

    @property
    def hubert(self) -> Backbone:
        """The backbone, for code that needs a HuBERT.

        Raises:
            CheckpointError: where the backbone is another network.
        """
        if not isinstance(self.backbone, Backbone):
            other = "Whisper" if isinstance(self.backbone, Whisper) else "a Conformer"
            raise CheckpointError(f"this checkpoint's backbone is {other}, and a HuBERT is wanted")
        return self.backbone

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.backbone.device

    def exit_heads(self, heads: HeadsKind | None = None) -> AnyHeads | None:
        """Return the heads of a kind; by default (None) the unit heads, or without them the CTC exits.

        Raises:
            CheckpointError: where CTC exits are requested, but there are none.
        """
        if heads == "ctc" and self.ctc is None:
            raise CheckpointError("this checkpoint has no CTC exits, so it does not recognise speech", remedy="ctc")
        return self.ctc if heads == "ctc" or (heads is None and self.heads is None) else self.heads

    def policy(
        self,
        name: str,
        *,
        heads: HeadsKind | None = None,
        exits: Sequence[int] | None = None,
        **settings: Any,
    ) -> exit_policies.Policy:
        """Make a policy from this model's default settings, overridden by ``settings``.

        Args:
            name: key of `daisy.policies.POLICIES`.
            heads: heads whose scores the policy reads, and whose defaults are used; see `exit_heads`.
            exits: layers of the encoder's exits, where these are not all exits of the heads.
            settings: settings of the policy, by name; a layer (in the policy fixed) is one of the network,
                while the policy itself counts exits.

        Raises:
            PolicyError: where a setting is unknown, invalid, or neither given nor stored, or an exit is at a layer that
                does not exist.
            CheckpointError: where the policy reads heads, but there are none.
        """
        known, reading = exit_policies.POLICIES.get(name), self.exit_heads(heads)
        head_scores = set(known.scores) - WITHOUT_HEADS if known else set()
        if reading is None and head_scores:
            raise missing_heads(f"policy {name}", head_scores)
        defaults = self.ctc_policies if reading is self.ctc is not None else self.policies
        given = {**defaults.get(name, {}), **settings}
        layers = choose_exits(self.backbone, reading, exits)
        if known is not None and len(layers) < self.backbone.config.num_layers:
            given |= {key: count_exit(name, key, given[key], layers) for key in known.exit_numbers if key in given}
            if known is exit_policies.Deadline:
                given.setdefault("layers", layers)
        return exit_policies.make_policy(name, given)

    def encoder(
        self,
        policy: str | Path | exit_policies.Policy = exit_policies.DEFAULT_POLICY,
        *,
        heads: HeadsKind | None = None,
        exits: Sequence[int] | None = None,
        keep: Keep = "all",
        scores: Iterable[str] = (),
        score_stride: int | None = None,
        dtype: Precision | torch.dtype | None = None,
        fast: bool = True,
        **settings: Any,
    ) -> EarlyExitEncoder:
        """Make an encoder that exits by a policy.

        Args:
            policy: a name ("forecast"), a file from ``daisy calibrate`` ("policy.json"), or a policy.
            heads: heads whose scores it reads: "units" or "ctc"; see `exit_heads`.
            exits: see `EarlyExitEncoder`: layers at which utterances may exit.
            keep: see `EarlyExitEncoder`.
            scores: likewise.
            score_stride: likewise; None: that with which the policy file was made, or 1.
            dtype: likewise; None: `dtype`.
            fast: likewise.
            settings: settings of a policy given by name: ``threshold=1.2``.

        Raises:
            PolicyError: where the policy, its file or a setting is unknown, invalid, or made for another model.
            CheckpointError: where the policy reads heads, but there are none.
            UsageError: as in `EarlyExitEncoder`.

        Example:
            >>> import daisy
            >>> daisy.load("daisy-mini").encoder("fixed", layer=6, keep="last").policy
            Fixed(layer=6)
        """
        stride = 1
        if isinstance(policy, Path) or (isinstance(policy, str) and _is_file_name(policy)):
            _refuse_settings(settings, "a policy file brings its own")
            policy, stride = self._read_policy(Path(policy), heads, exits)
        elif isinstance(policy, str):
            policy = self.policy(policy, heads=heads, exits=exits, **settings)
        else:
            _refuse_settings(settings, "a policy that is made already has its own; use dataclasses.replace")
        return EarlyExitEncoder(
            self.backbone,
            self.exit_heads(heads),
            policy,
            exits=exits,
            keep=keep,
            scores=scores,
            score_stride=stride if score_stride is None else score_stride,
            dtype=self.dtype if dtype is None else dtype,
            fast=fast,
        )

    def _read_policy(
        self, path: Path, heads: HeadsKind | None, exits: Sequence[int] | None
    ) -> tuple[exit_policies.Policy, int]:
        if self.path is None:
            raise PolicyError(f"{path}: is for one checkpoint's file, and this model was not read from one")
        try:
            digest = _files.digest(self.path)
        except OSError as error:
            raise PolicyError(
                f"{path}: is for one checkpoint, and {self.path} cannot be read again to compare ({error.strerror})"
            ) from None
        reading = self.exit_heads(heads)
        kind = "ctc" if isinstance(reading, CTCHeads) else "units"
        return read_policy(
            path,
            checkpoint=self.path.stem,
            digest=digest,
            heads=kind,
            exits=choose_exits(self.backbone, reading, exits),
            all_exits=choose_exits(self.backbone, reading, None),
        )

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that exist, by their prefix in the file."""
        return dict(self.named_children())

    def config(self) -> dict[str, Any]:
        """Return the configuration for a checkpoint's metadata."""
        head, backbone = self.final_head, self.backbone.config
        config = {
            "backbone": backbone.to_dict(),
            "final_head": head
            and {
                "final_dim": head.embeddings.shape[1],
                "num_units": head.num_units,
                "temperature": head.temperature,
            },
            "heads": self.heads and dataclasses.asdict(self.heads.config),
            "policies": self.policies,
            "provenance": self.provenance,
        }
        if self.ctc is not None and self.tokens is not None:
            config["ctc"] = dataclasses.asdict(self.ctc.config)
            config["tokens"], config["ctc_policies"] = self.tokens.to_dict(), self.ctc_policies
        if self.decoders is not None:
            config["decoders"] = dataclasses.asdict(self.decoders.config)
        return config

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Model:
        cast = cast_precision(fn)
        super()._apply(fn if cast is None else without_cast(fn), recurse)  # type: ignore[no-untyped-call]
        self.dtype = cast or self.dtype
        return self

    def __repr__(self) -> str:
        config, heads = self.backbone.config, self.heads
        norm = "pre-norm" if config.pre_norm else "post-norm"
        if not isinstance(config, BackboneConfig):
            norm = "Conformer" if isinstance(config, ConformerConfig) else "Whisper's encoder"
        shown = (
            f"{heads.config.num_units} units" + (", loss regressors" if heads.regressors else "") if heads else "none"
        )
        lines = [
            f"backbone: {config.num_layers} layers of width {config.width}, {norm}, {config.sample_rate} Hz",
            f"exit heads: {shown}",
            f"final head: {f'{self.final_head.num_units} units' if self.final_head else 'none'}",
            *([f"CTC exits: {describe_exits(self.ctc.config)}"] if self.ctc else []),
            *([f"attention decoders: depth {self.decoders.config.num_blocks}"] if self.decoders else []),
            f"policies: {', '.join(self.policies) or 'none'}",
            f"device: {self.device}, dtype: {self.dtype}",
        ]
        return "Model(\n" + "".join(f"  {line}\n" for line in lines) + ")"


def describe_exits(config: CTCHeadsConfig) -> str:
    """Describe CTC exits by their tokens, layers and form: "32 tokens at layers 5, 8, 12, linear"."""
    kinds = (
        config.branch if config.branch == config.final_branch else f"{config.branch}, the last {config.final_branch}"
    )
    return f"{config.num_tokens} tokens at layers {', '.join(map(str, config.layers))}; {kinds}"


def _check_tokens(ctc: CTCHeads | None, tokens: Tokens | None) -> None:
    if (ctc is None) != (tokens is None):
        raise CheckpointError("CTC exits and tokens go together: " + ("no exits" if ctc is None else "no tokens"))
    if (
        ctc is not None
        and tokens is not None
        and (len(tokens), tokens.blank)
        != (
            ctc.config.num_tokens,
            ctc.config.blank,
        )
    ):
        raise CheckpointError(
            f"CTC exits of {ctc.config.num_tokens} tokens with blank {ctc.config.blank} do not fit {len(tokens)} "
            f"symbols with blank {tokens.blank}"
        )


def _check_decoders(ctc: CTCHeads | None, decoders: AttentionDecoders | None) -> None:
    if decoders is None:
        return
    if ctc is None:
        raise CheckpointError("attention decoders need CTC exits beside them: no exits")
    for name in ("layers", "width", "num_tokens"):
        ours, theirs = getattr(decoders.config, name), getattr(ctc.config, name)
        if ours != theirs:
            raise CheckpointError(f"attention decoders with {name} {ours} do not fit CTC exits with {theirs}")


def _is_file_name(policy: str) -> bool:
    """Tell whether a text is not the name of a policy, and looks like that of a file."""
    return policy not in exit_policies.POLICIES and (bool(Path(policy).suffix) or Path(policy).is_file())


def _refuse_settings(settings: Mapping[str, object], reason: str) -> None:
    if settings:
        raise PolicyError(f"{', '.join(settings)} cannot be set here: {reason}")
