r"""Corpora of MiniSUPERB's tasks: small ones of the shared recordings, or the published ones from your own folders.

    python -m benchmarks.minisuperb.prepare                                # small; run.py does it by itself
    python -m benchmarks.minisuperb.prepare --published --librispeech DIR --librilight DIR --voxceleb DIR \
        --voicebank DIR --libri2mix DIR

With --published it says what each folder lacks, and draws MiniSUPERB's samples of those that are whole. KS, IC and PR
of SUPERB read their corpora as they are: link those to runs/minisuperb/published/corpora/TASK.
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
    parser.add_argument("--tasks", nargs="+", choices=list(corpora.BUILDERS), help="all but asr_english if not given")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0, help="of pieces, noise excerpts and pairs")
    parser.add_argument("--overwrite", action="store_true", help="build again what other settings built")
    parser.add_argument("--published", action="store_true", help="the published corpora, from these folders:")
    for name, corpus in published.CORPORA.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=corpus.title)
    return parser.parse_args()


def prepare_small(arguments: argparse.Namespace) -> None:
    """Build corpora of the shared recordings."""
    root = arguments.out / "small" / "corpora"
    for task in arguments.tasks or USUAL:
        folder = corpora.build_corpus(task, root, arguments.seed, overwrite=arguments.overwrite)
        print(f"{task}: {folder}, test sets {', '.join(CONDITIONS)}")


def prepare_published(arguments: argparse.Namespace) -> bool:
    """Build the lists of the published corpora, or say what they lack; return whether all are built."""
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
