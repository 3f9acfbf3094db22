"""The ledger that a command works on, as the global options name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage


@dataclass(frozen=True, slots=True)
class Target:
    """Which database, and which schema in it."""

    url: str | None
    schema: str


@contextmanager
def ledger(context: typer.Context) -> Iterator[PostgresStorage]:
    """Open the storage for a command, and close its connections after it."""
    from ..connecting import connect  # noqa: PLC0415 - SQLAlchemy takes a while to import

    target: Target = context.obj
    storage = connect(target.url, schema=target.schema)
    try:
        yield storage
    finally:
        storage.close()
