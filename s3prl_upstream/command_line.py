"""Read s3prl's command line as s3prl does, but refuse in one line what would fail or be silently dropped."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daisy.errors import DaisyError, UsageError

Arguments = tuple[Namespace, dict, list[str]]
OF_THE_CALL = frozenset(
    [
        "mode",
        "evaluate_split",
        "override",
        "backend",
        "local_rank",
        "past_exp",
        "init_ckpt",
        "auto_resume",
        "device",
        "upstream_refresh",
        "cache_dir",
        "verbose",
        "disable_cudnn",
        "push_to_hf_hub",
        "hf_hub_org",
    ]
)
"""Options that do not belong to an experiment; -e and -a keep all others, whatever the command line says."""


@dataclass
class Given:
    """The command line itself, before s3prl replaces it by a checkpoint's options."""

    values: dict[str, object] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    """The option used for each value that is not s3prl's default, by name of the value."""

    @property
    def folder(self) -> Path:
        """Folder of the experiment."""
        return Path(str(self.values.get("expdir") or f"result/downstream/{self.values.get('expname')}"))

    @property
    def overridden(self) -> set[str]:
        """Names that -o overrides: args.X and config.X."""
        parts = str(self.values.get("override") or "").split(",,")
        return {part.partition("=")[0].strip() for part in parts}

    def goes_on_with(self) -> str:
        """Return the path that -e or -a resumes; empty for a new experiment."""
        if self.values.get("past_exp"):
            return str(self.values["past_exp"])
        return str(self.folder) if self.values.get("auto_resume") and _begun(self.folder) else ""


def read(stock: Callable[[], Arguments]) -> Arguments:
    """Read the command line as s3prl's ``get_downstream_args`` does, checked.

    Raises:
        UsageError: where s3prl would end with a traceback, overwrite files or drop options.
    """
    import yaml

    given, said = Given(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _kept(given):
            args, config, backup_files = stock()
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(said.getvalue().rpartition("error: ")[2].strip() or "s3prl refuses the options") from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}{_hint(Path(str(error.filename)))}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"-c: not YAML ({' '.join(str(error).split())})") from None
    except DaisyError:
        raise
    except (pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError,
            AssertionError) as error:  # fmt: skip
        raise UsageError(f"{_causes(given)} ({type(error).__name__} {' '.join(str(error).split())[:200]})") from None
    print(said.getvalue(), end="", file=sys.stderr)
    if args.past_exp:
        _refuse_what_is_dropped(given, args)
    elif args.mode == "train" and _begun(Path(args.expdir)):
        raise UsageError(f"{args.expdir} holds an experiment: -a goes on with it; to begin anew, move it away")
    return args, config, backup_files


@contextlib.contextmanager
def _kept(given: Given) -> Iterator[None]:
    """Record the parsed arguments with a replaced parser, as s3prl parses and continues at once."""
    plain = argparse.ArgumentParser.parse_args

    def noting(parser, *arguments, **keywords):  # type: ignore[no-untyped-def]
        parsed = plain(parser, *arguments, **keywords)
        given.values = dict(vars(parsed))
        names = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
        given.options = {name: names[name] for name, value in vars(parsed).items() if value != parser.get_default(name)}
        _ask_for_what_is_missing(given)
        return parsed

    argparse.ArgumentParser.parse_args = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = plain  # type: ignore[method-assign]


def _ask_for_what_is_missing(given: Given) -> None:
    if given.goes_on_with():
        return
    training, nothing = given.values["mode"] == "train", ""
    if given.values["auto_resume"]:
        nothing = f"{given.folder} holds no states-*.ckpt to go on from, and to begin "
    for name, what in (("upstream", "-u UPSTREAM"), ("downstream", "-d TASK")):
        if given.values[name] is None and f"args.{name}" not in given.overridden:
            raise UsageError(f"{nothing}{what} is missing{'' if training else ' (or -e CKPT, which knows it)'}")
    if (
        training
        and not given.values["expdir"]
        and not given.values["expname"]
        and "args.expdir" not in given.overridden
    ):
        raise UsageError("-p FOLDER (or -n NAME, for result/downstream/NAME) is missing: where the experiment goes")


def _refuse_what_is_dropped(given: Given, saved: Namespace) -> None:
    """Refuse options that differ from those with which a resumed experiment was started."""
    for name, option in given.options.items():
        if name in OF_THE_CALL or f"args.{name}" in given.overridden:
            continue
        value, before = given.values[name], getattr(saved, name, None)
        if not _same(value, before):
            instead = "-o config.KEY=VALUE changes it" if name == "config" else f"-o args.{name}={value} takes another"
            raise UsageError(
                f"{option} {value}: {given.goes_on_with()} was begun with {'none' if before is None else before}, "
                f"which -e and -a keep; {instead} on purpose"
            )


def _same(one: object, other: object) -> bool:
    """Tell whether two values are the same, or two spellings of one path."""
    if one == other or not (isinstance(one, str) and isinstance(other, str)):
        return one == other
    return Path(one).exists() and Path(one).resolve() == Path(other).resolve()


def _begun(folder: Path) -> bool:
    return any(folder.glob("states-*.ckpt"))


def _causes(given: Given) -> str:
    """Describe possible causes of an error when s3prl reads its options."""
    causes = []
    if going := given.goes_on_with():
        empty = Path(going).is_dir() and not _begun(Path(going))
        causes.append(f"-e {going}: " + ("holds no states-*.ckpt" if empty else "no checkpoint of s3prl's runner"))
    if given.values.get("override"):
        causes.append(f"-o {given.values['override']}: not KEY=VALUE,,KEY=VALUE of args.KEY and config.KEY")
    return ", or ".join(causes) or "s3prl refuses the options"


def _hint(missing: Path) -> str:
    """Suggest what to do about a missing file."""
    if missing.suffix in (".yaml", ".yml"):
        return "; s3prl's wheel brings no configurations: -c FILE"
    beside = sorted(path.name for path in missing.parent.glob("*.ckpt"))
    return f"; its folder holds {', '.join(beside)}" if missing.suffix == ".ckpt" and beside else ""
