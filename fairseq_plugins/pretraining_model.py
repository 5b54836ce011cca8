"""``daisy_hubert_pretraining``: fairseq's own HuBERT, initialised from another one, and faster on CPUs.

Its weights have the stock model's form; `fairseq_plugins.export` writes a checkpoint that stock fairseq loads.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  OmegaConf 2.0 only reads typing.List

import torch
from fairseq.models import register_model
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.checkpoints.converters import fairseq
from daisy.errors import UsageError
from daisy.models import ExitObjective
from fairseq_plugins.model import check_waveforms, read_backbone
from fairseq_plugins.pretraining_exits import LayerStates
from fairseq_plugins.stacking import spread

logger = logging.getLogger(__name__)
OF_THE_UNITS = ("final_proj.", "label_embs_concat")
LEARNING_FRONT_END = 0.1
"""``feature_grad_mult`` in HuBERT's own pre-training."""


@dataclass
class DaisyPretrainingHubertConfig(HubertConfig):
    warm_start: str = field(
        default="",
        metadata={
            "help": "HuBERT to start from, in any form that daisy reads; fewer layers are spread over this one's"
        },
    )
    exit_heads: bool = field(
        default=False, metadata={"help": "train an exit head on every layer beside (criterion daisy_exit_pretraining)"}
    )
    exit_layers: List[int] = field(
        default_factory=list,
        metadata={"help": "layers whose exit losses train the network; the other heads learn on what they are given"},
    )
    unmasked_prob: float = field(default=0.0, metadata={"help": "share of utterances of which no frame is masked"})
    feature_grad_mult: float = field(
        default=1.0,
        metadata={
            "help": "multiply the gradient of the convolutions by this; 0: they stay as they are, and no backward pass "
            f"runs through them; below 0: 0 with a warm start, else {LEARNING_FRONT_END}"
        },
    )


@register_model("daisy_hubert_pretraining", dataclass=DaisyPretrainingHubertConfig)
class DaisyPretrainingHubert(HubertModel):
    """The stock model, except for its speed and initialisation, and, with exit heads, the losses of its layers."""

    def __init__(self, cfg: DaisyPretrainingHubertConfig, task_cfg: Any, dictionaries: list[Any]):
        super().__init__(cfg, task_cfg, dictionaries)
        self.unmasked_prob = cfg.unmasked_prob
        self.exits = None
        if cfg.exit_layers and not cfg.exit_heads:
            raise UsageError("exit_layers are of exit heads: give model.exit_heads=true (--exit-heads)")
        if cfg.exit_heads:
            self.exits = ExitObjective(
                cfg.encoder_layers, cfg.encoder_embed_dim, len(dictionaries[0]), list(cfg.exit_layers)
            )
            self._layer_states = LayerStates(self.encoder)
            self._targets = self._masked = None

    @classmethod
    def build_model(cls, cfg: DaisyPretrainingHubertConfig, task: Any) -> "DaisyPretrainingHubert":
        if cfg.label_rate != task.cfg.label_rate:
            raise UsageError(
                f"model.label_rate is {cfg.label_rate:g} and task.label_rate {task.cfg.label_rate:g}: targets would be "
                "those of other frames; leave model.label_rate out"
            )
        if cfg.feature_grad_mult < 0:
            cfg.feature_grad_mult = 0.0 if cfg.warm_start else LEARNING_FRONT_END
        model = cls(cfg, task.cfg, task.dictionaries)
        if cfg.feature_grad_mult == 0:  # even without gradients, weight decay would shrink it
            model.feature_extractor.requires_grad_(False)
        # The stock model draws them from [0, 1): they are all similar, which costs the first hundreds of updates.
        nn.init.normal_(model.label_embs_concat, std=model.label_embs_concat.shape[1] ** -0.5)
        if cfg.warm_start:
            start = read_backbone(cfg.warm_start)
            heard = start.hubert.config
            check_waveforms(task, heard.sample_rate, heard.normalize, f"{cfg.warm_start}: ")
            model.start_from(fairseq.weights(start), cfg.warm_start)
            if model.exits is not None and start.heads is not None:
                model.exits.start_from(start.heads)
        return model

    def start_from(self, weights: dict[str, Tensor], path: str) -> None:
        """Copy another HuBERT's weights, and also its prediction head's if it predicts as many units.

        Raises:
            UsageError: where the shapes differ from this model's.
        """
        current = self.state_dict()
        weights = spread(weights, len(self.encoder.layers))
        embeddings, own = weights.get("label_embs_concat"), current["label_embs_concat"]
        if embeddings is None or len(embeddings) != len(own):
            logger.warning(f"{path}: does not predict {len(own)} units: the prediction head starts at random")
            weights = {key: value for key, value in weights.items() if not key.startswith(OF_THE_UNITS)}
        elif (width := embeddings.shape[1]) != own.shape[1]:
            raise UsageError(
                f"{path}: its prediction head compares {width} features, and model.final_dim is {own.shape[1]}: give "
                f"model.final_dim={width} to take it over"
            )
        else:
            logger.info(f"{path}: its prediction head is taken over: its units must be those of these labels")
        current = {key: value for key, value in current.items() if not key.startswith("exits.")}
        wrong = [key for key, value in weights.items() if key not in current or current[key].shape != value.shape]
        missing = [key for key in current if key not in weights and not key.startswith(OF_THE_UNITS)]
        if wrong or missing:
            raise UsageError(f"{path}: not of this model's shape: {', '.join((wrong + missing)[:4])}")
        self.load_state_dict(weights, strict=False)

    def compute_nce(self, x: Tensor, pos: Tensor, negs: Tensor) -> Tensor:
        """Compute the stock logits, (S, 1 + K): first the target's, then each unit's, with -inf for the target.

        It takes one product with the (K, D) embeddings, while the stock model compares (K, S, D) expanded copies.
        """
        if not len(x):
            return super().compute_nce(x, pos, negs)
        embeddings = F.normalize(negs[:, 0].float(), dim=-1)
        logits = F.normalize(x.float(), dim=-1) @ embeddings.T / self.logit_temp
        target = (F.normalize(pos.float(), dim=-1) @ embeddings.T).argmax(-1, keepdim=True)
        wanted = logits.gather(1, target)
        return torch.cat([wanted, logits.scatter(1, target, float("-inf"))], dim=1)

    def get_targets(self, net_output: dict[str, Any], is_masked: bool = True) -> list[Tensor]:
        """Return the targets that fairseq's own criterion asks for.

        Raises:
            UsageError: where there are exit heads, which that criterion would leave untrained.
        """
        if self.exits is not None:
            raise UsageError(
                "model.exit_heads=true (--exit-heads) needs the criterion that trains exit heads: give "
                "criterion._name=daisy_exit_pretraining (--criterion daisy_exit_pretraining), or no exit heads"
            )
        return super().get_targets(net_output, is_masked)

    def get_extra_losses(self, net_output: dict[str, Any]) -> tuple[list[Tensor], list[str]]:
        """Return the stock model's penalty on the convolutions' output, and its name, if the convolutions learn."""
        if self.feature_grad_mult <= 0:
            return [], []
        return super().get_extra_losses(net_output)

    def forward(self, source: Tensor, target_list: list[Tensor] | None = None, **options: Any) -> dict[str, Any]:
        """Run the stock model; with exit heads and targets, ``exits`` holds their losses (`LayerLosses`)."""
        result = super().forward(source, target_list, **options)
        if self.exits is not None and target_list is not None and "padding_mask" in result and "x" not in result:
            valid = ~result["padding_mask"]
            result["exits"] = self.exits(self._layer_states.take(valid.shape[1]), self._targets, valid, self._masked)
        return result

    def forward_targets(self, features: Tensor, target_list: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Align the targets as the stock model does, and keep them for the exit heads."""
        features, target_list = super().forward_targets(features, target_list)
        self._targets = target_list[0].long()
        return features, target_list

    def _draw_whole(self, batch: int) -> Tensor:
        """Draw which utterances are not masked, (B,); fairseq seeds torch alike in every process: hence the rank."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())) + rank)
        return torch.rand(batch, generator=generator) < self.unmasked_prob

    def apply_mask(self, x: Tensor, padding_mask: Tensor, target_list: Any) -> tuple[Tensor, Tensor]:
        """Mask as the stock model does, except for utterances that stay unmasked."""
        heard = x.clone()  # masking is in place
        x, masked = super().apply_mask(x, padding_mask, target_list)
        if masked is None:  # mask_prob is 0
            masked = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.training and self.unmasked_prob > 0:
            whole = self._draw_whole(len(x)).to(x.device)
            x, masked = torch.where(whole[:, None, None], heard, x), masked & ~whole[:, None]
        self._masked = masked
        return x, masked
