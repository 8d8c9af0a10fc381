"""Where a command begins: `python -m robust`, and the console's `robust`."""

import os
import sys


def command() -> None:
    """The command line, with Ctrl-C heard from the first import on: one line and status 130."""
    try:
        from robust.cli import command as begin
    except KeyboardInterrupt:
        print("robust: interrupted before it began; run it again", file=sys.stderr, flush=True)
        os._exit(130)  # see `robust.cli.ending.leave`; nothing has been opened yet
    begin()


if __name__ == "__main__":
    command()
