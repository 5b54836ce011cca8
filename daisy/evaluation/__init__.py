"""Evaluate policies on full runs: tables, figures, the page."""

from daisy.evaluation.comparison import Evaluation, evaluate
from daisy.evaluation.study import Study, compare_policies

__all__ = ["Evaluation", "Study", "compare_policies", "evaluate"]
