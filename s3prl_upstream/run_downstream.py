"""daisy-s3prl: s3prl's run_downstream with daisy's upstreams, its own options and ours.

daisy-s3prl -m train -u daisy_local -k CKPT -g POLICY.json -d TASK -c CFG -p EXP --featurizer dynamic --cache DIR
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import importlib.util
import io
import pickle
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import soundfile
import torch

from daisy.errors import DaisyError, UsageError
from s3prl_upstream import sox
from s3prl_upstream.options import Options, parse, parser
from s3prl_upstream.register import register

Arguments = tuple[Namespace, dict, list[str]]
PROGRAM = "daisy-s3prl"
GOES_ON = "-e EXP or -a goes on from the last checkpoint"
OF_EXPERIMENT = {
    "upstream": "-u",
    "upstream_ckpt": "-k",
    "upstream_model_config": "-g",
    "downstream": "-d",
    "upstream_feature_selection": "-s",
    "upstream_layer_selection": "-l",
}
"""s3prl's options that -e and -a take from the checkpoint, whatever the command line says."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run s3prl; what daisy refuses is one line on stderr and exit status 2.

    Args:
        arguments: of the command line; None for those of the process.
    """
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except DaisyError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; {GOES_ON}", file=sys.stderr)
        sys.exit(130)


def run(arguments: Sequence[str]) -> None:
    """s3prl's ``run_downstream.main`` with our entries, runner and options.

    Raises:
        DaisyError: on anything that daisy refuses.
    """
    options, rest = parse(arguments)
    if {"-h", "--help"} & set(rest):
        print(parser().format_help())
    register()
    from s3prl import run_downstream

    from s3prl_upstream.runner import ExitRunner

    argv, stock = sys.argv, (run_downstream.get_downstream_args, run_downstream.Runner)
    plain_isinstance = builtins.isinstance  # s3prl wraps it, and the wrapper calls what it wraps twice
    sys.argv = [PROGRAM, *rest]
    run_downstream.get_downstream_args = partial(_arguments, stock[0], options)
    run_downstream.Runner = partial(ExitRunner, options=options)
    try:
        with sox.stand_in():
            run_downstream.main()
    except (OSError, soundfile.LibsndfileError) as error:
        raise DaisyError(f"{_reason(error)}; {GOES_ON}") from None
    except LookupError as error:
        if not _met_in_data(error):
            raise
        reason = _reason(error) if str(error).startswith("Caught ") else f"{type(error).__name__} {error}"
        raise DaisyError(f"the task's dataset does not fit its checkpoint or configuration: {reason}") from None
    finally:
        sys.argv = argv
        builtins.isinstance = plain_isinstance
        run_downstream.get_downstream_args, run_downstream.Runner = stock


def _reason(error: Exception) -> str:
    """One line of an error that a task's data loader met; a worker process hands on its whole traceback."""
    handed_on = getattr(error, "code", None)  # soundfile cannot print what a worker made of its error
    message = handed_on if isinstance(handed_on, str) else str(error)
    line = (message.strip().splitlines() or [type(error).__name__])[-1]
    return (line.partition("Error: ")[2] if message.startswith("Caught ") else line).rstrip(".")


def _met_in_data(error: Exception) -> bool:
    """Whether a task's dataset raised it, here or in a worker process."""
    if str(error).startswith("Caught "):
        return True
    return any(Path(frame.filename).name == "dataset.py" for frame in traceback.extract_tb(error.__traceback__))


def _arguments(stock: Callable[[], Arguments], options: Options, /) -> Arguments:
    """s3prl's arguments and configuration, checked, with our options that belong to an experiment.

    Raises:
        UsageError: on what s3prl would end with a traceback.
    """
    given = _given(sys.argv[1:])
    args, config, backup_files = _parsed(stock, given)
    saved = _saved(args)
    if args.past_exp:
        _refuse_others(given, args)
    if saved and options.featurizer not in (None, saved["featurizer"]):
        raise UsageError(f"--featurizer {options.featurizer}: the checkpoint was trained with {saved['featurizer']}")
    args.daisy = saved or {"featurizer": options.featurizer or "stock"}
    _check(args)
    return args, config, backup_files


def _saved(args: Namespace) -> dict:
    """Our options of the experiment that is gone on with (-e, -a), or whose weights are taken (-i); else none.

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


def _given(arguments: Sequence[str]) -> Namespace:
    """What the command line itself says of the options that decide what is begun or gone on with.

    Raises:
        UsageError: where they leave out what s3prl needs, or would write over an experiment.
    """
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    found.add_argument("-m", "--mode")
    found.add_argument("-e", "--past_exp")
    found.add_argument("-i", "--init_ckpt")
    found.add_argument("-a", "--auto_resume", action="store_true")
    found.add_argument("-o", "--override")
    found.add_argument("-p", "--expdir")
    found.add_argument("-n", "--expname")
    for name, short in OF_EXPERIMENT.items():
        found.add_argument(short, f"--{name}", type=int if name == "upstream_layer_selection" else str)
    given, _ = found.parse_known_args(list(arguments))
    folder = Path(given.expdir or f"result/downstream/{given.expname}")
    begun = any(folder.glob("states-*.ckpt"))
    if given.mode is None or {"-h", "--help"} & set(arguments) or given.past_exp or (given.auto_resume and begun):
        return given
    for name, kind in (("upstream", "UPSTREAM"), ("downstream", "TASK")):
        if getattr(given, name) is None:
            instead = "" if given.mode == "train" else " (or -e CKPT, which knows it)"
            raise UsageError(f"{OF_EXPERIMENT[name]} {kind} is missing{instead}")
    if given.mode == "train" and not given.expdir and not given.expname:
        raise UsageError("-p FOLDER (or -n NAME, for result/downstream/NAME) is missing: where the experiment goes")
    if given.mode == "train" and begun:
        raise UsageError(f"{folder} holds an experiment: -a goes on with it; to begin anew, move it away")
    return given


def _refuse_others(given: Namespace, saved: Namespace) -> None:
    """An experiment is gone on with as it was begun, where s3prl drops what the command line says.

    Raises:
        UsageError: naming the option.
    """
    for name, short in OF_EXPERIMENT.items():
        value, before = getattr(given, name), getattr(saved, name)
        if value not in (None, before) and f"args.{name}" not in (given.override or ""):
            raise UsageError(
                f"{short} {value}: {saved.init_ckpt} was trained with {before}, which -e and -a keep; "
                f"-o args.{name}={value} takes another on purpose"
            )


def _parsed(stock: Callable[[], Arguments], given: Namespace) -> Arguments:
    import yaml

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = stock()
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(said.getvalue().rpartition("error: ")[2].strip() or "s3prl refuses the options") from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}{_hint(Path(str(error.filename)))}") from None
    except AssertionError:
        raise UsageError("-e: the folder holds no states-*.ckpt to go on from") from None
    except yaml.YAMLError as error:
        raise UsageError(f"-c: not YAML ({' '.join(str(error).split())})") from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, ValueError, AttributeError) as error:
        causes = []
        if given.past_exp or given.auto_resume:
            causes.append(f"-e {given.past_exp or given.expdir}: no checkpoint of s3prl's runner")
        if given.override:
            causes.append(f"-o {given.override}: not KEY=VALUE,,KEY=VALUE")
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{', or '.join(causes) or 's3prl refuses the options'} ({reason})") from None
    print(said.getvalue(), end="", file=sys.stderr)
    return found


def _hint(missing: Path) -> str:
    """What to do about a file that is not there."""
    if missing.suffix in (".yaml", ".yml"):
        return "; s3prl's wheel brings no configurations: -c FILE"
    beside = sorted(path.name for path in missing.parent.glob("*.ckpt"))
    return f"; its folder holds {', '.join(beside)}" if missing.suffix == ".ckpt" and beside else ""


def _check(args: Namespace) -> None:
    import s3prl.hub

    if args.hub == "torch" and not hasattr(s3prl.hub, args.upstream):
        raise UsageError(f"-u {args.upstream}: s3prl has no such upstream; daisy's: daisy_local, daisy_url, daisy_mini")
    if not _exists(f"s3prl.downstream.{args.downstream}.expert"):
        raise UsageError(f"-d {args.downstream}: s3prl has no such task")
    if args.mode == "inference" and not Path(args.evaluate_split).is_file():
        raise UsageError(f"-t {args.evaluate_split}: -m inference takes a recording, and there is no such file")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("[daisy] no CUDA device here: running on the CPU (--device cpu says so beforehand)", flush=True)
        args.device = "cpu"


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
