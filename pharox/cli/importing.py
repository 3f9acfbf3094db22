"""``pharox import``: a list of proxies into a pool.

One transaction a batch, so what was imported before something went wrong
stays; importing the same list again changes nothing. Batches and the listing
of bad entries are bounded, whatever the length of the list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConflictError, PoolNotFoundError, SourceError
from ..models import Proxy, ProxyPool, ProxyProtocol, ProxyStatus, check_name, check_text
from ..sources import BadEntry, Defaults, Entry, Format, open_source, read_proxies
from ..text import inert
from .session import ledger

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

BATCH = 1000
LISTED = 50
"""How many bad entries are told one by one."""


@dataclass
class Tally:
    """What has come of a source so far."""

    good: int = 0
    new: int = 0
    bad: int = 0
    listed: list[BadEntry] = field(default_factory=list)
    failure: SourceError | None = None

    def note_bad(self, entry: BadEntry) -> None:
        """Count a bad entry, and remember it if it is one of the first."""
        self.bad += 1
        if len(self.listed) < LISTED:
            self.listed.append(entry)

    def tell(self) -> None:
        """Print it all: bad entries as remarks, the sums as the result."""
        for entry in self.listed:
            print(inert(str(entry)), file=sys.stderr)
        if self.bad > len(self.listed):
            print(f"... and {self.bad - len(self.listed)} more", file=sys.stderr)
        known = self.good - self.new
        print(
            f"{self.good + self.bad} read: {self.new} new, {known} known already, {self.bad} bad",
            flush=True,
        )


def import_source(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A file, - for standard input, or an http(s) URL."),
    ],
    *,
    pool: Annotated[
        str, typer.Option(metavar="NAME", help="The pool to import into; made if it is unknown.")
    ],
    protocol: Annotated[
        ProxyProtocol | None,
        typer.Option(help="The protocol of those that name none, and of those that offer several."),
    ] = None,
    status: Annotated[
        ProxyStatus, typer.Option(help="The status of those that name none.")
    ] = ProxyStatus.ACTIVE,
    max_concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            metavar="N",
            help="How many leases each may have at once; any number if not set.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--source", metavar="TEXT", help="The label of those that name none."),
    ] = None,
    kind: Annotated[
        Format | None,
        typer.Option("--format", help="How it is written; seen from the content if not set."),
    ] = None,
    line: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="What a line consists of, such as 'user:pass:host:port'; seen from the lines "
            "if not set.",
        ),
    ] = None,
) -> None:
    """Import a list of proxies: addresses, CSV, JSON or JSON lines.

    A proxy that the pool knows already (by protocol, host, port and user) stays as it is. Bad
    entries are listed, and the exit status is then 1; the good ones are imported all the same.
    """
    check_name(pool, "pool")
    check_text(label or "")
    defaults = Defaults(
        protocol=protocol, status=status, max_concurrency=max_concurrency, source=label
    )
    tally = Tally()
    with (
        open_source(source) as opened,
        ledger(context) as storage,
        _progress(opened.size_bytes) as advance,
    ):
        chunks = _told(opened.chunks, advance)
        target = storage.get_pool_by_name(pool) or ProxyPool(name=pool)
        for batch in _batches(read_proxies(chunks, defaults, kind=kind, line=line), tally):
            try:
                tally.new += storage.import_proxies(target.id, batch)
            except PoolNotFoundError:  # Only now, as there may be nothing that can be imported.
                target = _registered(storage, target)
                tally.new += storage.import_proxies(target.id, batch)
    if tally.failure is None or tally.good or tally.bad:
        tally.tell()
    if tally.failure is not None:
        raise tally.failure
    if tally.bad:
        raise typer.Exit(1)


def _batches(entries: Iterable[Entry | BadEntry], tally: Tally) -> Iterator[list[Proxy]]:
    """Yield the proxies in batches; a source that fails midway is noted, as a bad entry is."""
    batch: list[Proxy] = []
    try:
        for entry in entries:
            if isinstance(entry, BadEntry):
                tally.note_bad(entry)
                continue
            batch.append(entry.proxy)
            tally.good += 1
            if len(batch) == BATCH:
                yield batch
                batch = []
    except SourceError as error:
        tally.failure = error
    if batch:
        yield batch


def _registered(storage: PostgresStorage, pool: ProxyPool) -> ProxyPool:
    """Register a pool and return it, or the one that somebody has just given this name."""
    try:
        storage.save_pool(pool)
    except ConflictError:
        known = storage.get_pool_by_name(pool.name)
        if known is None:
            raise
        return known
    return pool


def _told(chunks: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


@contextmanager
def _progress(size_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere; yields what moves it on."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("import", total=size_bytes)
        yield lambda count: bar.advance(task, count)
