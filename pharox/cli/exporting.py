"""``pharox export``: write the log as CloudEvents, for Kafka, NATS, a lake or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from ..errors import InvalidInputError
from ..models import utc_now
from ..models.moments import start_of
from .lasting import stopping, telling
from .log import OfPool, OfTypes, known_types
from .session import ledger
from .showing import say

if TYPE_CHECKING:
    from ..ledger.exporting import LineFile, LinePipe
    from ..ledger.subscriptions.options import Start
    from ..storage.postgres import PostgresStorage


def export(
    context: typer.Context,
    *,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Wait for new events, until Ctrl-C or SIGTERM."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Append to this file; to standard output if not given.",
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(metavar="NAME", help="The subscription, whose checkpoint is kept."),
    ] = "export",
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|SEQ",
            help="Where a new name begins, such as now or 2026-01-31T12:00Z; at the first event "
            "if not given. A known name continues from its checkpoint.",
        ),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the first event again.")
    ] = False,
    pool: OfPool = None,
    types: OfTypes = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="The source in the CloudEvents; one that names cluster, database and schema if "
            "not given.",
        ),
    ] = None,
) -> None:
    """Write events as CloudEvents 1.0, one JSON object per line, at least once each.

    It continues after the last event that an export of this name has written. An event that is
    written twice has the same source and id both times.
    """
    if since is not None and from_start:
        raise InvalidInputError("give --since or --from-start, not both")
    wanted = known_types(types or ())
    from ..ledger.exporting import Exporter  # noqa: PLC0415 - SQLAlchemy takes a while to import

    is_empty = output is not None and not (output.exists() and output.stat().st_size)
    with ledger(context) as storage, _opened(output) as opened, stopping() as stop, telling():
        exporter = Exporter(
            storage,
            opened,
            name=name,
            source=source,
            start=_start(storage, since),
            types=wanted or None,
            pool=_pool_of(storage, pool),
        )
        if not from_start and output is not None and is_empty and (seq := exporter.checkpoint()):
            say(
                f"the name {name} has written up to event {seq} elsewhere, and {output} gets what "
                "follows; --from-start writes all of it, another --name is one more export"
            )
        if from_start:
            exporter.begin_again()
        elif follow and exporter.has_reader():
            say(f"another process exports under the name {name}; waiting to take over")
        exporter.run(stop, follow=follow)
    if stop.signal is not None and not follow:
        raise typer.Exit(128 + stop.signal)


@contextmanager
def _opened(path: Path | None) -> Iterator[LineFile | LinePipe]:
    """Open the file, or standard output."""
    from ..ledger.exporting import LineFile, LinePipe  # noqa: PLC0415

    if path is None:
        sys.stdout.flush()
        yield LinePipe(sys.stdout.fileno())
        return
    with closing(LineFile(path)) as file:
        if file.cut_bytes:
            say(f"cut half a line ({file.cut_bytes} bytes) off {path}; its event is written again")
        yield file


def _start(storage: PostgresStorage, since: str | None) -> Start:
    """Return the place in the log that ``--since`` names."""
    if since is None:
        return "beginning"
    if since.strip() == "now":
        return "now"
    found = start_of(since, utc_now())
    if isinstance(found, datetime):
        return storage.seq_at(found - timedelta(microseconds=1)) + 1
    return found


def _pool_of(storage: PostgresStorage, pool: str | None) -> str | UUID | None:
    """Return the name of a pool, or the id of one that is given by it, or was removed."""
    if pool is None or any(known.name == pool for known in storage.list_pools()):
        return pool
    from ..history.pool_names import find_pool  # noqa: PLC0415

    return find_pool(storage, pool).pool.id
