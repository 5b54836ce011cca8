"""One line warns if PyPI's unrelated package with the same import name is also installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import daisy

PACKAGE = Path(daisy.__file__).parent
THEIRS = '"""Blocks and tasks."""\nfrom .client import Client\n'


@pytest.fixture
def site(tmp_path):
    """A folder with a copy of the package, as pip installs it."""
    shutil.copytree(PACKAGE, tmp_path / "daisy", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    return tmp_path


def run(site, code):
    return subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=site, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )


def test_alone_nothing_is_said(site):
    (site / "daisy_speech-1.0.dist-info").mkdir()
    done = run(site, "import daisy; print(daisy.__version__)")
    assert (done.stdout.strip(), done.stderr) == (daisy.__version__, "")


def test_theirs_came_last_and_wrote_over_ours(site):
    (site / "daisy" / "__init__.py").write_text(THEIRS)
    (site / "daisy" / "client.py").write_text("class Client: ...")
    (site / "daisy-2.0.0.dist-info").mkdir()
    done = run(site, "from daisy.errors import DaisyError")
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {site}: the unrelated package 'daisy' is installed")


def test_ours_came_last(site):
    (site / "daisy-2.0.0.dist-info").mkdir()
    done = run(site, "import daisy")
    assert "pip uninstall daisy, then pip install --force-reinstall" in done.stderr.splitlines()[-1]


def test_programs_print_the_line_alone(site):
    (site / "daisy-2.0.0.dist-info").mkdir()
    done = run(site, "import sys; sys.argv = ['/usr/bin/daisy', 'info']; import daisy")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{site}: the unrelated package")
    assert done.stderr.count("\n") == 1
