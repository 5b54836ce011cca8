"""Read and write full runs as a table: every score and loss of every utterance at every layer, of any model.

The file is CSV, one line for each utterance, condition and layer: columns ``utterance`` and ``layer`` (rising whole
numbers, the same for all utterances); optionally ``group`` (speaker or set; the utterance if missing), ``condition``,
``weight``, ``cost`` (of running up to this layer; the mean over utterances counts). All other columns are scores, or
losses if they are named ``loss``, ``errors``, ``word_errors``, ``character_errors``, ``kl_nats`` or end in
``disagreement``. Errors are divided by their reference's length (``words``, or ``characters`` for character errors) if
that is given, and weighted by it: the mean over a set is its errors over its words. An empty reference counts as one
word.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from daisy import _files
from daisy.errors import UsageError

KEYS = ("utterance", "group", "condition", "layer", "weight", "words", "characters", "cost")
COUNTED = {"word_errors": "words", "character_errors": "characters"}
"""Losses that are counts in the table, and the column with the number that they are counted among."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """B full runs of a model with L layers."""

    utterances: tuple[str, ...]
    groups: tuple[str, ...]
    """For each run its speaker, or another group that must not be split."""
    conditions: tuple[str, ...]
    """For each run its condition: "clean", "babble 5 dB" and the like."""
    scores: dict[str, Tensor]
    """(B, L) each: scores that policies read."""
    losses: dict[str, Tensor]
    """(B, L) each: losses from leaving after a layer."""
    weights: Tensor
    """(B,): weight of each run in means of losses."""
    costs: Tensor
    """(L,) rising: cost of running up to each layer; the layers' own numbers if nothing else is known."""
    layers: tuple[int, ...]
    """(L,) numbers of the layers at which utterances may leave."""
    weights_by_loss: dict[str, Tensor] = field(default_factory=dict)
    """(B,) weights of runs in means of losses with other weights, such as the reference's number of words."""

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.costs)

    def weights_of(self, loss: str) -> Tensor:
        """Return the weight of each run in means of a loss, (B,)."""
        return self.weights_by_loss.get(loss, self.weights)

    def select(self, rows: Sequence[int] | Tensor) -> Traces:
        """Return some of the runs."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        chosen = index.tolist()
        return Traces(
            utterances=tuple(self.utterances[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            conditions=tuple(self.conditions[i] for i in chosen),
            scores={name: values[index] for name, values in self.scores.items()},
            losses={name: values[index] for name, values in self.losses.items()},
            weights=self.weights[index],
            costs=self.costs,
            layers=self.layers,
            weights_by_loss={name: values[index] for name, values in self.weights_by_loss.items()},
        )

    def with_costs(self, costs: Tensor) -> Traces:
        """Return the same runs with other costs (L,) of running up to each layer."""
        return dataclasses.replace(self, costs=costs)

    def with_scores(self, scores: dict[str, Tensor]) -> Traces:
        """Return the same runs with other scores, (B, L) each."""
        return dataclasses.replace(self, scores=scores)

    def of_condition(self, condition: str) -> Traces:
        """Return the runs of one condition."""
        return self.select(self.rows_of(condition))

    def rows_of(self, condition: str) -> Tensor:
        """Return the indices of the runs of one condition."""
        return torch.tensor([i for i, name in enumerate(self.conditions) if name == condition])

    def of_groups(self, groups: Iterable[str]) -> Traces:
        """Return the runs of some groups."""
        wanted = set(groups)
        return self.select([i for i, group in enumerate(self.groups) if group in wanted])

    def split(self, share: float, seed: int) -> tuple[Traces, Traces]:
        """Split off a random share of the groups, at least one, from the others."""
        names = sorted(set(self.groups))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        first = [names[i] for i in order[: max(1, round(share * len(names)))]]
        return self.of_groups(first), self.of_groups(set(names) - set(first))

    def halves(self, seed: int) -> tuple[Traces, Traces]:
        """Split the runs into two random halves, no group in both."""
        return self.split(0.5, seed)


def join_traces(parts: Sequence[Traces]) -> Traces:
    """Join several tables with the same scores and losses.

    Args:
        parts: tables of one model; the costs of the first one count.

    Returns:
        All runs of the tables, in order.
    """
    first = parts[0]
    return Traces(
        utterances=sum((part.utterances for part in parts), ()),
        groups=sum((part.groups for part in parts), ()),
        conditions=sum((part.conditions for part in parts), ()),
        scores={name: torch.cat([part.scores[name] for part in parts]) for name in first.scores},
        losses={name: torch.cat([part.losses[name] for part in parts]) for name in first.losses},
        weights=torch.cat([part.weights for part in parts]),
        costs=first.costs,
        layers=first.layers,
        weights_by_loss={
            name: torch.cat([part.weights_by_loss[name] for part in parts]) for name in first.weights_by_loss
        },
    )


def write_traces(traces: Traces, path: Path) -> None:
    """Write traces as CSV, with all digits of single precision.

    Args:
        traces: full runs.
        path: path of the file.

    Raises:
        OutputError: where it cannot be written.
    """
    counted = {name: unit for name, unit in COUNTED.items() if name in traces.weights_by_loss}
    counts = {
        name: (traces.losses[name].double() * traces.weights_by_loss[name].double()[:, None]).round()
        for name in counted
    }
    among = [traces.weights_by_loss[name].tolist() for name in counted]
    columns = {**traces.scores, **traces.losses, **counts}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["utterance", "group", "condition", "layer", "weight", "cost", *counted.values(), *columns])
    values = torch.stack([column.double() for column in columns.values()], dim=2).tolist()  # (B, L, columns)
    costs = [f"{cost:.9g}" for cost in traces.costs.tolist()]
    for row, weight in enumerate(traces.weights.tolist()):
        keys = [traces.utterances[row], traces.groups[row], traces.conditions[row]]
        for place, (layer, cost) in enumerate(zip(traces.layers, costs, strict=True)):
            numbers = [f"{value:.9g}" for value in values[row][place]]
            totals = [f"{total[row]:.9g}" for total in among]
            writer.writerow([*keys, layer, f"{weight:.9g}", cost, *totals, *numbers])
    _files.write(path, text.getvalue().encode(errors="surrogateescape"))


def read_traces(path: Path) -> Traces:
    """Read full runs from CSV, written by `write_traces` or another program.

    Args:
        path: path of a file in the format of this module's docstring.

    Returns:
        The runs.

    Raises:
        UsageError: on a file that is not such a table; names the line or column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            header, lines = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as CSV ({error})") from None
    for needed in ("utterance", "layer"):
        if needed not in header:
            raise UsageError(f"{path}: has no column {needed!r}; it has {', '.join(header) or 'nothing'}")
    if not lines:
        raise UsageError(f"{path}: has no lines below its header")
    runs = _runs(path, lines)
    table = {name: _column(path, name, runs) for name in header if name not in ("utterance", "group", "condition")}
    num_layers = int(table["layer"].shape[1])
    table = {name: values for name, values in table.items() if not values.isnan().all()}
    losses = {name: values for name, values in table.items() if is_loss(name)}
    _check_constant(path, {name: table[name] for name in ("weight", *COUNTED.values()) if name in table})
    weights_by_loss = {name: table[unit][:, 0] for name, unit in COUNTED.items() if name in losses and unit in table}
    names = ("words", "weight") if "errors" in losses else ("weight", "words")
    weights = next((table[name] for name in names if name in table), torch.ones(len(runs), num_layers))[:, 0]
    costs = table["cost"].mean(0) if "cost" in table else table["layer"][0]
    scores = {name: values for name, values in table.items() if name not in KEYS and not is_loss(name)}
    _check(path, scores, losses, costs)
    _check_weights(path, {"words (or weight)": weights, **{COUNTED[name]: w for name, w in weights_by_loss.items()}})
    if "errors" in losses and "words" in table:
        weights = weights.clamp(min=1)
        losses["errors"] = losses["errors"] / weights[:, None]
    for name, among in weights_by_loss.items():
        weights_by_loss[name] = among.clamp(min=1)
        losses[name] = losses[name] / weights_by_loss[name][:, None]
    first = [run[0] for run in runs]
    return Traces(
        utterances=tuple(line["utterance"] for line in first),
        groups=tuple(line.get("group") or line["utterance"] for line in first),
        conditions=tuple(line.get("condition") or "all" for line in first),
        scores=scores,
        losses=losses,
        weights=weights,
        costs=costs,
        layers=tuple(int(layer) for layer in table["layer"][0]),
        weights_by_loss=weights_by_loss,
    )


def is_loss(column: str) -> bool:
    """Tell whether a column is a loss, by its name."""
    return column in ("loss", "errors", "kl_nats", *COUNTED) or column.endswith("disagreement")


def _check(path: Path, scores: dict[str, Tensor], losses: dict[str, Tensor], costs: Tensor) -> None:
    """Refuse values that would make a mean meaningless."""
    for name, values in losses.items():
        if not values.isfinite().all():
            raise UsageError(f"{path}: column {name!r} has empty or infinite cells; a loss needs one for every layer")
    for name, values in scores.items():
        if not values[:, 1:].isfinite().all() or values.isinf().any():  # some scores have none at the first layer
            raise UsageError(f"{path}: column {name!r} has infinite cells, or empty ones after the first layer")
        if len(values[:, 0].isnan().unique()) > 1:  # policies would decide otherwise than when they were calibrated
            raise UsageError(f"{path}: column {name!r} has empty cells at the first layer of some utterances only")
    if not costs.isfinite().all() or costs[0] <= 0 or not (costs[1:] > costs[:-1]).all():
        raise UsageError(f"{path}: cost must be above 0 and rise from layer to layer, found {costs.tolist()}")


def _check_constant(path: Path, table: dict[str, Tensor]) -> None:
    """Refuse columns that have one value per recording if they differ between its layers."""
    for name, values in table.items():
        if not ((values == values[:, :1]) | values.isnan()).all():
            raise UsageError(f"{path}: column {name!r} differs between the layers of a recording")


def _check_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Refuse weights, given by name, that allow no mean."""
    for name, values in weights.items():
        if not values.isfinite().all() or (values < 0).any() or not values.sum() > 0:
            raise UsageError(f"{path}: {name} must be numbers of at least 0, some above")


def _runs(path: Path, lines: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Group the lines of each utterance and condition, ordered by layer."""
    grouped: dict[tuple[str, str], list[dict[str, str]]] = {}
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise UsageError(f"{path}: line {number} has another number of fields than the header")
        grouped.setdefault((line["utterance"], line.get("condition", "")), []).append(line)
    layers = None
    for (utterance, condition), run in grouped.items():
        try:
            run.sort(key=lambda line: int(line["layer"]))
            numbers = [int(line["layer"]) for line in run]
        except ValueError:
            raise UsageError(f"{path}: utterance {utterance!r} has a layer that is no whole number") from None
        layers = layers or numbers
        if numbers != layers or len(set(numbers)) < len(numbers):
            where = f"{utterance!r}" + (f", {condition!r}" if condition else "")
            raise UsageError(f"{path}: utterance {where} has the layers {numbers}, the first one {layers}")
    return list(grouped.values())


def _column(path: Path, name: str, runs: list[list[dict[str, str]]]) -> Tensor:
    try:
        return torch.tensor([[float(line[name]) if line[name] else torch.nan for line in run] for run in runs])
    except ValueError as error:
        raise UsageError(f"{path}: column {name!r} holds what is no number ({error})") from None
