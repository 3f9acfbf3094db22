"""``pharox targets`` and ``pharox cooldown``: how proxies fare at targets, and rests by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from ..models import TargetOutcomes, TargetSummary
from ..models.text import escape_unprintable, url_of
from .banning import Reason, proxies_named
from .checking import duration_of
from .describing import counted, lasting
from .pools import named
from .session import ledger
from .showing import PAGE, AsJson, in_utc, print_json, print_table, say

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

_Listed = TargetOutcomes | TargetSummary
_Row = tuple[object, ...]

_TARGETS = ("target", "pool", "proxies", "resting", "succeeded", "last refusal", "next back")
_PAIRS = ("proxy", "target", "pool", "last", "reported", "in a row", "succeeded", "rests for")

_Target = Annotated[
    str | None,
    typer.Option("--target", metavar="HOST", help="Only this target: a host, or a URL with one."),
]


def targets(
    context: typer.Context,
    *,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Only proxies of this pool.")
    ] = None,
    target: _Target = None,
    proxy: Annotated[
        str | None,
        typer.Option(metavar="PROXY", help="Only this proxy: its id, host:port or URL."),
    ] = None,
    cooling: Annotated[
        bool, typer.Option("--cooling", help="Only proxies that rest for a target now, one by one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the targets that outcomes were reported of, and how many proxies rest for each.

    With --target, --proxy or --cooling it lists proxies, each with its last outcome there.
    """
    with ledger(context) as storage:
        if pool is not None:
            named(storage, pool)
        if target is None and proxy is None and not cooling:
            _print(_TARGETS, _summaries(storage, pool), _target_row, as_json)
            return
        chosen: dict[str, Any] = {"target": target, "cooling": cooling}
        if proxy is not None:
            chosen["proxy_id"] = proxies_named(storage, [proxy])[0].id
        _print(_PAIRS, _pairs(storage, pool, chosen), _pair_row, as_json)


def cooldown(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="PROXY", help="The proxy's id, host:port or URL.")],
    *,
    target: Annotated[
        str, typer.Option(metavar="HOST", help="For which target: a host, or a URL with one.")
    ],
    duration: Annotated[
        float | None,
        typer.Option("--for", metavar="TIME", parser=duration_of, help="How long: 90s, 30m, 2h."),
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End its rest now.")] = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Have a proxy rest for one target, or end that; for others it is leased as before."""
    from ..storage.reports import CoolDownRequest  # noqa: PLC0415 - it takes a while to import

    if end == (duration is not None):
        raise InvalidInputError("give either --for TIME or --end")
    with ledger(context) as storage:
        (proxy,) = proxies_named(storage, [name])
        request = CoolDownRequest(proxy.id, target, duration, reason)
        until = storage.set_cool_down(request)
    if as_json:
        print_json(
            {
                "proxy_id": str(proxy.id),
                "target": request.target,
                "cools_until": until and until.isoformat(),
            }
        )
        return
    address = f"{url_of(proxy.protocol, proxy.host, proxy.port)} ({proxy.id})"
    rests = "no longer rests" if until is None else "rests"
    when = "" if until is None else f" until {in_utc(until)}"
    print(escape_unprintable(f"{address} {rests} for {request.target}{when}"))


def _print(
    columns: tuple[str, ...], listed: Iterator[_Listed], row: Callable[[Any], _Row], as_json: bool
) -> None:
    """Print what is listed, or say that there is nothing yet."""
    first = next(listed, None)
    if as_json:
        for each in chain([first] if first else [], listed):
            print_json(each)
    elif first is None:
        say("there is nothing to show: `pharox targets` lists what holders of leases report")
    else:
        print_table(columns, map(row, chain([first], listed)))


def _summaries(storage: PostgresStorage, pool: str | None) -> Iterator[TargetSummary]:
    """Yield targets, page by page."""
    last, is_full = None, True
    while is_full:
        page = storage.summarize_targets(pool, after=last, limit=PAGE)
        yield from page
        is_full = len(page) == PAGE
        last = page[-1] if page else None


def _pairs(
    storage: PostgresStorage, pool: str | None, chosen: dict[str, Any]
) -> Iterator[TargetOutcomes]:
    """Yield pairs, page by page."""
    last, is_full = None, True
    while is_full:
        page = storage.list_target_outcomes(pool, **chosen, after=last, limit=PAGE)
        yield from page
        is_full = len(page) == PAGE
        last = page[-1] if page else None


def _target_row(target: TargetSummary) -> _Row:
    return (
        target.target,
        target.pool_name,
        target.pairs,
        target.cooling,
        _percent(target.success_share),
        target.refused_at and in_utc(target.refused_at),
        target.free_at and in_utc(target.free_at),
    )


def _pair_row(pair: TargetOutcomes) -> _Row:
    status = f" ({pair.status})" if pair.status else ""
    return (
        pair.address or f"{pair.proxy_id} (removed)",
        pair.target,
        pair.pool_name,
        pair.outcome and f"{pair.outcome.value}{status}",
        pair.reported_at and in_utc(pair.reported_at),
        _streak(pair.streak),
        _percent(pair.success_share),
        pair.remaining_seconds and lasting(pair.remaining_seconds),
    )


def _streak(streak: int) -> str | None:
    if not streak:
        return None
    if streak > 0:
        return counted(streak, "success", "successes")
    return counted(-streak, "refusal", "refusals")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
