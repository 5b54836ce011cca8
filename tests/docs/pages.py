"""Code in README and docs, as commands and Python that a test runs.

Every fenced block counts. Blocks without a language, or of ``bash``, are commands; ``python`` blocks are Python; any
other block is a file's content, which is written to a file if the line before is ``<!-- file NAME -->``.
``<!-- before: COMMAND -->`` runs a command that is hidden from readers, to make files that they would have.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = ("", "bash", "sh")
NOT_RUN = {
    r"^pip install ": "installs; that its extras exist is tested",
    r"^make ": "sets up an environment; that its targets exist is tested",
    r"\.venv/bin/activate\b": "is of that environment",
    r"^ray start ": "begins a cluster on other machines",
    r"--address auto": "needs such a cluster",
    r"^python -m benchmarks\.": "measures for minutes to hours; that the scripts exist is tested",
    r"pretrain\.sh\W": "trains for hours; tests/fairseq_plugins/test_recipe.py runs it",
    r"--config-name hubert_small_exits": "is for GPUs; tests/fairseq_plugins trains a smaller one",
    r"^python -m fairseq_plugins\.export /abs/run": "is of that training",
    r"^daisy convert /abs/run/checkpoints/checkpoint_last\.pt exits\.safetensors": "likewise",
    r"--checkpoint out/exits\.safetensors": "is of pretrain.sh",
    r"^daisy convert (hubert_large|WavLM-L|wav2vec_s|whisper-b)": "published; tests/checkpoints makes like ones",
}
"""Commands that no test runs, with the reasons."""
STANDS_FOR = {"/abs/": "{place}/", "/data": "{place}/data"}
"""Folders on a reader's machine, and their replacements in a test."""
ALSO = {
    r"^fairseq-hydra-train ": (
        *("common.cpu=true", "optimization.max_update=2", "dataset.num_workers=0", "dataset.max_tokens=40000"),
        *("dataset.validate_interval_updates=2", "checkpoint.save_interval_updates=2"),
    ),
    r"--config-name daisy_mini_ctc ": ("model.mask_channel_length=2",),
    r"^fairseq-train ": (
        *("--cpu", "--max-update", "2", "--num-workers", "0", "--max-tokens", "40000"),
        *("--validate-interval-updates", "2", "--save-interval-updates", "2"),
    ),
    r"^daisy train-heads ": ("--updates", "2", "--warmup", "1"),
    r"^daisy labels ": ("--clusters", "20"),
    r"^daisy calibrate .* --snr clean,20": ("--snr", "clean,0"),
    r"^daisy noise-curve ": ("--policies", "forecast,fixed", "--depths", "0.6", "--snr", "clean,0"),
    r"^daisy replay ": ("--depths", "0.6"),
}
"""Options that make programs stop after two updates, run on a CPU, compare two policies, or use little noise."""
NEEDS = {
    r"^fairseq-": "fairseq",
    r"-m fairseq_plugins": "fairseq",
    r"^daisy-s3prl |import s3prl": "s3prl",
    r"^daisy transcribe ": "jiwer",
    r" --beam ": "flashlight",
    r"^daisy mdi ": "simpy",
    r"--kmeans ": "sklearn",
    r"^daisy labels ": "sklearn",
    r"--report ": "matplotlib",
    r"parquet": "pyarrow",
    r"lhotse import": "lhotse",
    r"sentencepiece": "sentencepiece",
    r"import webdataset": "webdataset",
}
"""Packages that a page needs besides daisy; if one is not installed, the page is not run."""


@dataclass(frozen=True)
class Block:
    """A fenced block or hidden command, with its position."""

    page: str
    line: int
    language: str
    text: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


FENCE = re.compile(
    r"^(?:<!-- file (?P<file>\S+) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```[ ]*$"
    r"|^<!-- before: (?P<before>.*?) -->$",
    re.M | re.S,
)


def find_blocks(text: str, page: str) -> list[Block]:
    """Find the blocks of a page, in order."""
    blocks = []
    for match in FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 1
        if match["before"]:
            blocks.append(Block(page, line, "", match["before"]))
        else:
            blocks.append(Block(page, line, match["language"], match["text"], match["file"] or ""))
    return blocks


def read_blocks(path: Path) -> list[Block]:
    """Read the blocks of a page in the checkout."""
    return find_blocks(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


def split_commands(text: str) -> list[str]:
    """Split a block into its commands, of one or more lines each; comments and empty lines are left out."""
    commands, lines = [], []
    for line in text.splitlines():
        lines.append(line)
        command = "\n".join(lines)
        if line.endswith("\\") or subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode:
            continue
        lines = []
        if re.sub(r"^\s*#.*", "", command, flags=re.M).strip():
            commands.append(command)
    return [*commands, *(["\n".join(lines)] if lines else [])]


def find_exception(command: str) -> str | None:
    """Find the pattern in `NOT_RUN` that matches a command; None if it is to be run."""
    return next((pattern for pattern in NOT_RUN if re.search(pattern, command.strip(), re.M)), None)


def name_packages(blocks: list[Block]) -> set[str]:
    """Return the packages that a page's commands and Python need, and that an environment may lack."""
    commands = [command for block in blocks if block.language in COMMANDS for command in split_commands(block.text)]
    text = "\n".join(command for command in commands if find_exception(command) is None)
    text += "\n".join(block.text for block in blocks if block.language == "python")
    return {package for pattern, package in NEEDS.items() if re.search(pattern, text, re.M)}


def adapt(command: str, place: Path) -> str:
    """Adapt a command to the folder of a test."""
    for name, path in STANDS_FOR.items():
        command = re.sub(rf"(?<![\w.}}]){re.escape(name)}(?=\W|(?<=/)\w)", path.format(place=place), command)
    for pattern, options in ALSO.items():
        if re.search(pattern, command):
            command = " ".join([re.sub(r"\s#\s.*$", "", command.rstrip()), *map(shlex.quote, options)])
    return command
