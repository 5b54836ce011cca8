"""Exit heads trained in plain PyTorch: what the fairseq plugin does, for Pythons that fairseq does not run on."""

from daisy.training.batches import HeadBatches
from daisy.training.learner import HeadLearner
from daisy.training.settings import HeadTraining
from daisy.training.trainer import TrainingReport, train_heads

__all__ = ["HeadBatches", "HeadLearner", "HeadTraining", "TrainingReport", "train_heads"]
