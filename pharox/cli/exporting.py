"""``pharox export``: write the log as CloudEvents, for Kafka, NATS, a lake or a pipe."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from ..errors import InvalidInputError
from ..models import utc_now
from ..models.moments import start_of
from .log import OfPool, OfTypes, known_types
from .session import ledger
from .showing import say

if TYPE_CHECKING:
    from ..ledger.exporting import LineFile, LinePipe
    from ..ledger.subscriptions.options import Start
    from ..storage.postgres import PostgresStorage

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


class TellOnce(logging.Handler):
    """Prints a warning of the reader, but not again for the next attempt in vain.

    Somebody has to hear that an export makes no progress, and not once a second.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: object = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless the last one was about the same event or error."""
        subject = record.msg, (record.args or ())[:2]  # type: ignore[index] # a tuple here
        if subject != self._last:
            say(record.getMessage())
        self._last = subject


@contextmanager
def telling() -> Iterator[None]:
    """Print what the reader warns of: that the database is away, or nobody reads."""
    handler, logger = TellOnce(), logging.getLogger("pharox")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Stop(threading.Event):
    """Set by a signal, which it remembers."""

    signal: int | None = None

    def on_signal(self, number: int, _: Any) -> None:
        """Ask for the end; another signal has its default effect, as one may be in a hurry."""
        self.signal = number
        self.set()
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def stopping() -> Iterator[_Stop]:
    """Yield what the first SIGINT or SIGTERM sets."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.on_signal) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
