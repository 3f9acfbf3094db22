"""The list of a pool's proxies: each with who holds it, its last check, and what it rests for.

Proxies, leases and pairs are read in the order of the proxies' ids, a page at a time, and joined
as they come. So a list of any length needs no more than a page of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from ..history.describing import lasting, shown_status
from ..models import HealthCheckResult, HeldLease, Proxy, TargetOutcomes
from .narrowing import Cell, print_fitting, shortened
from .output import Format
from .pools import costs
from .showing import PAGE, in_utc

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

T = TypeVar("T")

LISTED = 3
"""How many holders, and how many targets, a cell of the table names."""


class InUse(NamedTuple):
    """A proxy, its newest check if there is one, its leases, and the targets it rests for."""

    proxy: Proxy
    check: HealthCheckResult | None
    leases: Sequence[HeldLease]
    cooling: Sequence[TargetOutcomes]


def in_use(storage: PostgresStorage, pool_name: str, proxies: Iterable[Proxy]) -> Iterator[InUse]:
    """Yield proxies of a pool, which come in the order of their ids, with what concerns them."""
    held = _ByProxy(_pages(lambda last: storage.list_held_leases(pool_name, after=last)))
    resting = _ByProxy(
        _pages(lambda last: storage.list_target_outcomes(pool_name, cooling=True, after=last))
    )
    listed = iter(proxies)
    while page := list(islice(listed, PAGE)):
        checks = storage.last_checks([proxy.id for proxy in page])
        for proxy in page:
            yield InUse(proxy, checks.get(proxy.id), held.of(proxy.id), resting.of(proxy.id))


def _pages(read: Callable[[Any], Sequence[T]]) -> Iterator[T]:
    """Yield rows page by page; a page is read after the last row of the one before it."""
    last: T | None = None
    while page := read(last):
        yield from page
        last = page[-1]


class _ByProxy(Generic[T]):
    """Rows that come in the order of their proxies' ids, in groups of a proxy."""

    def __init__(self, rows: Iterator[T]) -> None:
        self._groups = groupby(rows, attrgetter("proxy_id"))
        self._id: UUID | None = None
        self._rows: list[T] = []
        self._step()

    def of(self, proxy_id: UUID) -> list[T]:
        """Return the rows of a proxy; the ids that are asked for must increase."""
        while self._id is not None and self._id < proxy_id:
            self._step()
        return self._rows if self._id == proxy_id else []

    def _step(self) -> None:
        self._id, rows = next(self._groups, (None, iter(())))
        self._rows = list(rows)


def print_listed(output: Format, listed: Iterable[InUse], *, wide: bool) -> None:
    """Print proxies with what concerns them, without credentials."""
    print_fitting(
        output,
        listed,
        _CELLS,
        fields=(*(name for name in Proxy.model_fields if name != "credentials"), *_ADDED),
        attributes=_attributes,
        spare=_SPARE,
        short=_SHORT,
        rare=_RARE,
        wide=wide,
        empty="the pool has no proxies, or none that matches",
    )


_CELLS: dict[str, Cell[InUse]] = {
    "id": lambda row: row.proxy.id,
    "url": lambda row: row.proxy.url,
    "status": lambda row: shown_status(row.proxy.status, drains=row.proxy.draining),
    "leases": lambda row: row.proxy.current_leases,
    "limit": lambda row: row.proxy.max_concurrency,
    "held by": lambda row: _some([lease.consumer_name or "" for lease in row.leases]),
    "ms": lambda row: (row.check and row.check.latency_ms) or None,
    "last check": lambda row: row.check and in_utc(row.check.checked_at),
    "cools down for": lambda row: _some([_rest(pair) for pair in row.cooling]),
    "rests until": lambda row: row.proxy.rests_until and in_utc(row.proxy.rests_until),
    "banned until": lambda row: row.proxy.banned_until and in_utc(row.proxy.banned_until),
    "error": lambda row: row.check and row.check.error_message,
    "exit": lambda row: row.proxy.exit_ip,
    "costs": lambda row: costs(row.proxy),
    "weight": lambda row: row.proxy.weight,
    "template": lambda row: "yes" if row.proxy.template else None,
    "rotates": lambda row: "yes" if row.proxy.rotates else None,
    "country": lambda row: row.proxy.country,
    "city": lambda row: row.proxy.city,
    "asn": lambda row: row.proxy.asn,
    "isp": lambda row: row.proxy.isp,
    "source": lambda row: row.proxy.source,
}
_SHORT: dict[str, Cell[InUse]] = {
    "held by": lambda row: _some([shortened(lease.consumer_name or "") for lease in row.leases]),
}
_SPARE = (
    *(
        "source",
        "isp",
        "asn",
        "city",
        "template",
        "costs",
        "weight",
        "exit",
        "id",
        "country",
        "limit",
    ),
    *("error", "last check", "leases", "ms"),
)
_RARE = (
    *("held by", "ms", "last check", "cools down for", "rests until", "banned until", "error"),
    *("exit", "costs", "weight", "template", "rotates", "country", "city", "asn", "isp", "source"),
)
_ADDED = ("latency_ms", "check_error", "held_by", "cools_down_for")


def _attributes(row: InUse) -> dict[str, Any]:
    return {
        **row.proxy.model_dump(mode="json", exclude={"credentials"}),
        "latency_ms": row.check and row.check.latency_ms,
        "check_error": row.check and row.check.error_message,
        "held_by": [
            {"consumer": lease.consumer_name, "lease_id": str(lease.id)} for lease in row.leases
        ],
        "cools_down_for": [
            {"target": pair.target, "remaining_seconds": pair.remaining_seconds}
            for pair in row.cooling
        ],
    }


def _rest(pair: TargetOutcomes) -> str:
    return f"{pair.target} ({lasting(round(pair.remaining_seconds or 0))})"


def _some(names: Sequence[str]) -> str | None:
    """Return the first few names, and how many more there are; None if there are none."""
    more = len(names) - LISTED
    shown = [*names[:LISTED], *([f"{more} more"] if more > 0 else [])]
    return ", ".join(shown) or None
