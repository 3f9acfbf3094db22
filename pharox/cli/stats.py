"""``pharox stats``: print the statistics and queues of all pools or of one, once or repeatedly."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from ..models import PoolStatsSnapshot, QueueStats
from .checking import duration_of
from .merged import counts_of, print_stats
from .output import Format, Output, print_rows
from .pools import NO_POOLS, named
from .session import is_of_fleet, ledger
from .showing import table_lines

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

_Pool = tuple[PoolStatsSnapshot, QueueStats]

_SHORTEST_S = 0.1
_COLUMNS = ("pool", "proxies", "active", "available", "leased", "leases", "waiting", "longest wait")


def stats(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Argument(metavar="POOL", help="Only this pool; all if not given.")
    ] = None,
    *,
    output: Output = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    every: Annotated[
        float,
        typer.Option(metavar="TIME", parser=duration_of, help="The interval of --watch: 5s, 1m."),
    ] = 1.0,
) -> None:
    """Show every pool, or one, in numbers."""
    if every < _SHORTEST_S:
        raise InvalidInputError(f"--every must be at least {_SHORTEST_S}s")
    if is_of_fleet(context):
        print_stats(context, pool, output, every if watch else None)
        return
    with ledger(context) as storage:
        if watch and output is Format.TABLE and sys.stdout.isatty():
            from rich.live import Live  # noqa: PLC0415 - only where it can redraw
            from rich.text import Text  # noqa: PLC0415

            with Live(auto_refresh=False) as screen:
                while True:
                    lines = table_lines(_COLUMNS, map(_row, _pools_of(storage, pool)))
                    screen.update(Text("\n".join(lines), no_wrap=True), refresh=True)
                    time.sleep(every)
        _print(_pools_of(storage, pool), output)
        while watch:
            time.sleep(every)
            _print(_pools_of(storage, pool), output)


def _pools_of(storage: PostgresStorage, pool: str | None) -> list[_Pool]:
    """Return the statistics of every pool or of one, each with its queue."""
    if pool is not None:
        named(storage, pool)
    queues = {queue.pool_name: queue for queue in storage.queue_stats(pool)}
    return [
        (stats, queues.get(stats.pool_name, QueueStats(pool_name=stats.pool_name)))
        for stats in storage.list_pool_stats()
        if pool in (None, stats.pool_name)
    ]


def _print(pools: Sequence[_Pool], output: Format) -> None:
    print_rows(
        output,
        pools,
        _COLUMNS,
        _row,
        fields=tuple({**PoolStatsSnapshot.model_fields, **QueueStats.model_fields}),
        attributes=_attributes,
        empty=NO_POOLS,
    )


def _attributes(pool: _Pool) -> dict[str, Any]:
    stats, queue = pool
    return {**stats.model_dump(mode="json"), **queue.model_dump(mode="json")}


def _row(pool: _Pool) -> tuple[object, ...]:
    stats, queue = pool
    return (
        *counts_of(stats),
        queue.waiting,
        f"{queue.longest_wait_seconds:.1f} s" if queue.waiting else None,
    )
