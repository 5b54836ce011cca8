"""``daisy_ctc``: the sum of the exits' CTC losses (and attention decoders' losses), and each exit's errors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  OmegaConf 2.0 only reads typing.List

import torch
from fairseq import metrics
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from daisy.errors import UsageError
from daisy.policies.texts import collapse, edit_distance
from fairseq_plugins.recognition import read_tokens

CONFIDENCE = ChoiceEnum(["none", "times", "over"])
LEAST_CONFIDENCE = 0.1
IGNORED = -100
"""Label of positions after a text's end."""


@dataclass
class DaisyCtcCriterionConfig(FairseqDataclass):
    zero_infinity: bool = field(
        default=True, metadata={"help": "utterances with more tokens than frames count as no loss, not as infinity"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")
    exit_weights: List[float] = field(
        default_factory=list, metadata={"help": "weight of each exit's loss, first exit first; []: 1 each"}
    )
    label_share: List[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "help": "share of the loss against the labels, one for all exits or one each; the rest is against the "
            "last exit's greedy text, but for the last exit, which has its share alone: with 0.3 for all 0.3 of one. "
            "The shares of wav2vec2-ee: 0.3, or 0.65,0.7,0.75,0.8,0.85,1"
        },
    )
    confidence: CONFIDENCE = field(
        default="none",
        metadata={"help": "an utterance's loss times, or over, its confidence: max(0.1, exp(mean log max p))"},
    )
    mark_ends: bool = field(
        default=False, metadata={"help": "begin CTC's targets with the token <pad> and end them with </s>"}
    )
    attention_share: float = field(
        default=0.7,
        metadata={
            "help": "with attention decoders, the share of their cross-entropy in each exit's loss; CTC has the rest"
        },
    )
    padded_lengths: bool = field(
        default=False, metadata={"help": "let every utterance have the frames of the longest of its batch"}
    )


@register_criterion("daisy_ctc", dataclass=DaisyCtcCriterionConfig)
class DaisyCtcCriterion(FairseqCriterion):
    """The weighted sum of the exits' CTC losses in nats, in float32 whatever the model's data type.

    Matched behaviour: fairseq/criterions/ctc.py for one exit, though it logs bits; for the options,
    augustgw/wav2vec2-ee, train_utils.py, with three differences. The confidence is of each utterance, without padding;
    that code takes one for the whole batch. The text for the rest of the loss is always that of this
    model's last exit, as in that code with a share for each exit; with 0.3 for all, that code decodes a frozen copy of
    the initial model. The last exit learns no such text, there and here: only the labels'
    share of its loss is left. That code divides each utterance's loss by its number of tokens.
    """

    def __init__(self, cfg: DaisyCtcCriterionConfig, task: Any):
        super().__init__(task)
        self.tokens = read_tokens(task)
        dictionary = task.target_dictionary
        self.blank, self.pad, self.eos = self.tokens.blank, dictionary.pad(), dictionary.eos()
        self.zero_infinity, self.sentence_avg = cfg.zero_infinity, cfg.sentence_avg
        self.exit_weights, self.label_share = list(cfg.exit_weights), list(cfg.label_share)
        self.confidence = str(cfg.confidence)
        self.mark_ends, self.padded_lengths = cfg.mark_ends, cfg.padded_lengths
        self.attention_share = cfg.attention_share
        if not 0 <= self.attention_share <= 1:
            raise UsageError(f"attention_share must be 0 to 1, found {self.attention_share}")
        if not all(0 <= share <= 1 for share in self.label_share):
            raise UsageError(f"label_share must be 0 to 1, found {self.label_share}")

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        labels = self._read_labels(sample["target"])
        decoders = getattr(model, "decoders", None)
        texts = None
        if decoders is not None:
            texts = self._begin_texts(labels, decoders.config.begin).to(sample["net_input"]["source"].device)
        output = model(**sample["net_input"], **({} if texts is None else {"texts": texts}))
        logits: dict[int, Tensor] = output["logits"]
        layers, num_frames = sorted(logits), output["num_frames"]
        weights = _one_each(self.exit_weights or [1.0], layers, "exit_weights")
        shares = _one_each(self.label_share, layers, "label_share")
        targets = [self._mark(row) for row in labels] if self.mark_ends else labels
        log_probs = {layer: logits[layer].float().log_softmax(-1) for layer in layers}  # (B, T, V)
        teacher = None
        if min(shares) < 1:
            teacher = self._decode(log_probs[layers[-1]], num_frames)
        counted = num_frames if not self.padded_lengths else torch.full_like(num_frames, logits[layers[0]].shape[1])
        total, logging = logits[layers[0]].new_zeros((), dtype=torch.float32), {}
        for layer, weight, share in zip(layers, weights, shares, strict=True):
            losses = self._compute_ctc(log_probs[layer], targets, counted)
            logging[f"ctc_{layer}"] = float(losses.detach().sum())
            if teacher is not None:
                losses = share * losses
                if layer != layers[-1] and share < 1:
                    losses = losses + (1 - share) * self._compute_ctc(log_probs[layer], teacher, counted)
            if texts is not None:
                entropies = self._compute_cross_entropy(output["next_logits"][layer], labels)
                logging[f"ce_{layer}"] = float(entropies.detach().sum())
                losses = (1 - self.attention_share) * losses + self.attention_share * entropies
            total = total + weight * (losses * self._weigh(log_probs[layer], num_frames)).sum()
        num_tokens = sum(len(row) for row in targets)
        sample_size = len(labels) if self.sentence_avg else num_tokens
        logging |= {
            "loss": float(total.detach()),
            "ntokens": num_tokens,
            "nsentences": len(labels),
            "sample_size": sample_size,
        }
        if not model.training:
            logging |= self._count_errors(log_probs, num_frames, labels)
        return total, sample_size, logging

    def _read_labels(self, target: Tensor) -> list[Tensor]:
        """Return the tokens of each utterance, without padding and end: (N_b,) int64 on the CPU."""
        return [row[(row != self.pad) & (row != self.eos)].long() for row in target.cpu()]

    def _mark(self, row: Tensor) -> Tensor:
        return torch.cat([row.new_tensor([self.pad]), row, row.new_tensor([self.eos])])

    def _begin_texts(self, labels: Sequence[Tensor], begin: int) -> Tensor:
        """Make the decoders' input: the tokens before each token and the end, (B, U) int64, padded with the end."""
        rows = [torch.cat([row.new_tensor([begin]), row]) for row in labels]
        return pad_sequence(rows, batch_first=True, padding_value=self.eos)

    def _compute_cross_entropy(self, next_logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """Compute the cross-entropy of each utterance's tokens and end, (B,) nats; ``next_logits`` (B, U, V)."""
        rows = [torch.cat([row, row.new_tensor([self.eos])]) for row in labels]
        wanted = pad_sequence(rows, batch_first=True, padding_value=IGNORED).to(next_logits.device)
        return F.cross_entropy(next_logits.float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none").sum(
            1
        )

    def _compute_ctc(self, log_probs: Tensor, targets: Sequence[Tensor], num_frames: Tensor) -> Tensor:
        """Compute the CTC loss of each utterance, (B,) nats; ``log_probs`` (B, T, V)."""
        flat = torch.cat(list(targets)).to(log_probs.device)
        lengths = torch.tensor([len(row) for row in targets])
        with torch.backends.cudnn.flags(enabled=False):
            return F.ctc_loss(
                log_probs.transpose(0, 1),
                flat,
                num_frames.cpu(),
                lengths,
                blank=self.blank,
                reduction="none",
                zero_infinity=self.zero_infinity,
            )

    def _weigh(self, log_probs: Tensor, num_frames: Tensor) -> Tensor | float:
        """Return the factor of each utterance's loss, (B,): 1, its confidence, or the inverse of it."""
        if self.confidence == "none":
            return 1.0
        best = log_probs.detach().max(-1).values  # (B, T)
        valid = torch.arange(best.shape[1]) < num_frames.cpu()[:, None]
        mean = (best * valid.to(best.device)).sum(1) / num_frames.to(best.device)
        confidence = mean.exp().clamp(min=LEAST_CONFIDENCE)
        return confidence if self.confidence == "times" else 1 / confidence

    def _decode(self, log_probs: Tensor, num_frames: Tensor) -> list[Tensor]:
        """Return the tokens of each utterance's best path, (N_b,) int64 on the CPU."""
        best = log_probs.detach().argmax(-1).cpu()
        paths = [path[:count].tolist() for path, count in zip(best, num_frames.tolist(), strict=True)]
        return [torch.tensor(collapse(path, self.blank), dtype=torch.int64) for path in paths]

    def _count_errors(self, log_probs: dict[int, Tensor], num_frames: Tensor, labels: list[Tensor]) -> dict[str, int]:
        """Count the errors in tokens and words at each exit, with greedy decoding."""
        said = [row.tolist() for row in labels]
        words = [self.tokens.to_text(row).split() for row in said]
        counts = {"c_total": sum(map(len, said)), "w_total": sum(map(len, words))}
        for layer, values in log_probs.items():
            heard = [row.tolist() for row in self._decode(values, num_frames)]
            if self.mark_ends:
                heard = [[token for token in row if token not in (self.pad, self.eos)] for row in heard]
            counts[f"c_errors_{layer}"] = sum(map(edit_distance, said, heard))
            heard_words = [self.tokens.to_text(row).split() for row in heard]
            counts[f"w_errors_{layer}"] = sum(map(edit_distance, words, heard_words))
        return counts

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss, each exit's CTC and cross-entropy in nats per token, and in validation its error rates in %.

        ``uer`` counts tokens, ``wer`` words. Names without a layer are for the last exit, as in fairseq's ``ctc``,
        for use in ``best_checkpoint_metric``.
        """
        names = {name for log in logging_outputs for name in log}
        sums = {name: sum(float(log.get(name, 0)) for log in logging_outputs) for name in names}
        sample_size, num_tokens = max(sums.get("sample_size", 0.0), 1.0), max(sums.get("ntokens", 0.0), 1.0)
        metrics.log_scalar("loss", sums.get("loss", 0.0) / sample_size, sample_size, round=4)
        metrics.log_scalar("ntokens", sums.get("ntokens", 0.0))
        metrics.log_scalar("nsentences", sums.get("nsentences", 0.0))
        layers = sorted(int(name.split("_")[1]) for name in names if name.startswith("ctc_"))
        for layer in layers:
            metrics.log_scalar(f"ctc_{layer}", sums[f"ctc_{layer}"] / num_tokens, num_tokens, round=4)
            if f"ce_{layer}" in sums:
                metrics.log_scalar(f"ce_{layer}", sums[f"ce_{layer}"] / num_tokens, num_tokens, round=4)
        for kind, rate in (("c", "uer"), ("w", "wer")):
            if sums.get(f"{kind}_total", 0.0) > 0:
                metrics.log_scalar(f"_{kind}_total", sums[f"{kind}_total"])
                for layer in layers:
                    metrics.log_scalar(f"_{kind}_errors_{layer}", sums[f"{kind}_errors_{layer}"])
                    metrics.log_derived(f"{rate}_{layer}", _make_rate(f"_{kind}_errors_{layer}", f"_{kind}_total"))
                metrics.log_derived(rate, _make_rate(f"_{kind}_errors_{layers[-1]}", f"_{kind}_total"))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def _one_each(values: list[float], layers: list[int], name: str) -> list[float]:
    if len(values) == 1:
        return values * len(layers)
    if len(values) != len(layers):
        raise UsageError(f"{name} must have {len(layers)} values, one for each exit, found {len(values)}")
    return values


def _make_rate(errors: str, total: str) -> Any:
    return lambda meters: round(100.0 * meters[errors].sum / max(meters[total].sum, 1.0), 3)
