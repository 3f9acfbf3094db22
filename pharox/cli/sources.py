"""``pharox sources``: keep pools in step with the lists of providers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr

from ..errors import InvalidInputError, PharoxError
from ..history.describing import counted, counts_in_words, lasting
from ..models import (
    ListOptions,
    ProxyProtocol,
    ProxySource,
    ProxyStatus,
    SourceCounts,
    SourceState,
    SourceStatus,
)
from ..sources.entries import UNLIMITED
from ..sources.formats import Format as ListFormat
from ..sources.layout import Layout
from ..sources.values import country_of
from .checking import CostPerGb, CostPerLease, duration_of, limit_of, prices_of
from .once import Commands
from .output import Format, Output, print_rows
from .pools import named
from .session import ledger
from .showing import AsJson, in_utc, print_json, say

if TYPE_CHECKING:
    from ..sources import SourceRefresh
    from ..storage.postgres import PostgresStorage

app = Commands(help="Keep pools in step with the lists of providers.")

_COLUMNS = ("source", "pool", "host", "every", "state", "listed", "succeeded", "next")
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The source's name.")]
_SHORTEST = timedelta(seconds=1)


@app.command()
def add(
    context: typer.Context,
    name: _Name,
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="The http(s) URL of the list, or - to read it from standard input. Other users "
            "can see an argument.",
        ),
    ],
    *,
    pool: Annotated[str, typer.Option(metavar="NAME", help="The pool of its proxies.")],
    every: Annotated[
        float,
        typer.Option(metavar="TIME", parser=duration_of, help="How often it is fetched: 90s, 10m."),
    ] = 600.0,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME: VALUE", help="A header to send; may be repeated."),
    ] = None,
    header_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Headers, one a line."),
    ] = None,
    max_removed: Annotated[
        str,
        typer.Option(metavar="N|N%", help="The most proxies that one refresh may remove."),
    ] = "50%",
    protocol: Annotated[
        ProxyProtocol | None, typer.Option(help="The protocol of entries that name none.")
    ] = None,
    status: Annotated[
        ProxyStatus, typer.Option(help="The status of entries that name none.")
    ] = ProxyStatus.ACTIVE,
    max_concurrency: Annotated[
        str | None,
        typer.Option(metavar="N", help="How many leases a proxy may have at once, or `unlimited`."),
    ] = None,
    kind: Annotated[
        ListFormat | None,
        typer.Option("--format", help="The format; detected from the content if not given."),
    ] = None,
    line: Annotated[
        str | None,
        typer.Option(metavar="LAYOUT", help="The parts of a line: 'user:pass:host:port'."),
    ] = None,
    country: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The country of entries that name none.")
    ] = None,
    template: Annotated[
        bool | None,
        typer.Option(
            "--template/--no-template",
            help="Whether placeholders in credentials are filled for each lease.",
        ),
    ] = None,
    cost_per_gb: CostPerGb = None,
    cost_per_lease: CostPerLease = None,
) -> None:
    """Add a source, or replace the settings of the one with this name, which stays paused if it is.

    The URL and the headers are stored encrypted. Nothing is fetched: `pharox sources refresh` does.
    """
    if line is not None:
        Layout(line)
    options = ListOptions(
        protocol=protocol,
        status=status,
        max_concurrency=_limit(max_concurrency),
        format=None if kind is None else kind.value,
        line=line,
        country=country_of(country),
        template=template,
        **prices_of(cost_per_gb, cost_per_lease),
    )
    source = ProxySource(
        name=name,
        pool_name=pool,
        url=SecretStr(sys.stdin.readline().strip() if url == "-" else url),
        headers=_headers(header or (), header_file),
        every_seconds=every,
        max_removed=max_removed,
        options=options,
    )
    with ledger(context) as storage:
        named(storage, pool)
        known = {status.name: status.enabled for status in storage.list_sources()}
        is_enabled = known.get(name, True)
        is_change = storage.save_source(source.model_copy(update={"enabled": is_enabled}))
    what = "is as it was" if not is_change else "was changed" if name in known else "was added"
    when = f"every {lasting(every)}" if is_enabled else "and stays paused"
    say(f"source {name!r} at {source.host} {what}; pool {pool!r}, {when}")


@app.command("list")
def list_sources(
    context: typer.Context,
    *,
    pool: Annotated[str | None, typer.Option(metavar="POOL", help="Only of this pool.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """List the sources, and how their refreshes went."""
    with ledger(context) as storage:
        if pool is not None:
            named(storage, pool)
        listed = storage.list_sources(pool)
    print_rows(
        output,
        listed,
        _COLUMNS,
        _row,
        fields=(*SourceStatus.model_fields, "next_due_at", "state"),
        attributes=_attributes,
        empty="there is no source: `pharox sources add NAME URL --pool POOL` adds one",
    )


@app.command()
def show(context: typer.Context, name: _Name, *, as_json: AsJson = False) -> None:
    """Show one source: its settings without the secrets, and its last results."""
    with ledger(context) as storage:
        status = _status_of(storage, name)
    if as_json:
        print_json(_attributes(status))
        return
    for word, value in _facts(status):
        print(f"{word:<12} {value}")


@app.command()
def remove(context: typer.Context, name: _Name) -> None:
    """Remove a source; its proxies stay in the pool. Fail if there is none."""
    with ledger(context) as storage:
        status = _status_of(storage, name)
        storage.remove_source(name)
    say(f"source {name!r} is removed; its proxies stay in pool {status.pool_name!r}")


@app.command()
def pause(context: typer.Context, name: _Name) -> None:
    """Refresh a source no more, unless it is named."""
    _switch(context, name, enabled=False)


@app.command()
def resume(context: typer.Context, name: _Name) -> None:
    """Refresh a source when it is due again."""
    _switch(context, name, enabled=True)


@app.command()
def refresh(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="These sources; all that are due if not given."),
    ] = None,
    *,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration_of,
            help="Look at this interval, until Ctrl-C, which sources are due: 30s, 1m.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fetch and compare, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch lists and bring the pools in step with them.

    What came and went is printed. A source that fails changes nothing, and the exit status is
    then 1. A source that another process refreshes is left to it.
    """
    interval = None if every is None else timedelta(seconds=every)
    if interval is not None and interval < _SHORTEST:
        raise InvalidInputError("--every must be at least 1s")
    if interval is not None and dry_run:
        raise InvalidInputError("give either --every or --dry-run")
    with ledger(context) as storage:
        done, ended_by = asyncio.run(
            _refreshed(storage, names or None, interval, dry_run=dry_run, as_json=as_json)
        )
    if interval is None and ended_by is not None:
        raise typer.Exit(128 + ended_by)
    if interval is None and any(one.outcome == "failed" for one in done):
        raise typer.Exit(1)


async def _refreshed(
    storage: PostgresStorage,
    names: Sequence[str] | None,
    every: timedelta | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> tuple[list[SourceRefresh], int | None]:
    """Refresh once or until a signal. Return the last results, and the signal or None."""
    from ..sources import refresh_sources  # noqa: PLC0415 - SQLAlchemy takes a while
    from .repeating import Stop, repeat_until_stopped  # noqa: PLC0415

    done: list[SourceRefresh] = []
    async with Stop() as stop:

        async def once() -> None:
            done[:] = await asyncio.to_thread(
                refresh_sources,
                storage,
                names,
                only_due=None if every is None else True,
                dry_run=dry_run,
                is_stopped=lambda: stop.signal is not None,
            )
            _print(done, as_json=as_json, is_repeated=every is not None)

        ended_by = await repeat_until_stopped(stop, once, every)
    return done, ended_by


def _print(done: Sequence[SourceRefresh], *, as_json: bool, is_repeated: bool) -> None:
    for one in done:
        if as_json:
            print_json(_of_refresh(one))
        elif one.outcome == "failed":
            say(f"source {one.source!r} failed, and its pool stays as it is: {one.failure}")
        elif one.outcome == "busy":
            say(f"source {one.source!r} is refreshed by another process")
        elif one.outcome == "changed" or not is_repeated:
            would = "would be: " if one.dry_run else ""
            found = "unchanged" if one.counts is None else counts_in_words(one.counts)
            print(f"{one.source}: {would}{found}", flush=True)
        for reason in one.reasons if not as_json else ():
            say(f"source {one.source!r}: {reason}; so nothing was removed")
    if not done and not is_repeated and not as_json:
        say("no source is due; name one to refresh it now")


def _of_refresh(one: SourceRefresh) -> dict[str, Any]:
    return {
        "source": one.source,
        "pool": one.pool,
        "outcome": one.outcome,
        "dry_run": one.dry_run,
        **(
            dict.fromkeys(SourceCounts.model_fields)
            if one.counts is None
            else one.counts.model_dump()
        ),
        "reasons": list(one.reasons),
        "failure": one.failure,
    }


def _switch(context: typer.Context, name: str, *, enabled: bool) -> None:
    with ledger(context) as storage:
        source = storage.get_source(name)
        storage.save_source(source.model_copy(update={"enabled": enabled}))
    say(f"source {name!r} is {'fetched when it is due' if enabled else 'paused'}")


def _status_of(storage: PostgresStorage, name: str) -> SourceStatus:
    found = [status for status in storage.list_sources() if status.name == name]
    if not found:
        raise PharoxError(f"there is no source {name!r}", source=name)
    return found[0]


def _headers(texts: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Parse headers. What cannot be parsed is not repeated: it may be a secret."""
    try:
        lines = [*texts, *(file.read_text("utf-8").splitlines() if file is not None else ())]
    except UnicodeDecodeError:
        raise InvalidInputError("the file of --header-file is not UTF-8") from None
    headers: dict[str, str] = {}
    for text in lines:
        name, colon, value = text.partition(":")
        if not text.strip():
            continue
        if not colon or not name.strip():
            raise InvalidInputError("--header needs a name and a value: 'Authorization: Token ...'")
        if name.strip().lower() in {known.lower() for known in headers}:
            raise InvalidInputError(f"--header {name.strip()} is given twice")
        headers[name.strip()] = value.strip()
    return headers


def _limit(text: str | None) -> Any:
    if text is None:
        return None
    limit = limit_of(text)
    return UNLIMITED if limit is None else limit


def _state(status: SourceStatus) -> str:
    if status.state is SourceState.FAILED:
        return f"failed {counted(max(1, status.failures), 'time', 'times')}"
    if status.state is SourceState.INCOMPLETE and status.counts is not None:
        return f"ok, {status.counts.skipped} unreadable"
    return status.state.value


def _row(status: SourceStatus) -> tuple[object, ...]:
    due = status.next_due_at
    return (
        status.name,
        status.pool_name,
        status.host,
        lasting(status.every_seconds),
        _state(status),
        status.counts and status.counts.listed,
        status.succeeded_at and in_utc(status.succeeded_at),
        due and in_utc(due),
    )


def _facts(status: SourceStatus) -> Iterator[tuple[str, object]]:
    yield from zip(_COLUMNS, ("-" if v is None else v for v in _row(status)), strict=True)
    yield "max removed", status.max_removed
    if status.options.facts:
        yield "options", ", ".join(f"{k}={v}" for k, v in status.options.facts.items())
    if status.counts is not None and status.refreshed_at is not None:
        yield "last change", f"{in_utc(status.refreshed_at)}: {counts_in_words(status.counts)}"
    if status.state is SourceState.INCOMPLETE and status.counts is not None:
        kept = counted(status.counts.kept, "proxy stays", "proxies stay")
        yield "removes", f"nothing, as long as entries cannot be read: {kept} that are not listed"
    if status.failure is not None and status.failed_at is not None:
        yield "failure", f"{in_utc(status.failed_at)}: {status.failure}"


def _attributes(status: SourceStatus) -> dict[str, Any]:
    due = status.next_due_at
    return {
        **status.model_dump(mode="json"),
        "options": status.options.facts,
        "state": status.state.value,
        "next_due_at": due and due.isoformat(),
    }
