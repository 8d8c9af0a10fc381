"""The command line. Commands import what they need when they run, so that help answers at once."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from robust import threads
from robust.cli import attack, certify, doctor, harden, leaderboard, lists, sweep
from robust.cli.common import fail, unprinted
from robust.cli.ending import INTERRUPTED, leave
from robust.errors import RobustError

_NOBODY_READS = 141  # as shells have it: 128 and SIGPIPE
app = typer.Typer(
    name="robust",
    help="How robust is a PyTorch classifier really, what does hardening buy, and how does that compare?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("attack", epilog=attack.EPILOG)(attack.attack)
app.command("certify", epilog=certify.EPILOG)(certify.certify)
app.command("harden", epilog=harden.EPILOG)(harden.harden)
app.command("sweep", epilog=sweep.EPILOG)(sweep.sweep)
app.add_typer(leaderboard.app, name="leaderboard")
app.command("list", epilog=lists.EPILOG)(lists.show)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"robust {version('robust-harness')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="show the version and exit"),
    ] = False,
) -> None:
    """What goes before a command."""


def command() -> NoReturn:
    """The console's entry point: `main`, and the end of the process."""
    status: object = None
    try:
        main()
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # another one, while the first was seen to
        status = INTERRUPTED
    leave(status if isinstance(status, int) else int(status is not None))


def main() -> None:
    """A command, to its SystemExit: errors on purpose are one line and status 2, an interruption is status 130."""
    threads.yield_soon()
    log, lines = logging.getLogger("robust"), _Lines()
    log.addHandler(lines)
    try:
        _run()
    except BrokenPipeError:
        _end_unread()
    except OSError as error:
        fail(unprinted(error))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # the parser ends so, with status 1
            _end_unread()
        raise
    finally:
        log.removeHandler(lines)
        _drop_what_is_left()


def _drop_what_is_left() -> None:
    """Where standard output takes no more, end without Python's trying once more, which would change the status."""
    try:
        print(end="", flush=True)
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Lines(logging.Handler):
    """What the package warns of, as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"robust: {record.getMessage()}", file=sys.stderr)


def _run() -> None:
    try:
        status = app(standalone_mode=False)
        print(end="", flush=True)  # a pipe may tell only now
        if status == INTERRUPTED:  # the parser turns Ctrl-C into this status
            raise KeyboardInterrupt
    except RobustError as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted before it was done; run it again", INTERRUPTED)
    except Exception as error:
        _usage_error(error)
    sys.exit(status if isinstance(status, int) else 0)


def _end_unread() -> NoReturn:
    """The end where nobody reads the output any more, quiet also when Python flushes what is left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sys.exit(_NOBODY_READS)


def _usage_error(error: Exception) -> None:
    """Show a usage error of the argument parser in one line, or help where nothing was asked; pass anything else on."""
    message = getattr(error, "format_message", None)
    if message is None:
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":  # of click, or of the copy that typer may bring
        print(message(), file=sys.stderr)
        sys.exit(2)
    context = getattr(error, "ctx", None)
    hint = f" (try '{context.command_path} --help')" if context is not None else ""
    text = str(message()).replace("\n", " ").replace(" Value error, ", " ")  # as pydantic begins its own
    fail(text + _what_came(error, text) + hint)


def _what_came(error: Exception, said: str) -> str:
    """What was given for the option that an error is about, unless it was said."""
    given = iter(sys.argv)
    names = getattr(getattr(error, "param", None), "opts", [])
    came = ""  # the parser reads an option that is repeated as it stands last
    for word in given:
        name, equals, value = word.partition("=")
        if name in names:
            came = value if equals else next(given, "")
    return "" if not came or repr(came) in said else f", got {came!r}"
