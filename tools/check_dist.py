"""Checks the output of `make dist`: no file of the packages is missing, and an installed package works.

python tools/check_dist.py files dist        # in the checkout: every tracked file of the packages is in wheel and sdist
python check_dist.py installed CHECKOUT      # in an environment with the package installed: the usual first steps
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ("daisy", "fairseq_plugins", "s3prl_upstream")
BESIDE = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "setup.py")
"""Further files in the sdist."""


def check_files(dist: Path) -> None:
    """Check that wheel and sdist hold all tracked files of the packages: code, weights, templates, configurations."""
    listed = subprocess.run(["git", "ls-files", *PACKAGES], check=True, capture_output=True, text=True)
    wanted = set(listed.stdout.splitlines())
    (wheel,), (sdist,) = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        refuse_missing(wheel, wanted - set(archive.namelist()))
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    refuse_missing(sdist, {*wanted, *BESIDE} - names)
    print(f"{wheel.name} and {sdist.name} hold {len(wanted)} files of the packages")


def refuse_missing(path: Path, missing: set[str]) -> None:
    """Exit with status 1 if files are missing."""
    if missing:
        sys.exit(f"{path}: without {', '.join(sorted(missing)[:10])}{' and others' if len(missing) > 10 else ''}")


def check_installed(checkout: Path) -> None:
    """Check the version, the bundled model, its features and the plugin's configurations, away from the checkout."""
    program = Path(sys.executable).parent / "daisy"
    with tempfile.TemporaryDirectory() as folder:

        def run(*arguments: str | Path) -> str:
            return subprocess.run(
                [program, *map(str, arguments)], check=True, capture_output=True, text=True, cwd=folder
            ).stdout

        where = run_python("import daisy; print(daisy.__file__)", folder)
        if not Path(where.strip()).is_relative_to(sys.prefix):
            sys.exit(f"{where.strip()} is imported, which is not of this environment, {sys.prefix}: unset PYTHONPATH")
        print(run("--version").strip(), "at", where.strip())
        run("info")
        print(run("extract", checkout / "daisy" / "assets" / "demo", "--out", "features").splitlines()[-1])
        run("export", "hf", "daisy-mini", "for-transformers")
        user_dir = Path(run("user-dir").strip())
        if not (user_dir / "config" / "daisy_base.yaml").is_file() or not (user_dir / "pretrain.sh").is_file():
            sys.exit(f"{user_dir}: without its configurations or pretrain.sh")


def run_python(code: str, folder: str) -> str:
    """Run Python code in a folder, and return its output."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout


if __name__ == "__main__":
    what, path = sys.argv[1:]
    {"files": check_files, "installed": check_installed}[what](Path(path).resolve())
