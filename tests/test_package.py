"""What the package promises as a whole."""

import ast
import subprocess
import sys
from pathlib import Path

import daisy

ALLOWED = {"torch", "torchaudio", "numpy", "soundfile", "safetensors"}
PACKAGE = Path(daisy.__file__).parent


def test_everything_exported_exists_and_is_sorted():
    assert sorted(daisy.__all__) == daisy.__all__
    assert all(hasattr(daisy, name) for name in daisy.__all__)


def test_import_needs_five_packages_only():
    """No module of the library but the command line names another package outside a function."""
    for path in PACKAGE.rglob("*.py"):
        if "cli" not in path.relative_to(PACKAGE).parts and path.name != "__main__.py":
            named = {name.split(".")[0] for name in imports(path, top_level=True)}
            assert named <= ALLOWED | {"daisy"} | set(sys.stdlib_module_names), path
    blocked = ["fairseq", "s3prl", "transformers", "sklearn", "scipy", "matplotlib", "typer", "rich", "omegaconf"]
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\nimport daisy, daisy.extraction, daisy.labels"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def imports(path, top_level=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way():
    ranks = [
        {"cli", "demonstration"},
        {"extraction", "labels", "study_page"},
        {"report", "noise_curve", "study"},
        {"journal", "policy_file", "windows"},
        {"comparison", "guarantee"},
        {"analysis", "calibration", "augmentation", "masked"},
        {"forecast", "traces", "conditions"},
        {"encoder", "mixing", "converters"},
        {"checkpoint", "audio", "cost"},
        {"graphs"},
        {"steps"},
        {"inference"},
        {"attention", "front_end"},
        {"backbone", "scores", "losses", "files"},
        {"heads"},
        {"policies", "kernels", "layout", "frames", "risk", "intervals", "errors", "version"},
    ]
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert modules - {"__init__", "__main__"} == set().union(*ranks)
    rank = {name: index for index, names in enumerate(ranks) for name in names}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            part = name.split(".")[1] if name.startswith("daisy.") else None
            if own in rank and part in rank and part != own:
                assert rank[own] <= rank[part], f"{path} imports {name}"
            assert not name.startswith(("fairseq_plugins", "s3prl_upstream")), f"{path} imports {name}"


def test_pure_modules_import_nothing_of_ours():
    for path in (
        PACKAGE / "frames.py",
        PACKAGE / "risk.py",
        PACKAGE / "intervals.py",
        *(PACKAGE / "policies").glob("*.py"),
    ):
        ours = {name for name in imports(path) if name.startswith("daisy")}
        assert all(name.startswith(("daisy.errors", "daisy.policies")) for name in ours), path


def test_no_module_has_two_jobs():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long
