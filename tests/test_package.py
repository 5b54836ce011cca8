"""Guarantees of the package as a whole."""

import ast
import subprocess
import sys
from pathlib import Path

import daisy

ALLOWED = {"torch", "numpy", "soundfile", "soxr", "safetensors"}
ABSENT = [
    *("torchaudio", "fairseq", "s3prl", "transformers", "sklearn", "scipy", "matplotlib", "omegaconf"),
    *("kaldi_native_fbank", "pyroomacoustics", "jinja2", "av", "jiwer", "sentencepiece", "flashlight"),
    *("ray", "pyarrow", "fsspec", "s3fs", "joblib", "simpy", "yaml", "lhotse", "mteb"),
]
OF_ONE_LIBRARY = {"integrations/lhotse/": "lhotse", "integrations/mteb.py": "mteb"}
"""What extends another library's classes, and is imported by whoever has that library."""
PACKAGE = Path(daisy.__file__).parent
MODULES = [path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts]
"""Of the library; assets are what it writes for others."""


def test_everything_exported_exists_and_is_sorted():
    assert sorted(daisy.__all__) == daisy.__all__
    assert all(hasattr(daisy, name) for name in daisy.__all__)


def test_import_needs_five_packages_only():
    """No module of the library but the command line names another package outside a function."""
    for path in MODULES:
        if "cli" not in path.relative_to(PACKAGE).parts and path.name != "__main__.py":
            named = {name.split(".")[0] for name in imports(path, top_level=True)}
            assert named <= ALLOWED | {"daisy", find_library(path)} | set(sys.stdlib_module_names), path
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in MODULES if not find_library(path)]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]
    library = [name for name in names if ".cli" not in name]
    code = f"""
import importlib, sys
for name in {[*ABSENT, "typer", "rich"]}: sys.modules[name] = None
for name in {library}: importlib.import_module(name)
del sys.modules["typer"], sys.modules["rich"]
for name in {sorted(set(names) - set(library))}: importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def find_library(path):
    name = path.relative_to(PACKAGE).as_posix()
    return next((library for start, library in OF_ONE_LIBRARY.items() if name.startswith(start)), None)


def imports(path, top_level=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


RANKS = [
    {"_origin"},
    {"errors", "version"},
    {"_files"},
    {"_locks"},
    {"models"},
    {"audio", "policies"},
    {"runtime"},
    {"encoder"},
    {"checkpoints"},
    {"calibration", "extraction"},
    {"evaluation"},
    {"recognition", "training", "units"},
    {"distributed", "integrations"},
    {"cli"},
]
"""Packages; each imports only what stands before it."""


def package_graph():
    """Each package and module at the top, and those that it imports, anywhere in its files."""
    arrows = {}
    for path in MODULES:
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        named = {name.split(".")[1] for name in imports(path) if name.startswith("daisy.")}
        arrows.setdefault(package, set()).update(named - {package})
    return arrows


def test_packages_import_what_stands_before_them(capsys):
    graph = package_graph()
    lazy = set(daisy.__all__)  # attributes of the package itself
    rank = {name: index for index, names in enumerate(RANKS) for name in names}
    assert set(graph) - {"__init__", "__main__"} == set(rank)
    arrows = {package: sorted(named & set(rank)) for package, named in graph.items() if package in rank}
    with capsys.disabled():
        print(f"\n{len(rank)} packages, {len(RANKS)} levels, {sum(map(len, arrows.values()))} arrows")
        for package in sorted(rank, key=rank.get):
            print(f"  {rank[package]} {package}: {', '.join(arrows[package]) or '-'}")
    for package, named in arrows.items():
        assert all(rank[name] < rank[package] for name in named), f"{package} imports {named}"
    unknown = set().union(*graph.values()) - set(rank) - lazy
    assert not unknown, unknown


def test_the_library_never_imports_its_front_doors():
    for path in MODULES:
        assert not any(name.startswith(("fairseq_plugins", "s3prl_upstream")) for name in imports(path)), path


def test_pure_modules_need_no_model():
    pure = [
        PACKAGE / "models" / "lengths.py",
        *(PACKAGE / "calibration" / name for name in ("risk.py", "intervals.py")),
    ]
    rules = [path for path in (PACKAGE / "policies").glob("*.py") if path.name not in ("scores.py", "__init__.py")]
    for path in (*pure, *rules):
        ours = {name for name in imports(path) if name.startswith("daisy")}
        allowed = ("daisy.errors", "daisy.policies", "daisy.version", "daisy._files", "daisy.calibration._types")
        assert all(f"{name}.".startswith(tuple(f"{a}." for a in allowed)) or name == "daisy" for name in ours), path
