"""fairseq's prediction head: one or more label sets with a softmax each; a model keeps one of them.

Source: fairseq 0.12.2, fairseq/models/hubert/hubert.py: ``label_embs_concat`` has the sets' embeddings one after the
other, ``num_classes`` their sizes; ``final_proj`` serves all of them, or with ``untie_final_proj`` each has its share
of the rows; ``target_glu`` gates the embeddings of all sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from daisy.checkpoints.converters.mapping import Config
from daisy.errors import CheckpointError

PROJECTION, EMBEDDINGS, GATE = "final_head.projection.", "final_head.embeddings", "target_glu."


@dataclass(frozen=True)
class LabelSets:
    """What a source says about the label sets that its head predicts.

    Args:
        names: names of the sets (``task.labels``), where known.
        sizes: number of units of each set, special symbols included (its dictionary), where known.
        chosen: the set to keep, counted from 1; None: the only one, or none if there are several.
    """

    names: Sequence[str] = ()
    sizes: Sequence[int] = ()
    chosen: int | None = None

    @property
    def count(self) -> int:
        """Number of sets; sources without dictionaries at least name them."""
        return len(self.sizes) or max(len(self.names), 1)

    def describe(self) -> str:
        """List the sets: "1: km of 24 units, 2: phn of 16 units"."""
        names = self.names if len(self.names) == self.count else [""] * self.count
        sizes = [f" of {size} units" for size in self.sizes] or [""] * self.count
        return ", ".join(
            f"{index}: {name or 'unnamed'}{size}"
            for index, (name, size) in enumerate(zip(names, sizes, strict=True), 1)
        )

    def check_choice(self) -> None:
        """Check that the chosen set exists.

        Raises:
            CheckpointError: naming the sets that exist.
        """
        if self.chosen is not None and not 1 <= self.chosen <= self.count:
            raise CheckpointError(f"has no label set {self.chosen}: there is {self.describe()}")


def read_label_sets(task_cfg: Config, dictionaries: Any, chosen: int | None) -> LabelSets:
    """Read what is known about a source's label sets.

    Args:
        task_cfg: fairseq's configuration of the task.
        dictionaries: fairseq's dictionaries as plain values, or their symbols (s3prl's form); None where not known.
        chosen: see `LabelSets`.
    """
    labels = task_cfg.get("labels")
    names = [labels] if isinstance(labels, str) else [str(name) for name in labels or ()]
    sizes = []
    for dictionary in dictionaries if isinstance(dictionaries, list) else ():
        symbols = dictionary.get("symbols") if isinstance(dictionary, dict) else dictionary
        if not isinstance(symbols, list):  # an instance of an unknown class
            return LabelSets(names=names, chosen=chosen)
        sizes.append(len(symbols))
    return LabelSets(names=names, sizes=sizes, chosen=chosen)


def take_final_head(temperature: float, sets: LabelSets, tensors: dict[str, Tensor]) -> tuple[Config | None, str]:
    """Configure the head of one label set, and convert its tensors to our form, in place.

    Args:
        temperature: fairseq's ``logit_temp``.
        sets: label sets that the head predicts, with the chosen one.
        tensors: tensors by our names; the head's are replaced, or removed where none is kept.

    Returns:
        The configuration of `FinalHead`, or None; and a text that says which parts of the head were left out.

    Raises:
        CheckpointError: where the chosen set does not exist, or its rows are not known.
    """
    sets.check_choice()
    head = {key: tensors.pop(key) for key in list(tensors) if key.startswith(("final_head.", GATE))}
    projection, embeddings = head.get(PROJECTION + "weight"), head.get(EMBEDDINGS)
    if projection is None or embeddings is None:
        if sets.chosen is not None:
            raise CheckpointError("has no prediction head of its own: it was fine-tuned, or its head was taken off")
        return None, "what is left of the prediction head" if head else ""
    num_sets = max(sets.count, projection.shape[0] // embeddings.shape[1])
    if sets.chosen is None and num_sets > 1:
        return None, f"the heads of {num_sets} label sets ({sets.describe()}), none of which was chosen"
    if sets.chosen is None and sets.sizes and sum(sets.sizes) != len(embeddings):
        return None, f"a prediction head for {len(embeddings)} units, of which the dictionary has {sum(sets.sizes)}"
    rows, units = _find_places(sets, num_sets, projection, embeddings)
    if GATE + "weight" in head:
        embeddings = F.glu(F.linear(embeddings, head[GATE + "weight"], head[GATE + "bias"]))
    tensors[PROJECTION + "weight"] = projection[rows].clone()
    tensors[PROJECTION + "bias"] = head[PROJECTION + "bias"][rows].clone()
    kept = tensors[EMBEDDINGS] = embeddings[units].clone()
    others = f"the heads of the other {num_sets - 1} of {num_sets} label sets" if num_sets > 1 else ""
    return {"final_dim": kept.shape[1], "num_units": kept.shape[0], "temperature": float(temperature)}, others


def _find_places(sets: LabelSets, num_sets: int, projection: Tensor, embeddings: Tensor) -> tuple[slice, slice]:
    """Find the rows of the projection and of the embeddings that belong to the chosen set."""
    index, final_dim = (sets.chosen or 1) - 1, embeddings.shape[1]
    if projection.shape[0] not in (final_dim, num_sets * final_dim):
        raise CheckpointError(f"a projection to {projection.shape[0]} for {num_sets} label sets of {final_dim}")
    shared = projection.shape[0] == final_dim
    rows = slice(None) if shared else slice(index * final_dim, (index + 1) * final_dim)
    if num_sets == 1 and not sets.sizes:
        return rows, slice(None)
    if len(sets.sizes) != num_sets or sum(sets.sizes) != embeddings.shape[0]:
        raise CheckpointError(
            f"does not tell which of {len(embeddings)} units are of which label set: its dictionaries are missing or "
            "do not fit; without the choice of a set it is converted without a prediction head"
        )
    start = sum(sets.sizes[:index])
    return rows, slice(start, start + sets.sizes[index])
