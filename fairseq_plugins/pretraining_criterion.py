"""``daisy_exit_pretraining``: HuBERT's loss at the last layer, and the exit heads' losses at their layers."""

from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  OmegaConf 2.0 only reads typing.List

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor
from torch.nn import functional as F

from daisy.errors import UsageError
from daisy.models.head_losses import sum_layer_losses
from fairseq_plugins.criterion import log_layers


@dataclass
class DaisyExitPretrainingConfig(FairseqDataclass):
    pred_masked_weight: float = field(default=1.0, metadata={"help": "weight of the losses on masked frames"})
    pred_nomask_weight: float = field(default=0.0, metadata={"help": "weight of the losses on the other frames"})
    exit_weight: float = field(
        default=1.0, metadata={"help": "weight of the exit heads' mean loss beside the last layer's own"}
    )
    exit_layer_weights: List[float] = field(
        default_factory=list,
        metadata={"help": "weight of each layer of the model's exit_layers, in their order; none: 1 each"},
    )
    feature_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the mean square of the convolutions' output (HuBERT's: 10), where they learn"},
    )


@register_criterion("daisy_exit_pretraining", dataclass=DaisyExitPretrainingConfig)
class DaisyExitPretraining(FairseqCriterion):
    """The sum of all losses, in nats per frame. HuBERT's own is that of arXiv:2106.07447, equation 2."""

    def __init__(self, task, pred_masked_weight, pred_nomask_weight, exit_weight, exit_layer_weights, feature_weight):
        super().__init__(task)
        self.pred_masked_weight, self.pred_nomask_weight = pred_masked_weight, pred_nomask_weight
        self.exit_weight, self.feature_weight = exit_weight, feature_weight
        self.exit_layer_weights = list(exit_layer_weights)
        if any(weight <= 0 for weight in self.exit_layer_weights):
            raise UsageError(
                f"exit_layer_weights must be above 0, found {self.exit_layer_weights}; a layer that model.exit_layers "
                "leaves out changes nothing in the network, and its head still learns"
            )

    def forward(self, model, sample: dict, reduce: bool = True):
        output = model(target_list=sample["target_list"], **sample["net_input"])
        if "exits" not in output:
            raise UsageError("daisy_exit_pretraining trains exit heads: give model.exit_heads=true (--exit-heads)")
        self._check_weights(model)
        loss, counted, logging = self._final_losses(model, output)
        exits, of_layers = sum_layer_losses(
            output["exits"], self.pred_masked_weight, self.pred_nomask_weight, self._weigh_layers(model.exits.layers)
        )
        loss = loss + self.exit_weight * exits
        for penalty in model.get_extra_losses(output)[0]:
            loss = loss + self.feature_weight * penalty * counted
        if not counted:  # by chance no utterance of the batch is masked: nothing is learnt from it
            loss = loss * 0.0
        logging |= {**of_layers, "loss": float(loss), "nsentences": len(sample["id"]), "sample_size": counted}
        return loss, counted, logging

    def _check_weights(self, model) -> None:
        """Refuse weights that no frame has, or that HuBERT's own loss leaves out while the exits' losses count them."""
        masks = model.mask_prob > 0 and model.unmasked_prob < 1
        if not ((self.pred_masked_weight > 0 and masks) or self.pred_nomask_weight > 0):
            raise UsageError("no frame counts: give pred_masked_weight with mask_prob, or pred_nomask_weight")
        for skips, name, weight in (
            (model.skip_masked, "masked", self.pred_masked_weight),
            (model.skip_nomask, "nomask", self.pred_nomask_weight),
        ):
            if skips and weight > 0:
                raise UsageError(
                    f"model.skip_{name} leaves frames out of HuBERT's own loss that the exits' losses count: give "
                    f"model.skip_{name}=false, or criterion.pred_{name}_weight=0"
                )

    def _weigh_layers(self, layers: tuple[int, ...]) -> dict[int, float]:
        """Return the weights of the layers whose losses train the network."""
        if not self.exit_layer_weights:
            return {}
        if len(self.exit_layer_weights) != len(layers):
            raise UsageError(
                f"criterion.exit_layer_weights has {len(self.exit_layer_weights)} numbers, and model.exit_layers "
                f"{len(layers)}: give a weight for each layer of {list(layers)}"
            )
        return dict(zip(layers, self.exit_layer_weights, strict=True))

    def _final_losses(self, model, output: dict) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute HuBERT's own loss, the number of frames that count, and values to log."""
        loss, counted, logging = output["features_pen"].new_zeros(()), 0, {}
        for name, is_masked, weight in (
            ("masked", True, self.pred_masked_weight),
            ("other", False, self.pred_nomask_weight),
        ):
            for logits in model.get_logits(output, is_masked):  # (S, 1 + K): the target's comes first
                nats = F.cross_entropy(logits, logits.new_zeros(len(logits)).long(), reduction="sum")
                loss = loss + weight * nats
                counted += len(logits) * (weight > 0)
                logging |= {
                    f"final_{name}": float(nats),
                    f"final_{name}_correct": float((logits.argmax(-1) == 0).sum()),
                    f"final_{name}_counted": len(logits),
                }
        return loss, counted, {"ntokens": counted, **logging}

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log nats and accuracy of the last layer's own head and of each layer's exit head."""
        log_layers(logging_outputs, ("final_masked", "final_other"))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
