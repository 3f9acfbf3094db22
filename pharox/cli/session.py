"""Open the ledger that the global options name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..history.sealed_log import SealedLog
    from ..storage.postgres import PostgresStorage

Archive = Annotated[
    list[Path] | None,
    typer.Option(
        "--archive",
        metavar="FOLDER",
        help="Read archived events from this folder; may be repeated.",
    ),
]
"""The option ``--archive`` of every command about the past."""

Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The database. Other users can see an argument; PHAROX_DATABASE_URL is private.",
    ),
]
Schema = Annotated[str, typer.Option(metavar="NAME", help="The ledger's schema in the database.")]


@dataclass(frozen=True, slots=True)
class Target:
    """A database, and a schema in it."""

    url: str | None
    schema: str


@contextmanager
def ledger(context: typer.Context) -> Iterator[PostgresStorage]:
    """Open the storage for a command, and close its connections after it."""
    from ..connecting.url import connect  # noqa: PLC0415 - SQLAlchemy takes a while to import

    target: Target = context.obj
    storage = connect(target.url, schema=target.schema)
    try:
        yield storage
    finally:
        storage.close()


@contextmanager
def past(context: typer.Context, archive: list[Path] | None) -> Iterator[SealedLog]:
    """Open the ledger for queries about the past, with its archive if one is given."""
    with ledger(context) as storage:
        if archive:
            from ..ledger.archive.reading import WithArchive  # noqa: PLC0415 - it needs an extra

            yield WithArchive(storage, *archive)
        else:
            yield storage
