"""What a proxy is to somebody who asks for one: the parts of a gauge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from enum import StrEnum
from uuid import UUID

from ..history.past.shapes import PoolThen, ProxyThen


class Share(StrEnum):
    """What a proxy is to somebody who asks for one. Each proxy of a pool is one of these.

    LEASED: it has no room for another lease. FREE: it can be leased now. RESTING: it has room, and
    rests after a lease. SLOW: it has room, and is offered only if the pool allows slow ones. DOWN:
    its checks fail. BANNED: a person or a check banned it.
    """

    LEASED = "leased"
    FREE = "free"
    RESTING = "resting"
    SLOW = "slow"
    DOWN = "down"
    BANNED = "banned"


def share_then(proxy: ProxyThen, *, rests: bool) -> Share:
    """Return what a proxy was at a moment of the past."""
    if proxy.status in ("banned", "inactive"):
        return Share.BANNED if proxy.status == "banned" else Share.DOWN
    if proxy.most is not None and proxy.leases >= proxy.most:
        return Share.LEASED
    if rests:
        return Share.RESTING
    return Share.SLOW if proxy.status == "slow" else Share.FREE


def shares_then(state: PoolThen, resting: Container[UUID]) -> dict[Share, int]:
    """Return how many proxies of a pool were what at a moment of the past, when some rested."""
    counts = Counter(
        share_then(proxy, rests=proxy_id in resting) for proxy_id, proxy in state.proxies.items()
    )
    return {share: counts[share] for share in Share}
