"""``python -m daisy``: the command line."""

from daisy.cli import main

main()
