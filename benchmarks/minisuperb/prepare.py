r"""Corpora of MiniSUPERB's tasks: small ones of the shared recordings, or the published ones from your own folders.

    python benchmarks/minisuperb/prepare.py                                # small; run.py does it by itself
    python benchmarks/minisuperb/prepare.py --published --librispeech DIR --librilight DIR --voxceleb DIR \
        --voicebank DIR --libri2mix DIR

With --published it says what each folder lacks, and draws MiniSUPERB's samples of those that are whole. KS, IC and PR
of SUPERB read their corpora as they are: link those to runs/minisuperb/published/corpora/TASK.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import corpora
import published
from sources import CONDITIONS
from tasks import AT_HAND, HERE

sys.path.append(str(HERE.parent))

from common import guarded

OUT = HERE.parents[1] / "runs" / "minisuperb"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(corpora.BUILDERS), help="all but asr_english if not given")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0, help="of pieces, noise excerpts and pairs")
    parser.add_argument("--overwrite", action="store_true", help="build again what other settings built")
    parser.add_argument("--published", action="store_true", help="the published corpora, from these folders:")
    for name, corpus in published.CORPORA.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=corpus.title)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if not arguments.published:
        for task in arguments.tasks or AT_HAND:
            folder = corpora.build(
                task, arguments.out / "small" / "corpora", arguments.seed, overwrite=arguments.overwrite
            )
            print(f"{task}: {folder}, test sets {', '.join(CONDITIONS)}")
        return
    folders = {name: getattr(arguments, name) for name in published.CORPORA}
    lacking = {name: published.missing(name, folder) for name, folder in folders.items()}
    incomplete = False
    for task in arguments.tasks or published.BUILDERS:
        needed = [name for name, corpus in published.CORPORA.items() if corpus.task == task]
        lines = [line for name in needed for line in lacking[name]]
        if not needed:
            lines = [f"link your corpus to {arguments.out / 'published' / 'corpora' / task}, as s3prl's task reads it"]
        if lines:
            incomplete = True
            print(f"{task}: not prepared", *lines, sep="\n  ")
        else:
            folder = published.build(task, arguments.out / "published" / "corpora", folders)
            print(f"{task}: {folder}")
    if incomplete:
        sys.exit(1)


if __name__ == "__main__":
    guarded(main)
