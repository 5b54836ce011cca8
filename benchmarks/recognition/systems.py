"""The recognisers that are compared, and the training of each."""

from __future__ import annotations

from dataclasses import dataclass

EXITS = (2, 4, 6, 8, 10, 12)
LONG, SHORT = 1500, 750
"""Updates from scratch; the short runs are Mboshi's and those of the comparison with three seeds."""
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class System:
    """A recogniser: how it differs from its configuration in fairseq_plugins/config."""

    config: str
    updates: int
    overrides: tuple[str, ...] = ()
    start: str = ""
    """A HuBERT with exits to start from: a checkpoint, or the name of another system."""
    corpus: str = "an4"
    needs_gpu: bool = False


def of_depth(layers: int, exits: tuple[int, ...], updates: int = LONG, seed: int = 1) -> System:
    """Make a Conformer with that many layers, trained from scratch."""
    return System(
        "conformer_mini_ctc",
        updates,
        (f"model.encoder_layers={layers}", f"model.exit_layers={list(exits)}".replace(" ", ""), f"common.seed={seed}"),
    )


SYSTEMS = {
    "Conformer, six exits": of_depth(12, EXITS),
    "Conformer, one exit": of_depth(12, (12,)),
    "Conformer of 8 layers, one exit": of_depth(8, (8,)),
    "Conformer of 4 layers, one exit": of_depth(4, (4,)),
    **{f"short, 4 layers, one exit, seed {seed}": of_depth(4, (4,), SHORT, seed) for seed in SEEDS},
    **{f"short, 4 layers, two exits, seed {seed}": of_depth(4, (2, 4), SHORT, seed) for seed in SEEDS},
    "Splitformer, six exits": System("conformer_mini_ctc", LONG, ("model.split_blocks=[1,6]",)),
    "daisy-mini, one exit": System("daisy_mini_ctc", 800, ("model.exit_layers=[12]",), "daisy-mini"),
    "daisy-mini, joint": System("daisy_mini_ctc", 800, (), "daisy-mini"),
    "daisy-mini, two-stage": System(
        "daisy_mini_ctc", 400, ("model.training=branches", "optimization.lr=[0.005]"), "daisy-mini, one exit"
    ),
    "daisy-mini, frozen": System(
        "daisy_mini_ctc", 800, ("model.training=frozen", "optimization.lr=[0.005]"), "daisy-mini"
    ),
    "Mboshi: Conformer, six exits": System("conformer_mini_ctc", SHORT, corpus="mboshi"),
    "Mboshi: daisy-mini, joint": System("daisy_mini_ctc", 500, (), "daisy-mini", "mboshi"),
    "English: daisy-mini, joint": System("daisy_mini_ctc", 2000, (), "daisy-mini", "english"),
    "English: Conformer, six exits": System("conformer_mini_ctc", 20_000, corpus="english", needs_gpu=True),
}
ON_CPUS = [name for name, system in SYSTEMS.items() if not system.needs_gpu]
"""The systems that are trained by default."""


def list_ancestors(name: str) -> list[str]:
    """List the systems that must be trained before this one, and this one, in order."""
    start = SYSTEMS[name].start
    return [*(list_ancestors(start) if start in SYSTEMS else ()), name]
