"""The command line: one module per command, each of which only parses, calls the library and prints.

Commands import the library when they run, so that ``--help`` and errors in options do not wait for torch.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from daisy.cli import (
    calibrate,
    convert,
    demo,
    export,
    extract,
    index,
    info,
    labels,
    manifest,
    mdi,
    noise_curve,
    replay,
    train_heads,
    transcribe,
    truncate,
    units,
    user_dir,
)
from daisy.cli.console import explain, say, set_up_streams, warn
from daisy.errors import DaisyError
from daisy.version import __version__

FAULT = 70
"""Exit status of daisy's own faults: EX_SOFTWARE of sysexits.h."""


class _Group(TyperGroup):
    """The group of commands; without --help its value is False, as typer would import pydantic to convert None."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option


app = typer.Typer(
    cls=_Group,
    help="Early exit from speech representation models: each recording runs as many layers as it needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = (
    extract,
    units,
    transcribe,
    index,
    calibrate,
    noise_curve,
    replay,
    info,
    convert,
    export,
    truncate,
    labels,
    train_heads,
    manifest,
    mdi,
    demo,
    user_dir,
)
for module in COMMANDS:
    app.command(name=module.__name__.rpartition(".")[2].replace("_", "-"))(module.command)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"daisy {__version__}")
        raise typer.Exit


@app.callback()
def take_common_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run a command; an error that daisy reports is one line on stderr and exit status 2.

    A fault of daisy's own gives a traceback and `FAULT`; with status 1, recordings were left out and scripts continue.
    """
    set_up_streams()
    try:
        app()
    except DaisyError as error:
        warn(f"daisy: {explain(error)}")
        sys.exit(2)
    except Exception:
        import traceback

        traceback.print_exc()
        sys.exit(FAULT)
