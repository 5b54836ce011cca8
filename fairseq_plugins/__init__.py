"""A fairseq user-dir: ``fairseq-train --user-dir $(daisy user-dir) --arch daisy_hubert --criterion daisy_exit_heads``.

Backbone, heads, losses and checkpoint format are daisy's; this package has only what fairseq needs to train them.
"""

from fairseq_plugins import (
    compatibility,
    conformer_model,
    criterion,
    ctc_criterion,
    ctc_model,
    model,
    pretraining_criterion,
    pretraining_model,
    pretraining_task,
)

__all__ = [
    "compatibility",
    "conformer_model",
    "criterion",
    "ctc_criterion",
    "ctc_model",
    "model",
    "pretraining_criterion",
    "pretraining_model",
    "pretraining_task",
]
