r"""Corpora of MiniSUPERB's tasks: small ones from the shared recordings, or the published ones from your own folders.

    python -m benchmarks.minisuperb.prepare                                # small; run.py does this by itself
    python -m benchmarks.minisuperb.prepare --published --librispeech DIR --librilight DIR --voxceleb DIR \
        --voicebank DIR --libri2mix DIR

With --published it lists what each folder lacks, and draws MiniSUPERB's samples from those that are complete. SUPERB's
KS, IC and PR use their corpora unchanged: link those to runs/minisuperb/published/corpora/TASK.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.minisuperb import corpora, published
from benchmarks.minisuperb.sources import CONDITIONS
from benchmarks.minisuperb.tasks import USUAL
from benchmarks.shared.script import RUNS, make_parser, run_script

OUT = RUNS / "minisuperb"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(corpora.BUILDERS), help="default: all but asr_english")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0, help="seed of pieces, noise excerpts and pairs")
    parser.add_argument("--overwrite", action="store_true", help="replace corpora built with other settings")
    parser.add_argument("--published", action="store_true", help="the published corpora, from these folders:")
    for name, corpus in published.CORPORA.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=corpus.title)
    return parser.parse_args()


def prepare_small(arguments: argparse.Namespace) -> None:
    """Build corpora from the shared recordings."""
    root = arguments.out / "small" / "corpora"
    for task in arguments.tasks or USUAL:
        folder = corpora.build_corpus(task, root, arguments.seed, overwrite=arguments.overwrite)
        print(f"{task}: {folder}, test sets {', '.join(CONDITIONS)}")


def prepare_published(arguments: argparse.Namespace) -> bool:
    """Build the lists of the published corpora, or print what they lack; return whether all are built."""
    folders = {name: getattr(arguments, name) for name in published.CORPORA}
    missing = {name: published.find_missing(name, folder) for name, folder in folders.items()}
    root = arguments.out / "published" / "corpora"
    whole = True
    for task in arguments.tasks or published.BUILDERS:
        needed = [name for name, corpus in published.CORPORA.items() if corpus.task == task]
        lines = [line for name in needed for line in missing[name]]
        if not needed:
            lines = [f"link your corpus to {root / task}, as s3prl's task reads it"]
        if lines:
            whole = False
            print(f"{task}: not prepared", *lines, sep="\n  ")
        else:
            print(f"{task}: {published.build_corpus(task, root, folders)}")
    return whole


def main() -> None:
    arguments = parse_arguments()
    if not arguments.published:
        prepare_small(arguments)
    elif not prepare_published(arguments):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
