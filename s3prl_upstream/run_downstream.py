"""daisy-s3prl: s3prl's run_downstream with daisy's upstreams, and with options of both.

daisy-s3prl -m train -u daisy_local -k CKPT -g POLICY.json -d TASK -c CFG -p EXP --featurizer dynamic --cache DIR
"""

from __future__ import annotations

import builtins
import importlib.util
import pickle
import re
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile
import torch

from daisy.cli.console import explain
from daisy.errors import AudioError, DaisyError, UsageError
from s3prl_upstream import command_line
from s3prl_upstream.command_line import Arguments
from s3prl_upstream.options import Options, parse, parser
from s3prl_upstream.register import register

if TYPE_CHECKING:
    from s3prl_upstream.reading import Reading

PROGRAM = "daisy-s3prl"
GOES_ON = "-e EXP or -a goes on from the last checkpoint, where there is one"
S3PRLS_OWN = ("torchaudio._backend.set_audio_backend", "`torch.cuda.amp.autocast", "You are using `torch.load` with")
"""Beginnings of warnings that appear at every start and that users cannot avoid."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run s3prl; an error of daisy gives one line on stderr and exit status 2.

    Args:
        arguments: arguments of the command line; None: those of the process.
    """
    try:
        with warnings.catch_warnings():
            for message in S3PRLS_OWN:
                warnings.filterwarnings("ignore", message=message)
            run(sys.argv[1:] if arguments is None else arguments)
    except DaisyError as error:
        print(f"{PROGRAM}: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; {GOES_ON}", file=sys.stderr)
        sys.exit(130)


def run(arguments: Sequence[str]) -> None:
    """Run s3prl's ``run_downstream.main`` with our entries, runner and options.

    Raises:
        DaisyError: on all errors of daisy.
    """
    options, rest = parse(arguments)
    if {"-h", "--help"} & set(rest):
        print(parser().format_help())
    register()
    from s3prl import run_downstream
    from s3prl.upstream.interfaces import SAMPLE_RATE

    from s3prl_upstream import sox
    from s3prl_upstream.reading import Reading
    from s3prl_upstream.runner import ExitRunner

    argv, stock = sys.argv, (run_downstream.get_downstream_args, run_downstream.Runner)
    plain_isinstance = builtins.isinstance  # s3prl wraps it, and the wrapper calls the original twice
    sys.argv = [PROGRAM, *rest]
    audio_reading = Reading(SAMPLE_RATE)
    run_downstream.get_downstream_args = partial(_read_arguments, stock[0], options, audio_reading)
    run_downstream.Runner = partial(ExitRunner, options=options)
    try:
        with sox.stand_in(), audio_reading:
            run_downstream.main()
    except AudioError as error:
        raise AudioError(f"{_describe(error)}; {GOES_ON}") from None
    except (OSError, soundfile.LibsndfileError) as error:
        raise DaisyError(f"{_describe(error)}; {GOES_ON}") from None
    except LookupError as error:
        if not (reason := _find_failed_lookup(error)):
            raise
        raise DaisyError(f"the task's data does not fit its checkpoint or configuration: {reason}") from None
    finally:
        sys.argv = argv
        builtins.isinstance = plain_isinstance
        run_downstream.get_downstream_args, run_downstream.Runner = stock


def _describe(error: Exception) -> str:
    """Return one line for an error in a task's data loader; a worker process passes on its whole traceback."""
    handed_on = getattr(error, "code", None)  # soundfile cannot print its error as passed on by a worker
    message = handed_on if isinstance(handed_on, str) else str(error)
    line = (message.strip().splitlines() or [type(error).__name__])[-1]
    return (line.partition("Error: ")[2] if message.startswith("Caught ") else line).rstrip(".")


def _find_failed_lookup(error: Exception) -> str:
    """Describe a failed lookup in a task's dataset, here or in a worker process, with its place; empty if none."""
    handed_on = re.findall(r'File "(.*/downstream/.*/dataset\.py)", line (\d+)', str(error))
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places = handed_on or [place for place in frames if re.search(r"/downstream/.*/dataset\.py$", place[0])]
    if not places:
        return ""
    path, line = places[-1]
    kind = f"{type(error).__name__} " if not handed_on else ""
    return f"{kind}{_describe(error)} ({path}:{line})"


def _read_arguments(stock: Callable[[], Arguments], options: Options, audio_reading: Reading, /) -> Arguments:
    """Read s3prl's arguments and configuration, check them, and add our options that belong to an experiment.

    Raises:
        UsageError: where s3prl would end with a traceback.
    """
    args, config, backup_files = command_line.read(stock)
    saved = _read_saved_options(args)
    if saved and options.featurizer not in (None, saved["featurizer"]):
        raise UsageError(f"--featurizer {options.featurizer}: the checkpoint was trained with {saved['featurizer']}")
    args.daisy = saved or {"featurizer": options.featurizer or "stock"}
    _check_arguments(args)
    audio_reading.begin(args.downstream)
    return args, config, backup_files


def _read_saved_options(args: Namespace) -> dict:
    """Read our options of an experiment that is resumed (-e, -a), or whose weights are used (-i); else none.

    Raises:
        UsageError: where ``-i`` cannot be read.
    """
    if args.past_exp:
        return getattr(args, "daisy", None) or {"featurizer": "stock"}
    if not args.init_ckpt:
        return {}
    try:
        begun = torch.load(args.init_ckpt, map_location="cpu", weights_only=False)["Args"]
    except OSError as error:
        raise UsageError(f"-i {args.init_ckpt}: {error.strerror or error}") from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, AttributeError, ValueError):
        raise UsageError(f"-i {args.init_ckpt}: no checkpoint of s3prl's runner") from None
    return {"featurizer": getattr(begun, "daisy", {}).get("featurizer", "stock")}


def _check_arguments(args: Namespace) -> None:
    """Refuse options that s3prl does not support, and use the CPU if there is no CUDA device.

    Raises:
        UsageError: naming the option.
    """
    import s3prl.hub

    if args.hub == "torch" and not hasattr(s3prl.hub, args.upstream):
        raise UsageError(f"-u {args.upstream}: s3prl has no such upstream; daisy's: daisy_local, daisy_url, daisy_mini")
    if not _has_module(f"s3prl.downstream.{args.downstream}.expert"):
        raise UsageError(f"-d {args.downstream}: s3prl has no such task")
    if args.mode == "inference" and not Path(args.evaluate_split).is_file():
        raise UsageError(f"-t {args.evaluate_split}: -m inference takes a recording, and there is no such file")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("[daisy] no CUDA device here: running on the CPU (--device cpu says so beforehand)", flush=True)
        args.device = "cpu"


def _has_module(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
