"""Train exit heads in plain PyTorch, as the fairseq plugin does, on Python versions that fairseq does not support."""

from daisy.training.batches import HeadBatches
from daisy.training.learner import HeadLearner
from daisy.training.settings import HeadTraining
from daisy.training.trainer import TrainingReport, train_heads

__all__ = ["HeadBatches", "HeadLearner", "HeadTraining", "TrainingReport", "train_heads"]
