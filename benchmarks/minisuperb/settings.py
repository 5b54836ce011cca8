"""What decides a run, as run.json has it, and digests of it that rows of results have: without seed and folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.minisuperb.corpora import RECIPE
from benchmarks.minisuperb.tasks import TASKS, read_configuration

UNSAID_RECIPE = 2
"""Of the corpora of runs that do not say which it was: the only one while runs did not."""
CORPUS = Path("/corpus")
"""Stands for where a corpus lies, in what is digested."""
OF_POLICY = ("name", "layer", "target", "data", "score_stride")
"""What a policy's file says it was asked for; what was learnt for it differs a little from machine to machine."""


def read_spec(path: Path) -> dict[str, Any]:
    """Read run.json."""
    return add_recipe(json.loads(path.read_text(encoding="utf-8")))


def add_recipe(spec: dict[str, Any]) -> dict[str, Any]:
    """Add the recipe of the corpus where a run does not say it; published corpora have none."""
    return {"recipe": None if spec.get("data") == "published" else UNSAID_RECIPE, **spec}


def digest_task(config: dict[str, Any], corpus: Path, recipe: int | None) -> str:
    """Digest a task's configuration and its corpus's recipe, wherever the corpus lies: 12 hexadecimal digits."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=False).replace(str(corpus), str(CORPUS))
    return _digest([recipe, text])


def digest_today(task: str, published: bool) -> str:
    """Digest a task's configuration and recipe of today."""
    config = yaml.safe_load(read_configuration(TASKS[task], CORPUS, published))
    return digest_task(config, CORPUS, None if published else RECIPE)


def digest_upstream(spec: dict[str, Any]) -> str:
    """Digest what an upstream was asked for, in training and test: 12 hexadecimal digits."""
    files = [spec.get(name) or {} for name in ("policy_file", "training_policy_file")]
    asked = [{key: file[key] for key in OF_POLICY if key in file} for file in files]
    return _digest([asked, spec["policy"], spec["target_depth"], spec.get("options"), spec.get("scored")])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
