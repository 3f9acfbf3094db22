"""``pharox doctor``: say whether the ledger is well, and what is to be done if not.

It changes nothing, and a role that may only read is enough. Without a connection it says what can
be said from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from ..errors import PharoxError
from .exits import Exit
from .output import Format, Output, print_rows
from .session import is_unset, ledger, shown_target

if TYPE_CHECKING:
    from ..ledger.diagnosis import Diagnosis

NOT_SET = "set PHAROX_DATABASE_URL, or have `pharox db upgrade` start an embedded server"

_FIELDS = ("check", "result", "finding", "advice")


def doctor(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Examine the connection, the server and the ledger, and say what is to be done.

    It writes nothing, and a role that may only read is enough. The exit status is 1 if there is a
    problem; a warning is none.
    """
    found = [*_diagnoses(context)]
    print_rows(output, found, _FIELDS, _row, fields=_FIELDS)
    if any(each.result == "problem" for each in found):
        raise typer.Exit(Exit.FAILURE)


def _diagnoses(context: typer.Context) -> Iterator[Diagnosis]:
    """Yield what is found; the first line is the connection, and the last if there is none."""
    from ..ledger.diagnosis import Diagnosis, Result, diagnose  # noqa: PLC0415 - slow to import
    from .app import installed_version  # noqa: PLC0415

    yield Diagnosis("package", Result.OK, f"pharox {installed_version() or 'from its source'}")
    if is_unset(context):
        finding = "no database is set, and no embedded server was ever started here"
        yield Diagnosis("connection", Result.PROBLEM, finding, NOT_SET)
        return
    try:
        with ledger(context) as storage:
            with storage.session(keep=False):
                yield Diagnosis("connection", Result.OK, shown_target(context, storage))
            yield from diagnose(storage)
    except PharoxError as error:
        yield Diagnosis(
            "connection",
            Result.PROBLEM,
            str(error),
            "check PHAROX_DATABASE_URL or --url, and that the server runs and is reachable",
        )


def _row(diagnosis: Diagnosis) -> tuple[object, ...]:
    return tuple(getattr(diagnosis, field) for field in _FIELDS)
