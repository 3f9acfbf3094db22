"""What commands print of a whole fleet: each row with its ledger, and which ledgers are missing.

A ledger that is missing is said on standard error, and what there is of the others is printed: the
exit status stays 0. Whoever needs to know asks ``pharox fleet list``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer

from ..errors import InvalidInputError
from ..models import HeldLease, PoolStatsSnapshot, utc_now
from ..models.moments import behind, end_of, start_of
from .output import Format, attributes_of, print_rows
from .paging import print_lines
from .session import fleet
from .showing import in_utc, print_json, say

if TYPE_CHECKING:
    from datetime import datetime

    from ..events import Event
    from ..fleet import Fleet
    from ..fleet.merging import InLedger
    from ..history.audit import Entry
    from .event_lines import PoolNames
    from .story import Line

_STATS = ("ledger", "pool", "proxies", "active", "available", "leased", "leases")
_LEASES = ("ledger", "lease", "pool", "proxy", "consumer", "acquired", "remaining")


def say_missing(missing: Mapping[str, Exception]) -> None:
    """Say which ledgers did not answer, and why: the first line of each error."""
    for name, error in missing.items():
        say(f"the ledger {name!r} is missing: {str(error).splitlines()[0]}")


def check_of_all(options: Mapping[str, object]) -> None:
    """Raise InvalidInputError for an option that is only about one ledger."""
    for option, value in options.items():
        if value not in (None, False, (), []):
            raise InvalidInputError(
                f"{option} is about one ledger of the fleet: say which by --ledger"
            )


def print_stats(
    context: typer.Context, pool: str | None, output: Format, every_s: float | None
) -> None:
    """Print the statistics of all pools or of one, and again after so many seconds, if given."""
    fields = ("ledger", *PoolStatsSnapshot.model_fields)
    with fleet(context) as opened:
        while True:
            found = opened.stats()
            rows = [row for row in found if pool in (None, row.value.pool_name)]
            print_rows(output, rows, _STATS, _stats_row, fields=fields, attributes=_with_ledger)
            say_missing(found.missing)
            if every_s is None:
                return
            time.sleep(every_s)


def print_leases(
    context: typer.Context, pool: str | None, consumer: str | None, output: Format
) -> None:
    """Print the leases that are held now, ledger by ledger."""
    fields = ("ledger", *HeldLease.model_fields)
    with fleet(context) as opened:
        found = opened.leases(pool, consumer_name=consumer)
        print_rows(
            output,
            found,
            _LEASES,
            _lease_row,
            fields=fields,
            attributes=_with_ledger,
            empty="nothing is leased",
        )
        say_missing(found.missing)


def print_log(
    context: typer.Context,
    since: str | None,
    until: str | None,
    consumer: str | None,
    pool: str | None,
    types: Collection[str],
    limit: int | None,
    *,
    as_json: bool,
) -> None:
    """Print the events of all ledgers by time, each with its ledger and its seq there.

    In JSON the ledger is `log`: an event may be about another ledger itself.
    """
    from pharox.log import Extract  # noqa: PLC0415 - SQLAlchemy takes a while to import

    from .event_lines import line_of  # noqa: PLC0415

    first, last = _window(since, until)
    extract = Extract(types=types or None, consumer=consumer, since=first, until=last)
    with fleet(context) as opened:
        names = _pool_names(opened)
        events, missing = opened.log(extract)
        chosen = (row for row in events if pool in (None, names(row)))
        for row in islice(chosen, limit):
            if as_json:
                print_json({"log": row.ledger, **row.value.model_dump(mode="json")}, flush=False)
            else:
                print(f"{row.ledger} {line_of(row.value, names(row))}")
        say_missing(missing)


def print_story(
    context: typer.Context,
    consumer: str,
    begin: str | None,
    end: str | None,
    *,
    as_json: bool,
    paged: bool,
) -> None:
    """Print what a consumer leased and gave back in all ledgers, and each miss, by time."""
    from .audit import attributes_of as attributes_of_entry  # noqa: PLC0415 - it imports this

    since, until = _window(begin, end)
    with fleet(context) as opened:
        entries, missing = opened.audit_consumer(consumer, since=since, until=until)
        if as_json:
            for row in entries:
                print_json({"log": row.ledger, **attributes_of_entry(row.value)}, flush=False)
        else:
            print_lines(_lines(consumer, entries, max(map(len, opened.ledgers))), paged=paged)
        say_missing(missing)


def _lines(consumer: str, entries: Iterator[InLedger[Entry]], width: int) -> Iterator[Line]:
    """Yield the lines of a story, day by day, each with its ledger and the seq there."""
    from ..history.audit import Totals  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..history.describing import clock, day_of  # noqa: PLC0415
    from .story import Line, Tone, adds_up, described, tone_of  # noqa: PLC0415

    yield Line(f"consumer {consumer}", tone=Tone.HEADING)
    totals, day = Totals(), None
    for ledger, entry in entries:
        totals.add(entry)
        if (today := day_of(entry.event.recorded_at)) != day:
            day = today
            yield from (Line(""), Line(today, tone=Tone.HEADING))
        margin = f"  {clock(entry.event.recorded_at)}  {ledger:<{width}}  {entry.event.seq:>7}  "
        words = described(entry)
        yield Line(words.sentence, margin, tone_of(entry))
        for text in words.details:
            yield Line(text, " " * len(margin), Tone.DETAIL)
    yield Line("")
    yield Line(adds_up("consumer", totals) if day else "nothing happened in this time")


def _window(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Return two moments; a seq is of one ledger, and so is none here."""
    now = utc_now()
    first = None if since is None else start_of(since, now)
    last = None if until is None else behind(end_of(until, now))
    if isinstance(first, int) or isinstance(last, int):
        raise InvalidInputError("each ledger counts its events itself: give times, not a seq")
    return first, last


def _pool_names(opened: Fleet) -> Callable[[InLedger[Event]], str]:
    """Return a function that returns the name of an event's pool as it was then."""
    from .log import names_of  # noqa: PLC0415 - it imports this module

    names: dict[str, PoolNames] = {}

    def name(row: InLedger[Event]) -> str:
        if row.ledger not in names:
            storage = opened.ledgers[row.ledger].storage
            names[row.ledger] = names_of(storage, storage.list_pools())
        return names[row.ledger].of(row.value)

    return name


def _with_ledger(row: InLedger[Any]) -> dict[str, Any]:
    return {"ledger": row.ledger, **attributes_of(row.value)}


def counts_of(stats: PoolStatsSnapshot) -> tuple[object, ...]:
    """Return a pool's name and its counts, as a table has them."""
    return (
        stats.pool_name,
        stats.total_proxies,
        stats.active_proxies,
        stats.available_proxies,
        stats.leased_proxies,
        stats.total_leases,
    )


def _stats_row(row: InLedger[PoolStatsSnapshot]) -> tuple[object, ...]:
    return row.ledger, *counts_of(row.value)


def _lease_row(row: InLedger[HeldLease]) -> tuple[object, ...]:
    lease = row.value
    return (
        row.ledger,
        lease.id,
        lease.pool_name,
        lease.address,
        lease.consumer_name,
        in_utc(lease.acquired_at),
        f"{lease.remaining_seconds:.0f} s",
    )
