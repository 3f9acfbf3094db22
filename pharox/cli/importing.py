"""``pharox import``: import a list of proxies into a pool.

Each batch is one transaction, so proxies imported before an error stay. Importing the
same list again changes nothing. Batches and the listing of bad entries are bounded,
whatever the length of the list. Proxies that the list no longer has are removed only
after all of it was read without an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError, SourceError
from ..history.describing import counted
from ..models import (
    Proxy,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
    check_name,
    check_text,
)
from ..models.gateway import GATEWAY_CONCURRENCY, words_left_in
from ..models.text import escape_unprintable, url_of
from ..sources import BadEntry, Defaults, Entry, Format, open_source, read_proxies
from ..sources.values import country_of
from .bulk import rare_collections
from .checking import CostPerGb, CostPerLease, Weight, limit_of, prices_of
from .exits import Exit
from .session import ledger
from .showing import say

if TYPE_CHECKING:
    from ..storage.list_import import ChangedProxy, ImportReport, MaxRemoved, RemovalReport

BATCH = 1000
LISTED = 50
"""How many bad entries to list one by one."""


@dataclass
class Tally:
    """The result of an import so far."""

    good: int = 0
    bad: int = 0
    listed: list[BadEntry] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    failure: SourceError | None = None

    def note_bad(self, entry: BadEntry) -> None:
        """Count a bad entry, and remember it if it is one of the first."""
        self.bad += 1
        if len(self.listed) < LISTED:
            self.listed.append(entry)

    def note_left(self, proxy: Proxy) -> None:
        """Remember what in a template looks like a placeholder. A password is not quoted."""
        if not proxy.template or proxy.credentials is None or len(self.left) >= LISTED:
            return
        self.left |= words_left_in(proxy.credentials.user)
        if words_left_in(proxy.credentials.password.get_secret_value()):
            self.left.add("a {word} in a password")

    @property
    def is_clean(self) -> bool:
        """Whether the source was read to its end without a bad entry."""
        return self.failure is None and not self.bad

    def describe(
        self,
        report: ImportReport,
        max_concurrency: int | None,
        selector: SelectorStrategy | None,
    ) -> None:
        """Print bad and changed entries as remarks, and the totals as the result.

        ``selector`` is that of a pool that the import made, else None.
        """
        _remark([str(entry) for entry in self.listed], self.bad)
        if report.changed:
            _remark([_of_change(change) for change in report.changes], report.changed)
        for word in sorted(self.left):
            say(
                f"{word} is no placeholder and stays as it is: {{session}}, {{country}}, "
                "{COUNTRY} and {lifetime} are filled"
            )
        sums = {"updated": report.updated, "changed": report.changed}
        parts = [f"{report.new} new", f"{report.known} known already"]
        parts += [f"{number} {what}" for what, number in sums.items() if number]
        parts += [f"{self.bad} bad"]
        limit = f"; each new one takes {_leases(max_concurrency)} at a time" if report.new else ""
        made = f"; the pool is new, its selector {selector}" if selector and self.good else ""
        print(f"{self.good + self.bad} read: {', '.join(parts)}{limit}{made}", flush=True)


_Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A file, - for standard input, or an http(s) URL."),
]
_Pool = Annotated[
    str, typer.Option(metavar="POOL", help="The pool to import into; created if there is none.")
]
_Protocol = Annotated[
    ProxyProtocol | None,
    typer.Option(help="The protocol of entries that name none, or several."),
]
_Status = Annotated[ProxyStatus, typer.Option(help="The status of entries that name none.")]
_MaxConcurrency = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="How many leases a proxy may have at once, or `unlimited`, for entries that name "
        "none; as the pool says, or 1 (100 with --template), if not given.",
    ),
]
_Label = Annotated[
    str | None,
    typer.Option("--source", metavar="TEXT", help="The label of entries that name none."),
]
_Kind = Annotated[
    Format | None,
    typer.Option("--format", help="The format; detected from the content if not given."),
]
_Update = Annotated[
    bool,
    typer.Option("--update", help="Replace passwords in the pool that differ from the source."),
]
_Sync = Annotated[
    bool,
    typer.Option(
        "--sync",
        help="Remove proxies with the label of --source (or with none) that the source no longer "
        "lists, unless they are leased.",
    ),
]
_MaxRemoved = Annotated[
    str | None,
    typer.Option(
        metavar="N|N%",
        help="The most that --sync may remove (50%); it removes none if there are more.",
    ),
]
_Country = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="The country of entries that name none; a template with {country} needs one.",
    ),
]
_Template = Annotated[
    bool | None,
    typer.Option(
        "--template/--no-template",
        help="Whether {session}, {country}, {COUNTRY} and {lifetime} in credentials are filled for "
        "each lease of a gateway, or are literal. An entry that has one needs either.",
    ),
]
_Line = Annotated[
    str | None,
    typer.Option(
        metavar="LAYOUT",
        help="The parts of a line, such as 'user:pass:host:port'; detected from the lines if not "
        "given.",
    ),
]


def import_source(
    context: typer.Context,
    source: _Source,
    *,
    pool: _Pool,
    protocol: _Protocol = None,
    status: _Status = ProxyStatus.ACTIVE,
    max_concurrency: _MaxConcurrency = None,
    label: _Label = None,
    kind: _Kind = None,
    update: _Update = False,
    sync: _Sync = False,
    max_removed: _MaxRemoved = None,
    line: _Line = None,
    cost_per_gb: CostPerGb = None,
    cost_per_lease: CostPerLease = None,
    weight: Weight = None,
    country: _Country = None,
    template: _Template = None,
) -> None:
    """Import a list of proxies: addresses, CSV, JSON or JSON lines.

    A pool that is created leases the proxy first that was leased longest ago. A proxy that the pool
    already has (same protocol, host, port, user and password) stays as it is.
    Bad entries, and proxies whose password differs from the pool's, are listed, and the exit status
    is then 1; all other entries are imported.
    """
    check_name(pool, "pool")
    check_text(label or "")
    check_text(country or "")
    limit = None if max_concurrency is None else limit_of(max_concurrency)
    prices = prices_of(cost_per_gb, cost_per_lease)
    most = _removable(max_removed, sync=sync)
    tally = Tally()
    removal: RemovalReport | None = None
    with (
        rare_collections(),
        open_source(source) as opened,
        ledger(context) as storage,
        _progress(opened.size_bytes) as advance,
    ):
        chunks = _with_progress(opened.chunks, advance)
        known = storage.get_pool_by_name(pool)
        wanted = known or ProxyPool(name=pool, selector=SelectorStrategy.LEAST_RECENTLY_USED)
        if max_concurrency is None:
            limit = wanted.max_concurrency or (GATEWAY_CONCURRENCY if template else 1)
        defaults = Defaults(
            protocol=protocol,
            status=status,
            max_concurrency=limit,
            source=label,
            cost_per_gb=prices.get("cost_per_gb"),
            cost_per_lease=prices.get("cost_per_lease"),
            weight=weight,
            country=country_of(country),
            template=template,
        )
        batches = _batches(read_proxies(chunks, defaults, kind=kind, line=line), tally)
        report = storage.import_list(wanted.id, batches, update=update, make=wanted)
        if most is not None and tally.is_clean:
            removal = storage.remove_unlisted(
                report.pool_id, report.listed, source=label, max_removed=most
            )
    if tally.failure is None or tally.good or tally.bad:
        tally.describe(report, limit, None if known else wanted.selector)
    if most is not None:
        _print_removal(removal, most)
    if tally.failure is not None:
        raise tally.failure
    if tally.bad or report.changed or (most is not None and _is_unfinished(removal)):
        raise typer.Exit(Exit.FAILURE)


def _removable(max_removed: str | None, *, sync: bool) -> MaxRemoved | None:
    """Return how many proxies may be removed; None if the import removes none."""
    from ..storage.list_import import HALF, MaxRemoved  # noqa: PLC0415 - it imports SQLAlchemy

    if not sync:
        if max_removed is not None:
            raise InvalidInputError("--max-removed needs --sync")
        return None
    if max_removed is None:
        return HALF
    try:
        return MaxRemoved.parse(max_removed)
    except InvalidInputError as error:
        raise InvalidInputError(f"--max-removed: {error}") from error


def _print_removal(removal: RemovalReport | None, most: MaxRemoved) -> None:
    if removal is None:
        say("nothing was removed, because not all of the source could be read")
    elif removal.refused:
        say(
            f"nothing was removed: the source no longer lists {removal.gone} of its {removal.had} "
            f"proxies, and --max-removed is {most}"
        )
    else:
        for proxy_id in removal.leased_ids:
            say(f"proxy {proxy_id} is leased; the next --sync removes it")
        print(
            f"{removal.gone} gone: {removal.removed} removed, {removal.leased} leased", flush=True
        )


def _is_unfinished(removal: RemovalReport | None) -> bool:
    return removal is None or removal.refused


def _of_change(change: ChangedProxy) -> str:
    address = url_of(change.proxy.protocol, change.proxy.host, change.proxy.port)
    where = f"in the pool (proxy {change.proxy_id})"
    return f"{address} has another password {where}; --update replaces it"


def _leases(limit: int | None) -> str:
    return "any number of leases" if limit is None else counted(limit, "lease", "leases")


def _remark(lines: list[str], of: int) -> None:
    """Print the first lines, and how many more there are."""
    for line in lines:
        print(escape_unprintable(line), file=sys.stderr)
    if of > len(lines):
        print(f"... and {of - len(lines)} more", file=sys.stderr)


def _batches(entries: Iterable[Entry | BadEntry], tally: Tally) -> Iterator[list[Proxy]]:
    """Yield the proxies in batches; note bad entries, and a source that fails midway."""
    batch: list[Proxy] = []
    try:
        for entry in entries:
            if isinstance(entry, BadEntry):
                tally.note_bad(entry)
                continue
            batch.append(entry.proxy)
            tally.note_left(entry.proxy)
            tally.good += 1
            if len(batch) == BATCH:
                yield batch
                batch = []
    except SourceError as error:
        tally.failure = error
    if batch:
        yield batch


def _with_progress(chunks: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


@contextmanager
def _progress(size_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal only; yield the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("import", total=size_bytes)
        yield lambda count: bar.advance(task, count)
