"""The benchmarks as a package: modules, scripts, the commands named in texts, and the format of the results."""

import importlib
import json
import pkgutil
import re
import sys

import pytest

import benchmarks
from benchmarks.shared.results import RESULTS
from benchmarks.shared.script import ROOT, parse_pairs, script_command
from daisy.errors import UsageError

MODULES = [
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if not module.ispkg and "downstream" not in module.name  # s3prl's, which their tests import
]
SCRIPTS = [
    name for name in MODULES if '__name__ == "__main__"' in (ROOT / f"{name.replace('.', '/')}.py").read_text("utf-8")
]
HOSTS = ("fairseq", "s3prl", "transformers", "torchaudio", "omegaconf", "sklearn", "pandas", "matplotlib")
FIELDS = {
    "parity": "model layer max_abs_diff_over_std",
    "parity_backbones": "network size source layer max_abs_diff_over_std",
    "heads": "set condition layer loss_nats accuracy regressor_correlation",
    "probes": "task features layer accuracy",
    "noise_curve": "policy noise snr_db mean_exit_layer low high unit_agreement kl_nats",
    "policies": "policy target_depth depth unit_agreement low high",
    "guarantee": "method risk_name risk delta splits violations depth uncertified_depth",
    "minisuperb": "task upstream policy depth condition metric value seed",
    "latency": "size precision batch lengths threads device system seconds ratio ratio_low ratio_high",
}
"""What others read from the results."""


def load(name):
    """A module, where what it is about is installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in HOSTS:
            raise
        pytest.skip(f"needs {error.name}")


@pytest.mark.filterwarnings("ignore")  # s3prl's and fairseq's own
@pytest.mark.parametrize("name", MODULES)
def test_importing_a_module_runs_nothing(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--no-such-option"])  # whoever reads options ends here
    module = load(name)
    assert capsys.readouterr().out == ""
    assert module.__doc__
    assert (name in SCRIPTS) == callable(getattr(module, "main", None))
    if name in SCRIPTS:
        assert f"python -m {name}" in module.__doc__


def test_every_command_that_is_named_is_there():
    texts = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "fairseq_plugins/pretrain.sh")]
    texts += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
    named = {name for path in texts for name in re.findall(r"-m (benchmarks[\w.]*\w)", path.read_text("utf-8"))}
    script = (ROOT / "benchmarks" / "real_run.sh").read_text("utf-8")
    named |= {f"benchmarks.{name}" for name in re.findall(r"\bmeasure ([a-z]\w*(?:\.\w+)*)", script)}
    assert "benchmarks.speed.latency" in named
    assert named - {"benchmarks.PACKAGE.SCRIPT"} <= {*SCRIPTS}


def test_a_script_says_how_it_is_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "speed" / "latency.py"), "--quick"])
    assert script_command() == ["python", "-m", "benchmarks.speed.latency"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert script_command() == ["pytest"]


def test_names_are_given_to_checkpoints():
    assert parse_pairs(["a=b.pt", "c=d=e"]) == [("a", "b.pt"), ("c", "d=e")]
    for text in ("a", "=b", "a="):
        with pytest.raises(UsageError, match=f"'{text}': must be NAME=VALUE"):
            parse_pairs([text])


@pytest.mark.parametrize("name", FIELDS)
def test_results_have_the_fields_that_others_read(name):
    result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    assert {"name", "command", "date", "machine", "versions"} <= set(result)
    assert result["rows"]
    for row in result["rows"]:
        assert set(FIELDS[name].split()) <= set(row)
