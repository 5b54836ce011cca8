"""``daisy_hubert_pretraining``: fairseq's own HuBERT, started from another one, and faster on CPUs.

Its weights are the stock model's; `fairseq_plugins.export` writes a checkpoint that stock fairseq loads.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.models import register_model
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.checkpoints.converters import fairseq
from daisy.errors import UsageError
from fairseq_plugins.model import check_sample_rate, read_backbone
from fairseq_plugins.stacking import spread

logger = logging.getLogger(__name__)
OF_THE_UNITS = ("final_proj.", "label_embs_concat")


@dataclass
class DaisyPretrainingHubertConfig(HubertConfig):
    warm_start: str = field(
        default="",
        metadata={
            "help": "HuBERT to start from, in any form that daisy reads; fewer layers are spread over this one's"
        },
    )


@register_model("daisy_hubert_pretraining", dataclass=DaisyPretrainingHubertConfig)
class DaisyPretrainingHubert(HubertModel):
    """The stock model. What differs is how fast, and where it starts."""

    @classmethod
    def build_model(cls, cfg: DaisyPretrainingHubertConfig, task: Any) -> "DaisyPretrainingHubert":
        if cfg.label_rate != task.cfg.label_rate:
            raise UsageError(
                f"model.label_rate is {cfg.label_rate:g} and task.label_rate {task.cfg.label_rate:g}: targets would be "
                "those of other frames; leave model.label_rate out"
            )
        model = cls(cfg, task.cfg, task.dictionaries)
        if cfg.feature_grad_mult == 0:  # without gradient, weight decay would still shrink it
            model.feature_extractor.requires_grad_(False)
        # The stock model draws them from [0, 1): all much alike, which costs the first hundreds of updates.
        nn.init.normal_(model.label_embs_concat, std=model.label_embs_concat.shape[1] ** -0.5)
        if cfg.warm_start:
            start = read_backbone(cfg.warm_start)
            check_sample_rate(cfg.warm_start, start, task)
            model.start_from(fairseq.weights(start), cfg.warm_start)
        return model

    def start_from(self, weights: dict[str, Tensor], path: str) -> None:
        """Take another HuBERT's weights; the prediction head's too, where it predicts as many units.

        Raises:
            UsageError: where the shapes are not this model's.
        """
        current = self.state_dict()
        weights = spread(weights, len(self.encoder.layers))
        if weights.get("label_embs_concat", current["mask_emb"]).shape != current["label_embs_concat"].shape:
            logger.warning(f"{path}: predicts another number of units: the prediction head starts at random")
            weights = {key: value for key, value in weights.items() if not key.startswith(OF_THE_UNITS)}
        wrong = [key for key, value in weights.items() if key not in current or current[key].shape != value.shape]
        missing = [key for key in current if key not in weights and not key.startswith(OF_THE_UNITS)]
        if wrong or missing:
            raise UsageError(f"{path}: not of this model's shape: {', '.join((wrong + missing)[:4])}")
        self.load_state_dict(weights, strict=False)

    def compute_nce(self, x: Tensor, pos: Tensor, negs: Tensor) -> Tensor:
        """Compute the stock logits, (S, 1 + K): the target's, then each unit's, the target among them set to -inf.

        One product with the (K, D) embeddings, where the stock form compares (K, S, D) expanded copies.
        """
        if not len(x):
            return super().compute_nce(x, pos, negs)
        embeddings = F.normalize(negs[:, 0].float(), dim=-1)
        logits = F.normalize(x.float(), dim=-1) @ embeddings.T / self.logit_temp
        target = (F.normalize(pos.float(), dim=-1) @ embeddings.T).argmax(-1, keepdim=True)
        wanted = logits.gather(1, target)
        return torch.cat([wanted, logits.scatter(1, target, float("-inf"))], dim=1)
