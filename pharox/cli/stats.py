"""``pharox stats``: print the statistics of every pool, once or repeatedly."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from ..models import PoolStatsSnapshot, check_pause
from .pools import NO_POOLS
from .session import ledger
from .showing import AsJson, print_json, print_table, say, table_lines

_COLUMNS = ("pool", "proxies", "active", "available", "leased", "leases")


def stats(
    context: typer.Context,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="The interval of --watch.")
    ] = 1.0,
) -> None:
    """Show every pool in numbers."""
    check_pause(every, "--every")  # typer's minimum accepts NaN
    with ledger(context) as storage:
        if watch and not as_json and sys.stdout.isatty():
            from rich.live import Live  # noqa: PLC0415 - only where it can redraw
            from rich.text import Text  # noqa: PLC0415

            with Live(auto_refresh=False) as screen:
                while True:
                    lines = table_lines(_COLUMNS, _rows(storage.list_pool_stats()))
                    screen.update(Text("\n".join(lines), no_wrap=True), refresh=True)
                    time.sleep(every)
        _print(storage.list_pool_stats(), as_json)
        while watch:
            time.sleep(every)
            _print(storage.list_pool_stats(), as_json)


def _print(snapshots: Sequence[PoolStatsSnapshot], as_json: bool) -> None:
    if as_json:
        for snapshot in snapshots:
            print_json(snapshot)
    elif snapshots:
        print_table(_COLUMNS, _rows(snapshots))
    else:
        say(NO_POOLS)


def _rows(snapshots: Sequence[PoolStatsSnapshot]) -> list[tuple[object, ...]]:
    return [
        (
            snapshot.pool_name,
            snapshot.total_proxies,
            snapshot.active_proxies,
            snapshot.available_proxies,
            snapshot.leased_proxies,
            snapshot.total_leases,
        )
        for snapshot in snapshots
    ]
