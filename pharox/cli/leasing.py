"""``pharox acquire``, ``renew``, ``release`` and ``revoke``: lease proxies from a shell script.

    read -r lease url < <(pharox acquire public)
    curl --proxy "$url" https://example.org/
    pharox release "$lease"

A lease that cannot be printed is given back, as nobody would know its id. With an id
of the caller's it is kept, and the next attempt prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from ..errors import DatabaseError, InvalidInputError, PharoxError, ProxyUnavailableError
from ..history.describing import lasting
from ..models import (
    DEFAULT_DURATION_S,
    Lease,
    LeaseStatus,
    MissReason,
    ProxyFilters,
    ProxyProtocol,
    SelectorStrategy,
    Sticky,
    target_of,
)
from .banning import ids_named
from .checking import checked_filters, duration_of
from .session import ledger
from .showing import AsJson, in_utc, print_json

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage
    from ..storage.requests import Acquisition

_MISSES = {
    MissReason.UNKNOWN_POOL: "no pool is named {pool!r}",
    MissReason.EMPTY_POOL: "pool {pool!r} has no proxies",
    MissReason.NO_MATCH: "no proxy of pool {pool!r} matches the filters",
    MissReason.NONE_HEALTHY: "no matching proxy of pool {pool!r} is healthy",
    MissReason.AT_CAPACITY: "every healthy matching proxy of pool {pool!r} is leased to its limit",
    MissReason.RESTING: "a matching proxy of pool {pool!r} rests after its last lease",
    MissReason.ROTATING: "a matching proxy of pool {pool!r} rests until it has another exit",
    MissReason.COOLING_DOWN: "what is free and fits in pool {pool!r} rests for {target}",
    MissReason.SESSION_BUSY: "the proxy that the session requires in pool {pool!r} is not free",
    MissReason.ALL_BOUND: "what is free and fits in pool {pool!r} is bound to other sessions",
    MissReason.TARGET_TROUBLED: "{target} is in trouble, and pool {pool!r} tries it already",
    MissReason.LIMIT_REACHED: "a limit of pool {pool!r} is reached",
    MissReason.POOL_MOVING: "pool {pool!r} is moving to another ledger; ask again in a moment",
    MissReason.POOL_MOVED: "pool {pool!r} has moved to another ledger; ask through the fleet",
}

_TIMED = (MissReason.COOLING_DOWN, MissReason.RESTING, MissReason.ROTATING)
"""The reasons that time alone ends, but for limits: the pool is asked when."""

_ENDINGS = {
    LeaseStatus.RELEASED: "been released",
    LeaseStatus.EXPIRED: "run out",
    LeaseStatus.REVOKED: "been revoked",
}


Pool = Annotated[str, typer.Argument(metavar="POOL", help="The pool's name.")]
Consumer = Annotated[str, typer.Option(metavar="NAME", help="The name of the consumer.")]
_Duration = Annotated[
    float | None,
    typer.Option(
        metavar="TIME",
        parser=duration_of,
        help="How long the lease lasts unless it is released: 30 (seconds), 5m, 2h; the pool's, or "
        "5m, if not given.",
    ),
]
Selector = Annotated[
    SelectorStrategy | None,
    typer.Option(
        metavar="SELECTOR",
        help="How to choose among the free proxies; as the pool says, or first_available, if not "
        f"given: {', '.join(SelectorStrategy)}.",
    ),
]
ProxyNames = Annotated[
    list[str] | None,
    typer.Option(
        "--proxy",
        metavar="PROXY",
        help="Only the proxy with this id, or those at this host:port or URL; may be repeated.",
    ),
]
Host = Annotated[
    list[str] | None, typer.Option(metavar="HOST", help="Only proxies at this name or address.")
]
Protocol = Annotated[
    list[ProxyProtocol] | None, typer.Option(help="Only proxies that speak this protocol.")
]
Country = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Only proxies in this country; may be repeated."),
]
City = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Only proxies in this city.")]
Source = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Only proxies from this source.")
]
Isp = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Only proxies of this ISP.")]
Asn = Annotated[list[int] | None, typer.Option(metavar="N", help="Only proxies in this network.")]
LeaseId = Annotated[
    str,
    typer.Argument(
        metavar="LEASE_ID", help="The lease's id, or as much of its beginning as no other has."
    ),
]
_LeaseId = Annotated[
    UUID | None,
    typer.Option(metavar="UUID", help="The lease's id; the same id again returns the same lease."),
]


Target = Annotated[
    str | None,
    typer.Option(
        metavar="HOST",
        help="What the proxy is for: one that rests for this host, or URL, is passed over.",
    ),
]
StickyKey = Annotated[
    str | None,
    typer.Option(
        "--sticky",
        metavar="KEY",
        help="Keep one proxy for this key, such as an account: the same one each time.",
    ),
]
StickyFor = Annotated[
    float,
    typer.Option(metavar="TIME", parser=duration_of, help="How long the key keeps it: 30m, 2h."),
]


class Policy(StrEnum):
    """What a sticky session does while its proxy is not free."""

    prefer = "prefer"
    require = "require"


StickyPolicy = Annotated[
    Policy,
    typer.Option(help="Whether another proxy will do while the key's own is not free."),
]
Fallback = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback",
        metavar="POOL",
        help="A pool to try if those before it have nothing; may be repeated, in that order.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        metavar="TIME",
        parser=duration_of,
        help="How long to wait in turn if nothing is free: 30 (seconds), 5m; 0: not at all.",
    ),
]


class Wanted:
    """Which proxies may be leased, by the options of a command."""

    def __init__(self, *, proxy: Sequence[str] | None, **others: Sequence[Any] | None) -> None:
        self._filters = checked_filters(**others)
        self._proxies, self._others = proxy, others
        if proxy and "" in proxy:
            raise InvalidInputError("--proxy needs a value")

    def filters(self, storage: PostgresStorage, pool: str) -> ProxyFilters | None:
        """Return the filters, for proxies of this pool; addresses are looked up."""
        if not self._proxies:
            return self._filters
        return checked_filters(proxy_id=ids_named(storage, pool, self._proxies), **self._others)


def sticky_of(key: str | None, seconds: float, policy: Policy) -> Sticky | None:
    """Return the sticky session that is asked for, if one is."""
    return None if key is None else Sticky(key, seconds, policy.value)


def missed(
    storage: PostgresStorage, pool: str, target: str | None, acquisition: Acquisition
) -> ProxyUnavailableError:
    """Return the error for an acquisition that found nothing: why, and when to come back."""
    reason, waited_ms = acquisition.miss_reason, acquisition.waited_ms
    missed_in = [(each.pool_name, each.reason) for each in acquisition.missed_in]
    descriptions = [
        _MISSES.get(why, "no proxy was free").format(pool=name, target=target and target_of(target))
        for name, why in missed_in or [(pool, reason or MissReason.NO_MATCH)]
    ]
    description = "; ".join(descriptions)
    if acquisition.limit is not None:
        description += f": {acquisition.limit}"
    seconds = acquisition.retry_after_seconds
    if reason in _TIMED:
        with suppress(DatabaseError):  # The miss is known; only its end is not.
            seconds = storage.seconds_to_next_change(pool, target)
    if seconds is not None:
        description += _ending(acquisition, seconds)
    if waited_ms is not None:
        description += f", also after {waited_ms / 1000:.1f} s of waiting"
    return ProxyUnavailableError(description, reason=reason, retry_after_seconds=seconds)


def _ending(acquisition: Acquisition, seconds: float) -> str:
    """Return how a miss ends by time alone, as the end of its sentence."""
    if acquisition.limit is None:
        return f": the first may be free in {lasting(seconds)}"
    if acquisition.limit.unit is not None:
        return f"; the next day begins in {lasting(seconds)}, at midnight UTC"
    return f"; time frees one in {lasting(seconds)}"


def acquire(
    context: typer.Context,
    pool: Pool,
    *,
    consumer: Consumer = "default",
    duration: _Duration = None,
    selector: Selector = None,
    proxy: ProxyNames = None,
    host: Host = None,
    protocol: Protocol = None,
    country: Country = None,
    city: City = None,
    source: Source = None,
    isp: Isp = None,
    asn: Asn = None,
    target: Target = None,
    sticky: StickyKey = None,
    sticky_for: StickyFor = 1800,
    sticky_policy: StickyPolicy = Policy.prefer,
    fallback: Fallback = None,
    lease_id: _LeaseId = None,
    wait: Wait = 0,
    as_json: AsJson = False,
) -> None:
    """Lease a proxy; print the lease's id and the proxy's URL.

    The URL includes the proxy's credentials, for curl and other programs. With --wait it takes its
    turn in the pool's queue if nothing is free. With --fallback other pools are tried,
    too. The exit status is 75 if nothing is free now.
    """
    from ..storage.requests import AcquireRequest  # noqa: PLC0415 - SQLAlchemy takes a while to import

    wanted = Wanted(
        proxy=proxy,
        host=host,
        protocol=protocol,
        country=country,
        city=city,
        source=source,
        isp=isp,
        asn=asn,
    )
    with ledger(context) as storage:
        request = AcquireRequest(
            pool,
            consumer,
            DEFAULT_DURATION_S if duration is None else duration,
            wanted.filters(storage, pool),
            selector,
            lease_id=lease_id,
            wait_seconds=wait,
            target=target,
            sticky=sticky_of(sticky, sticky_for, sticky_policy),
            fallback=fallback or (),
        )
        acquisition = storage.acquire_lease(request)
        if acquisition.lease is None:
            raise missed(storage, pool, target, acquisition)
        try:
            hand_over(acquisition.lease, as_json=as_json)
        except BaseException:
            if lease_id is None:
                storage.return_lease(acquisition.lease, reason="could not be handed over")
            raise


def renew(
    context: typer.Context,
    lease_id: LeaseId,
    duration: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration_of,
            help="How long from now: 30 (seconds), 5m, 2h; as long as before by default.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Extend a lease from now on; fail if it has ended."""
    from ..storage.requests import RenewRequest  # noqa: PLC0415 - SQLAlchemy takes a while to import

    with ledger(context) as storage:
        lease = known_lease(storage, lease_id)
        (outcome,) = storage.renew_leases([RenewRequest(lease, duration)])
        if isinstance(outcome, PharoxError):
            raise outcome
    if as_json:
        print_json(lease)
    else:
        lasts_s = (lease.expires_at - (lease.renewed_at or lease.acquired_at)).total_seconds()
        is_bounded = duration is not None and lasts_s < duration
        why = "; its pool allows no longer" if is_bounded else ""
        print(f"{lease.id} renewed until {in_utc(lease.expires_at)}{why}")


def release(
    context: typer.Context,
    lease_id: LeaseId,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The reason, for the log.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a lease back; fail if it has already ended."""
    with ledger(context) as storage:
        lease = known_lease(storage, lease_id)
        if storage.return_lease(lease, reason=reason).ending is None:
            how = _ENDINGS[lease.status]
            at = in_utc(lease.released_at) if lease.released_at else "an unknown time"
            why = f": {lease.revoke_reason}" if lease.revoke_reason else ""
            raise PharoxError(
                f"lease {lease.id} had already {how}, at {at}{why}", lease_id=lease.id
            )
    if as_json:
        print_json(lease)
    else:
        print(f"{lease.id} released after {(lease.duration_ms or 0) / 1000:.3f} s")


def revoke(
    context: typer.Context,
    lease_id: LeaseId,
    *,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="The reason, for the log and the holder.")
    ],
    as_json: AsJson = False,
) -> None:
    """End the lease of somebody else, whose proxy is then free; fail if it has already ended."""
    from ..history.finding import find_lease  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..storage.requests import RevokeRequest  # noqa: PLC0415

    with ledger(context) as storage:
        found = find_lease(storage, lease_id)
        (outcome,) = storage.revoke_leases(RevokeRequest((found,), reason))
    if isinstance(outcome, PharoxError):
        raise outcome
    lease = outcome.lease
    if as_json:
        print_json(lease)
    else:
        print(f"{lease.id} revoked after {(lease.duration_ms or 0) / 1000:.3f} s")


def known_lease(storage: PostgresStorage, beginning: str) -> Lease:
    """Return the lease whose id begins so, or raise the error for an id that no lease has."""
    from ..history.finding import find_lease  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..storage.requests import no_lease  # noqa: PLC0415

    lease_id = find_lease(storage, beginning)
    lease = storage.get_lease(str(lease_id))
    if lease is None:
        raise no_lease(lease_id)
    return lease


def hand_over(lease: Lease, *, as_json: bool) -> None:
    """Print a lease with the URL of its proxy, credentials included."""
    url = lease.proxy.url
    if as_json:
        print_json({**lease.model_dump(mode="json"), "url": url})
    else:
        print(lease.id, url, flush=True)
