"""``pharox log``: print the events in the order in which they were appended."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from ..errors import InvalidInputError, PoolNotFoundError
from ..events import Event
from .event_lines import PoolNames, line_of
from .session import ledger
from .showing import AsJson, print_json

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage


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
    pool: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only events of this pool; a name or an id.")
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only events of this type; may be repeated."),
    ] = None,
) -> None:
    """Print the events, oldest first, one per line."""
    wanted = _known_types(types or ())
    with ledger(context) as storage:
        pools = storage.list_pools()
        if pool is not None and all(pool != known.name for known in pools):
            _check_pool(storage, pool)
        names = PoolNames(pools)
        events = storage.follow(after) if follow else storage.events(after=after or 0)
        # An unfinished generator keeps its connection until it is closed.
        with closing(cast("Generator[Event]", events)):
            found = ((names.of(event), event) for event in events)
            chosen = (
                (name, event)
                for name, event in found
                if pool in (None, name, str(event.pool_id)) and (not wanted or event.type in wanted)
            )
            for name, event in islice(chosen, limit and min(limit, sys.maxsize)):
                if as_json:
                    print_json(event)
                else:
                    print(line_of(event, name), flush=follow)


def _check_pool(storage: PostgresStorage, pool: str) -> None:
    """Raise an error for a pool that never existed and was never requested."""
    from ..history.pool_names import find_pool  # noqa: PLC0415 - SQLAlchemy takes a while to import

    try:
        find_pool(storage, pool)
    except PoolNotFoundError as error:
        if not error.data["asked_by"]:
            raise


def _known_types(types: Sequence[str]) -> frozenset[str]:
    """Return the requested event types, or raise an error for an unknown one."""
    known = {event.model_fields["type"].default for event in get_args(get_args(Event)[0])}
    for name in types:
        if name not in known:
            raise InvalidInputError(
                f"there is no event type {name!r}; the types are {', '.join(sorted(known))}"
            )
    return frozenset(types)
