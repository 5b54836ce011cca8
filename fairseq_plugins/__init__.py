"""A fairseq user-dir: ``fairseq-train --user-dir $(daisy user-dir) --arch daisy_hubert --criterion daisy_exit_heads``.

The backbone, heads, losses and checkpoint format are daisy's; here is only what fairseq needs to train the heads.
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
