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
from typing import TYPE_CHECKING, cast

import typer

from ..errors import (
    DatabaseError,
    InvalidInputError,
    InvalidLeaseError,
    PharoxError,
    ProxyUnavailableError,
    QueueFullError,
)
from .exits import Exit
from .showing import say

if TYPE_CHECKING:
    from pydantic import ValidationError

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
        return Exit.FAILURE
    command = typer.main.get_command(app)
    try:
        status = command.main(list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except SystemExit as ended:
        return _status_of_typer(ended)
    except BrokenPipeError:
        _drop_output()
        return Exit.BROKEN_PIPE
    except Exception as error:
        found = _sentence(error)
        if found is None:
            raise
        sentence, status = found
        say(sentence)
        if isinstance(error, OSError):
            _drop_output()
    return status if isinstance(status, int) else Exit.OK


def _status_of_typer(ended: SystemExit) -> int:
    """Return the status with which typer itself ended the process: a completion, or a failure."""
    if isinstance(ended.__context__, BrokenPipeError):
        _drop_output()
        return Exit.BROKEN_PIPE
    sys.stdout.flush()
    return Exit.FAILURE if ended.code else Exit.OK


def _sentence(error: Exception) -> tuple[str, int] | None:
    """Return the sentence and the exit status of an error, or None for a bug of ours."""
    match error:
        case typer.TyperException():
            return _of_usage(error), error.exit_code
        case PharoxError():
            return str(error), _status_of(error)
        case OSError():
            return f"the output cannot be written: {error.strerror or error}", Exit.FAILURE
        case _ if _is_of(error, "psycopg", "sqlalchemy"):
            return f"the database refused: {error}", Exit.FAILURE
        case _ if _is_of(error, "pydantic_core"):
            return _of_model(error), Exit.FAILURE
    return None


def _status_of(error: PharoxError) -> Exit:
    match error:
        case InvalidInputError() | InvalidLeaseError():
            return Exit.USAGE
        case QueueFullError():
            return Exit.TRY_AGAIN
        case ProxyUnavailableError(reason=reason) if getattr(reason, "may_pass", False):
            return Exit.TRY_AGAIN
    return Exit.FAILURE


def _of_model(error: Exception) -> str:
    from ..sources.entries import complaint  # noqa: PLC0415 - the models take a while to import

    return "{}: {}".format(*complaint(cast("ValidationError", error)))


def _of_usage(error: typer.TyperException) -> str:
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None or message.endswith("?"):  # it already suggests a correction
        return message
    return f"{message}; see `{context.command_path} --help`"


def _is_of(error: Exception, *packages: str) -> bool:
    """Return whether a class of one of these packages was raised, without importing one."""
    return not {cls.__module__.partition(".")[0] for cls in type(error).__mro__}.isdisjoint(
        packages
    )


def database_said(error: Exception) -> str | None:
    """Return the sentence of an error of the database, which may pass; None for any other."""
    found = _sentence(error)
    is_of_database = isinstance(error, DatabaseError) or _is_of(error, "psycopg", "sqlalchemy")
    return found[0] if found is not None and is_of_database else None


def _drop_output() -> None:
    """Discard buffered output: nobody reads it, and Python would complain at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # such as an output without a file descriptor
        return
