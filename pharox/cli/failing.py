"""From whatever ends a command to one sentence and an exit status.

What is named here is expected. Anything else is a bug of ours, and shows its
traceback.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence

import typer
from pydantic import ValidationError

from ..errors import InvalidInputError, InvalidLeaseError, PharoxError
from ..sources.entries import complaint
from .showing import say

FAILURE, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141

# The storage logs what a command tells in a sentence of its own.
logging.getLogger("pharox").addHandler(logging.NullHandler())


def run(app: typer.Typer, arguments: Sequence[str], program: str = "pharox") -> int:
    """Run the app, which goes by this name, with these arguments and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a letter
    if sys.stdout is None:
        say("standard output is closed")
        return FAILURE
    command = typer.main.get_command(app)
    try:
        status = command.main(list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # The second is what typer makes of the first.
        _drop_output()
        return BROKEN_PIPE
    except Exception as error:
        description = _sentence(error)
        if description is None:
            raise
        sentence, status = description
        say(sentence)
        if isinstance(error, OSError):
            _drop_output()
    return status if isinstance(status, int) else 0


def _sentence(error: Exception) -> tuple[str, int] | None:
    """Return what to say of an error and the exit status, or None for one that is our fault."""
    match error:
        case typer.TyperException():
            return _of_usage(error), error.exit_code
        case PharoxError():
            misused = isinstance(error, InvalidInputError | InvalidLeaseError)
            return str(error), USAGE if misused else FAILURE
        case ValidationError():
            return "{}: {}".format(*complaint(error)), FAILURE
        case OSError():
            return f"the output cannot be written: {error.strerror or error}", FAILURE
        case _ if _is_of_driver(error):
            return f"the database refused: {error}", FAILURE
    return None


def _of_usage(error: typer.TyperException) -> str:
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None or message.endswith("?"):  # It has said what may be meant.
        return message
    return f"{message}; see `{context.command_path} --help`"


def _is_of_driver(error: Exception) -> bool:
    """Tell whether a database driver raised this, without importing one."""
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return not packages.isdisjoint({"psycopg", "sqlalchemy"})


def _drop_output() -> None:
    """Send what is still to be written nowhere: nobody reads it, and Python would complain."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # such as an output that is no file
        return
