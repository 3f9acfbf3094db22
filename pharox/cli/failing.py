"""Translate the exception that ends a command into one sentence and an exit status.

The exceptions named here are expected. Any other one is a bug in pharox and shows its
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

from ..errors import (
    InvalidInputError,
    InvalidLeaseError,
    PharoxError,
    ProxyUnavailableError,
    QueueFullError,
)
from ..models import MissReason
from ..sources.entries import complaint
from .showing import say

FAILURE, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141

TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong with the command, and it may succeed later."""

# Commands print a sentence of their own for what the storage logs.
logging.getLogger("pharox").addHandler(logging.NullHandler())


def run(app: typer.Typer, arguments: Sequence[str], program: str = "pharox") -> int:
    """Run the app under a program name with these arguments, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Some terminals cannot show every character.
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        say("standard output is closed")
        return FAILURE
    command = typer.main.get_command(app)
    try:
        status = command.main(list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer turns BrokenPipeError into SystemExit
        _drop_output()
        return BROKEN_PIPE
    except Exception as error:
        found = _sentence(error)
        if found is None:
            raise
        sentence, status = found
        say(sentence)
        if isinstance(error, OSError):
            _drop_output()
    return status if isinstance(status, int) else 0


def _sentence(error: Exception) -> tuple[str, int] | None:
    """Return the sentence and the exit status of an error, or None for a bug of ours."""
    match error:
        case typer.TyperException():
            return _of_usage(error), error.exit_code
        case PharoxError():
            return str(error), _status_of(error)
        case ValidationError():
            return "{}: {}".format(*complaint(error)), FAILURE
        case OSError():
            return f"the output cannot be written: {error.strerror or error}", FAILURE
        case _ if _is_of_driver(error):
            return f"the database refused: {error}", FAILURE
    return None


def _status_of(error: PharoxError) -> int:
    match error:
        case InvalidInputError() | InvalidLeaseError():
            return USAGE
        case QueueFullError():
            return TRY_AGAIN
        case ProxyUnavailableError(reason=MissReason() as reason) if reason.may_pass:
            return TRY_AGAIN
    return FAILURE


def _of_usage(error: typer.TyperException) -> str:
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None or message.endswith("?"):  # it already suggests a correction
        return message
    return f"{message}; see `{context.command_path} --help`"


def _is_of_driver(error: Exception) -> bool:
    """Return whether a database driver raised this, without importing one."""
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return not packages.isdisjoint({"psycopg", "sqlalchemy"})


def _drop_output() -> None:
    """Discard buffered output: nobody reads it, and Python would complain at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # such as an output without a file descriptor
        return
