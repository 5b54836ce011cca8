"""Every block of README, CONTRIBUTING and docs runs, both commands and Python, in the order of the page."""

import itertools
import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import (
    COMMANDS,
    NOT_RUN,
    PAGES,
    ROOT,
    Block,
    adapt,
    find_blocks,
    find_exception,
    name_packages,
    read_blocks,
    split_commands,
)

BLOCKS = {str(path.relative_to(ROOT)): read_blocks(path) for path in PAGES}
RUN = {page: blocks for page, blocks in BLOCKS.items() if any(b.language in (*COMMANDS, "python") for b in blocks)}


def run_blocks(blocks: list[Block], place: Path, path: str) -> int:
    """Run blocks in a folder; returns how many commands and blocks of Python did."""
    environment = {
        **os.environ, "PATH": f"{path}:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    count, before = 0, []
    for block in blocks:
        if block.file:
            (place / block.file).write_text(block.text)
    shown = [block for block in blocks if block.language in ("python", *COMMANDS)]
    for block, following in itertools.zip_longest(shown, shown[1:]):
        if block.language == "python":
            before.append(block.text)
            count += 1
            if following is None or following.language != "python":  # one process for all that stand together
                code = f"from tests.docs.python_blocks import run; run({before!r}, {block.page!r})"
                code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
                call(block, ["python", "-c", code], place, environment)
        else:
            for command in split_commands(block.text):
                if find_exception(command) is None:
                    call(block, ["bash", "-euo", "pipefail", "-c", adapt(command, place)], place, environment, command)
                    count += 1
    return count


def call(block, arguments, place, environment, command="Python"):
    program = environment["PATH"].split(":")[0] + "/python" if arguments[0] == "python" else arguments[0]
    done = subprocess.run(
        [program, *arguments[1:]], cwd=place, env=environment, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise AssertionError(f"{block}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@pytest.fixture
def path(page, programs, request):
    """Where a page's programs are; s3prl's are only started for pages that have them."""
    packages = name_packages(RUN[page])
    for package in sorted(packages):
        if find_spec(package) is None:  # not imported, which takes seconds
            pytest.skip(f"needs {package}")
    return f"{request.getfixturevalue('s3prl_programs')}:{programs}" if "s3prl" in packages else str(programs)


@pytest.mark.parametrize("page", RUN)
def test_a_page_runs(page, place, path):
    run_blocks(RUN[page], place, path)


def test_exceptions_are_of_commands_that_are_there():
    commands = [
        c for blocks in BLOCKS.values() for b in blocks if b.language in COMMANDS for c in split_commands(b.text)
    ]
    assert len(commands) > 50
    assert {find_exception(command) for command in commands} - {None} == set(NOT_RUN)
    assert sum(find_exception(command) is None for command in commands) > len(commands) / 2


def test_no_block_hides_from_the_test():
    """Indented code is a block too, and nothing would run it."""
    for path in PAGES:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        paragraphs = re.split(r"\n\s*\n", text)
        for before, paragraph in itertools.pairwise(paragraphs):
            in_list = re.match(r"\s*([-*]|\d+\.) ", before) or before.startswith("  ")
            assert in_list or not paragraph.startswith("    "), f"{path}: put ``` around {paragraph.strip()[:60]}"


def test_extras_and_targets_that_pages_name_exist():
    setup, makefile = (ROOT / "setup.py").read_text(), (ROOT / "Makefile").read_text()
    for blocks in BLOCKS.values():
        for command in (c for b in blocks if b.language in COMMANDS for c in split_commands(b.text)):
            for extras in re.findall(r"daisy-speech\[([\w,]+)\]|install .*?\.\[([\w,]+)\]", command):
                for extra in "".join(extras).split(","):
                    assert f'"{extra}": [' in setup, command
            for target in re.findall(r"^make ([\w.-]+)", command, re.M):
                assert re.search(rf"^[^#\n=]*\b{re.escape(target)}\b[^#\n=]*:", makefile, re.M), command


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "```\ndaisy info\ndaisy info --no-such-option\n```\n",
            r"page.md:3: daisy info --no-such-option\n.*No such option",
        ),
        ("```python\nimport daisy\ndaisy.load('no-such-model')\n```\n", r"page.md:3: Python\n.*no-such-model"),
        (
            "```python\nimport torch\ntorch.tensor([1])  # tensor([2])\n```\n",
            r"tensor\(\[1\]\), and not tensor\(\[2\]\)",
        ),
        ("```python\n>>> 1 + 1\n3\n```\n", r"Expected:\n    3\nGot:\n    2"),
    ],
    ids=["command", "Python", "comment", "doctest"],
)
def test_a_broken_block_fails(text, message, tmp_path, programs):
    blocks = find_blocks(f"# A page\n\n{text}", "page.md")
    with pytest.raises(AssertionError) as failure:
        run_blocks(blocks, tmp_path, str(programs))
    assert re.search(message, str(failure.value), re.S)


def test_blocks_are_split_into_commands():
    (block,) = find_blocks(
        "```bash\n# first\na b \\\n    c   # why\n\nfor x in 1 2; do\n  echo $x\ndone\nA=1 d\n```", "page.md"
    )
    assert split_commands(block.text) == ["a b \\\n    c   # why", "for x in 1 2; do\n  echo $x\ndone", "A=1 d"]
    assert adapt("daisy x /data/a --to /abs/b", Path("/p")) == "daisy x /p/data/a --to /p/b"
