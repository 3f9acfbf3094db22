"""``pharox usage``: what proxies were used for, and what that cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from ..models import Usage, utc_now
from ..models.moments import moment_before
from ..models.usage import USAGE_KEYS, checked_keys
from .output import Format, Output, print_rows
from .pools import named
from .session import ledger
from .showing import say

_SUMS = ("leases", "requests", "ok", "bytes", "money")
_SHARES: dict[str, Callable[[Usage], Decimal | None]] = {
    "ok": lambda usage: usage.money_per_ok,
    "request": lambda usage: usage.money_per_request,
    "lease": lambda usage: usage.money_per_lease,
}

_When = "TIME"


def usage(
    context: typer.Context,
    *,
    by: Annotated[
        str,
        typer.Option(
            metavar="LIST", help=f"What to sum up by, some of {','.join(USAGE_KEYS)}; '' for all."
        ),
    ] = "pool",
    per: Annotated[
        str | None,
        typer.Option(
            metavar="UNIT",
            help=f"Also show the money for each of these, and begin with the dearest: "
            f"{', '.join(_SHARES)}.",
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="POOL", help="Only of this pool.")] = None,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from", metavar=_When, help="Begin at a time (2026-01-31T12:00Z), or so long ago: 7d."
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar=_When, help="End before this moment.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many rows to show at most.")] = 1000,
    output: Output = Format.TABLE,
    as_csv: Annotated[bool, typer.Option("--csv", help="The same as --output csv.")] = False,
) -> None:
    """Sum up leases, requests, bytes and money from the log; what cost most comes first.

    Days are those of UTC. What was archived is not counted.
    """
    if as_csv:
        if output is not Format.TABLE:
            raise InvalidInputError("give one of --output, --json and --csv")
        output = Format.CSV
    if per is not None and per not in _SHARES:
        raise InvalidInputError(f"--per takes {', '.join(_SHARES)}, not {per!r}")
    keys = checked_keys([word.strip() for word in by.split(",") if word.strip()])
    now = utc_now()
    since, until = (None if text is None else moment_before(text, now) for text in (begin, end))
    with ledger(context) as storage:
        rows = storage.usage(keys, pool_name=pool, since=since, until=until, limit=limit)
        if not rows and pool is not None:
            named(storage, pool)  # The log may have the usage of one that was removed.
    if len(rows) == limit:
        say(f"there may be more than these {limit} rows; --limit shows more")
    columns = _columns(keys, per)
    print_rows(
        output,
        _shown(rows, keys, per),
        [name.replace("_", " ") for name in columns],
        lambda row: [_in_table(row[name]) for name in columns],
        fields=columns,
        attributes=lambda row: {name: _in_json(row[name]) for name in columns},
        empty="nothing was used: outcomes are reported with bytes, and pools have prices",
    )


def _columns(keys: Sequence[str], per: str | None) -> list[str]:
    return [*keys, *_SUMS, *([f"money_per_{per}"] if per else [])]


def _shown(rows: Sequence[Usage], keys: Sequence[str], per: str | None) -> list[dict[str, Any]]:
    """Return the rows by columns; with ``per`` the dearest first, and last what has no share."""
    columns = _columns(keys, None)
    if per is None:
        return [{name: getattr(row, name) for name in columns} for row in rows]
    share = _SHARES[per]
    priced = [({name: getattr(row, name) for name in columns}, share(row)) for row in rows]
    priced.sort(key=lambda row: Decimal(-1) if row[1] is None else row[1], reverse=True)
    return [{**row, f"money_per_{per}": money} for row, money in priced]


def _in_json(value: Any) -> Any:
    return value if value is None or isinstance(value, int | str) else str(_in_table(value))


def _in_table(value: Any) -> object:
    """Return a value for a table: an amount without an exponent."""
    return format(value, "f") if isinstance(value, Decimal) else value
