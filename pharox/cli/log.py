"""``pharox log``: print the events in the order in which they were appended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Annotated, cast, get_args
from uuid import UUID

import typer

from ..errors import InvalidInputError, PoolNotFoundError
from ..events import Event
from ..models import ProxyPool, utc_now
from ..models.moments import behind, end_of, start_of
from .event_lines import PoolNames, line_of
from .merged import check_of_all, print_log
from .session import is_of_fleet, ledger
from .showing import AsJson, print_json

if TYPE_CHECKING:
    from pharox.log import Extract

    from ..storage.postgres import PostgresStorage

OfPool = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only events of this pool; a name or an id.")
]
OfTypes = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TYPE", help="Only events of this type; may be repeated."),
]
WHEN = "TIME|SEQ"


def log(
    context: typer.Context,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for new events, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
    after: Annotated[
        int | None,
        typer.Option(
            metavar="SEQ",
            help="Begin after this event; if not given, at the first event, or with --follow at "
            "the next one.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after so many events.")
    ] = None,
    last: Annotated[
        int | None,
        typer.Option("--last", "-n", min=1, metavar="N", help="Only the last so many events."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar=WHEN,
            help="Only events from a time on (2026-01-31T12:00Z), a time ago (2h), or a seq.",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar=WHEN, help="Only events up to then, inclusive.")
    ] = None,
    pool: OfPool = None,
    consumer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only events of this consumer; a name or an id."),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="PROXY", help="Only events of this proxy: its id, host:port or its URL."
        ),
    ] = None,
    types: OfTypes = None,
) -> None:
    """Print the events, oldest first, one per line.

    With --follow and --last or --since, what there is comes first, then what happens.
    """
    wanted = known_types(types or ())
    if follow and until is not None:
        raise InvalidInputError("--follow has no end, so give either it or --until")
    if is_of_fleet(context):
        of_one = {"--follow": follow, "--last": last, "--after": after, "--proxy": proxy}
        check_of_all(of_one)
        print_log(context, since, until, consumer, pool, wanted, limit, as_json=as_json)
        return
    with ledger(context) as storage:
        pools = storage.list_pools()
        if pool is not None and all(pool != known.name for known in pools):
            _check_pool(storage, pool)
        names = names_of(storage, pools)
        extract = _extract(storage, since, until, consumer, proxy)._replace(types=wanted or None)
        extract = extract._replace(after=max(extract.after, after or 0))

        def is_of_pool(event: Event) -> bool:
            return pool in (None, names.of(event), str(event.pool_id))

        only = None if pool is None else _only_pool(storage, pool)
        events = _chosen(storage, extract, is_of_pool, last, only, follow=follow, after=after)
        # An unfinished generator keeps its connection until it is closed.
        with closing(events):
            for event in islice(events, limit and min(limit, sys.maxsize)):
                if as_json:
                    print_json(event)
                else:
                    print(line_of(event, names.of(event)), flush=follow)


def names_of(storage: PostgresStorage, pools: Sequence[ProxyPool]) -> PoolNames:
    """Return the names of pools; an index has the few events that name one."""
    from pharox.log import Extract  # noqa: PLC0415 - SQLAlchemy takes a while to import

    from ..history.sealed_log import beginning  # noqa: PLC0415

    begin = beginning(storage)
    first = {row.id: row.name for row in begin.rows("pools").values()}
    namings = storage.history(Extract(begin.seq, types=("PoolRegistered", "PoolChanged")))
    return PoolNames({pool.id: pool.name for pool in pools} | first, namings)


def _extract(
    storage: PostgresStorage,
    since: str | None,
    until: str | None,
    consumer: str | None,
    proxy: str | None,
) -> Extract:
    """Return the part of the log that the options name, for which it has indexes."""
    from ..history.audit import extract_between  # noqa: PLC0415 - SQLAlchemy takes a while
    from ..history.finding import find_consumer, find_proxy  # noqa: PLC0415
    from ..history.sealed_log import beginning  # noqa: PLC0415

    now = utc_now()
    extract = extract_between(
        storage,
        None if since is None else start_of(since, now),
        None if until is None else behind(end_of(until, now)),
    )
    if consumer is not None:
        found = find_consumer(storage, consumer, beginning(storage))
        extract = extract._replace(consumer=found.name)
    if proxy is not None:
        extract = extract._replace(proxy_id=find_proxy(storage, proxy, beginning(storage)).id)
    return extract


def _chosen(
    storage: PostgresStorage,
    extract: Extract,
    is_of_pool: Callable[[Event], bool],
    last: int | None,
    pool_id: UUID | None,
    *,
    follow: bool,
    after: int | None,
) -> Generator[Event]:
    """Yield the events that are asked for, those that happen from now on included if followed.

    ``pool_id`` is that of the only pool that has had any of them up to now, if there is one.
    """
    from ..history.latest import latest  # noqa: PLC0415 - SQLAlchemy takes a while to import

    upto = storage.seal()
    known = extract._replace(upto=min(upto, extract.upto), pool_id=pool_id)
    is_new_only = (
        follow and after is None and last is None and not extract.after and not extract.since
    )
    if last is not None:
        yield from latest(storage, known, last, is_of_pool)
    elif not is_new_only:
        with closing(cast("Generator[Event]", storage.history(known))) as events:
            yield from filter(is_of_pool, events)
    if follow:
        with closing(cast("Generator[Event]", storage.follow(max(upto, extract.after)))) as coming:
            held = (extract.part(event) for event in coming if extract.holds(event))
            yield from filter(is_of_pool, held)


def _only_pool(storage: PostgresStorage, pool: str) -> UUID | None:
    """Return the id of the pool that all events of a name are of; None if they are of several.

    An index finds what is of a pool. A name may have been that of several pools, or be new, and who
    asked for it before the pool was there missed without one.
    """
    from pharox.log import Extract  # noqa: PLC0415 - SQLAlchemy takes a while to import

    from ..history.sealed_log import beginning  # noqa: PLC0415
    from ..models.ids import NIL  # noqa: PLC0415

    begin = beginning(storage)
    named = [(row.id, row.name) for row in begin.rows("pools").values()]
    namings = Extract(begin.seq, types=("PoolRegistered", "PoolChanged"))
    named += [(event.pool_id, event.name) for event in storage.history(namings)]  # type: ignore[union-attr]
    ids = {pool_id for pool_id, name in named if name == pool}
    if not ids and pool in {str(pool_id) for pool_id, _ in named}:
        return UUID(pool)
    if len(ids) != 1 or {name for pool_id, name in named if pool_id in ids} != {pool}:
        return None
    without = Extract(begin.seq, types=("AcquireMissed",), pool_id=NIL)
    with closing(cast("Generator[Event]", storage.history(without))) as misses:
        is_missed = any(getattr(miss, "pool_name", None) == pool for miss in misses)
    return None if is_missed else ids.pop()


def _check_pool(storage: PostgresStorage, pool: str) -> None:
    """Raise an error for a pool that never existed and was never requested."""
    from ..history.pool_names import find_pool  # noqa: PLC0415 - SQLAlchemy takes a while to import

    try:
        find_pool(storage, pool)
    except PoolNotFoundError as error:
        if not error.data["asked_by"]:
            raise


def known_types(types: Sequence[str]) -> frozenset[str]:
    """Return the requested event types, or raise an error for an unknown one."""
    known = {event.model_fields["type"].default for event in get_args(get_args(Event)[0])}
    for name in types:
        if name not in known:
            raise InvalidInputError(
                f"there is no event type {name!r}; the types are {', '.join(sorted(known))}"
            )
    return frozenset(types)
