"""Find the lease, the proxy or the consumer that a person names, in the whole log.

People know a proxy by its address, a consumer by its name and a lease by the beginning of its id;
all of them may be gone by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from pharox.log import Extract
from projections import CONSUMERS, ConsumerRow

from ..errors import ConsumerNotFoundError, PharoxError, ProxyNotFoundError
from ..models import Lease
from ..models.text import without_secrets
from ..storage.validation import id_from_text
from .addresses import Addresses, proxies_at
from .pool_names import pool_names
from .sealed_log import Beginning, SealedLog

_FEW = 5
"""How many candidates an error names."""


class Leases(Protocol):
    """The part of a storage that looks up leases."""

    def lease_ids(self, beginning: str, *, limit: int = 10) -> Sequence[UUID]:
        """Return the ids of leases in the log that begin so."""

    def get_lease(self, lease_id: str) -> Lease | None:
        """Return a lease that is not pruned, or None."""


def find_lease(storage: Leases, beginning: str) -> UUID:
    """Return the id of the only lease that begins so; one that is whole is not looked up.

    Ids begin with the time: those of leases that began in the same minute share eight digits, in
    the same millisecond twelve.

    Raises
    ------
    PharoxError
        If no lease or several have such an id; ``lease_ids`` of the error has those.
    InvalidInputError
        If no id begins so, or it is too short.
    """
    if (whole := id_from_text(beginning)) is not None:
        return whole
    found = storage.lease_ids(beginning, limit=_FEW + 1)
    if not found:
        raise PharoxError(f"no lease has an id that begins with {beginning!r}", lease_id=beginning)
    if len(found) > 1:
        which = [_candidate(storage, lease_id) for lease_id in found[:_FEW]]
        more = " and more" if len(found) > _FEW else ""
        raise PharoxError(
            f"several leases begin with {beginning!r}, give more of it: {', '.join(which)}{more}",
            lease_ids=tuple(found),
        )
    return found[0]


def _candidate(storage: Leases, lease_id: UUID) -> str:
    lease = storage.get_lease(str(lease_id))
    return str(lease_id) if lease is None else f"{lease_id} ({lease.consumer_name}, {lease.status})"


class FoundProxy(NamedTuple):
    """The id of a proxy, and its last address."""

    id: UUID
    address: str


def find_proxy(log: SealedLog, proxy: str | UUID, begin: Beginning) -> FoundProxy:
    """Return the proxy of an id, or the only one that ever had an address.

    Raises
    ------
    ProxyNotFoundError
        If there never was such a proxy.
    PharoxError
        If several proxies had the address.
    """
    uuid = id_from_text(proxy) or _at_address(log, begin, str(proxy))
    address = None if uuid is None else Addresses(log, begin).last(uuid)
    if uuid is None or address is None:
        shown = without_secrets(str(proxy))
        raise ProxyNotFoundError(f"there never was a proxy {shown!r}", proxy_id=shown)
    return FoundProxy(uuid, address)


def find_consumer(log: SealedLog, consumer: str | UUID, begin: Beginning) -> ConsumerRow:
    """Return the consumer of a name, or of an id.

    Raises
    ------
    ConsumerNotFoundError
        If there never was such a consumer.
    """
    found = _consumer(log, consumer, begin)
    if found is None:
        raise ConsumerNotFoundError(
            f"there never was a consumer {str(consumer)!r}", consumer=consumer
        )
    return found


def _at_address(log: SealedLog, begin: Beginning, address: str) -> UUID | None:
    """Return the proxy that had an address, or None."""
    found = proxies_at(log, begin, address)
    if len(found) > 1:
        names = pool_names(log, begin)
        which = ", ".join(f"{proxy_id} of pool {names[found[proxy_id]]!r}" for proxy_id in found)
        raise PharoxError(
            f"{len(found)} proxies had this address; ask for one by its id: {which}",
            proxy_ids=tuple(found),
        )
    return next(iter(found), None)


def _consumer(log: SealedLog, consumer: str | UUID, begin: Beginning) -> ConsumerRow | None:
    registered = Extract(begin.seq, types=("ConsumerRegistered",))
    state = dict(begin.rows("consumers"))
    for event in log.history(registered._replace(consumer=str(consumer))):
        CONSUMERS.apply(state, event)
    named: ConsumerRow | None = state.get((str(consumer),))
    if named is not None:
        return named
    if (uuid := id_from_text(consumer)) is None:
        return None
    for event in log.history(registered):
        CONSUMERS.apply(state, event)
    return next((row for row in state.values() if row.id == uuid), None)
