"""The command line: one module per command, each of which only parses, calls the library and prints."""

from __future__ import annotations

import sys

import typer

from daisy.cli import calibrate, convert, demo, extract, info, labels, manifest, noise_curve, replay, user_dir
from daisy.cli.console import errors, printable
from daisy.errors import DaisyError

app = typer.Typer(
    help="Early exit from speech representation models: each recording runs as many layers as it needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (extract, calibrate, noise_curve, replay, info, convert, labels, manifest, demo, user_dir):
    app.command(name=module.__name__.rpartition(".")[2].replace("_", "-"))(module.command)


def main() -> None:
    """Run a command; what daisy refuses is one line on stderr and exit status 2."""
    try:
        app()
    except DaisyError as error:
        errors.print(printable(f"daisy: {error}"), soft_wrap=True)
        sys.exit(2)
