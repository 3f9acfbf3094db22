"""The facts that the log keeps, in the past tense.

An event is decided once, under the lock of the proxy it is about, and never
changed. It carries what its folds need: every event that touches a proxy says
how the proxy stood ``before`` and ``after`` (None before it was registered and
after it was removed), so that a fold is a sum or takes the last one, over one
event or a million at once.

What it never carries is a secret: ``credential_id`` refers to a row of another
table. A predicate is code and is not kept either; ``predicate=True`` says that
there was one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from .ids import NIL
from .models import (
    CheckFailure,
    LeaseStatus,
    MissReason,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
    UtcDatetime,
)
from .upcasting import Upcaster

ENVELOPE = (
    "position",
    "recorded_at",
    "type",
    "schema_version",
    "pool_id",
    "proxy_id",
    "lease_id",
    "consumer",
    "actor",
    "correlation_id",
)
"""The fields that are columns of the log; all others of an event are its data."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class ProxyState:
    """How a proxy stood: what leasing decides by."""

    status: ProxyStatus
    leases: int
    max_concurrency: int | None = None

    @property
    def has_capacity(self) -> bool:
        """Whether one more lease fits."""
        return self.max_concurrency is None or self.leases < self.max_concurrency

    @property
    def is_available(self) -> bool:
        """Whether the pool's statistics count it as available."""
        return self.status is ProxyStatus.ACTIVE and self.has_capacity

    def with_leases(self, leases: int) -> ProxyState:
        """Return this state with another number of leases."""
        return ProxyState(self.status, leases, self.max_concurrency)


class EventBase(_Fact):
    """What every event has.

    ``position`` was handed out when it was appended, ``seq`` when it was sealed:
    its place in the order that readers read, without gaps (0 until then).
    ``recorded_at`` is the storage's clock; ``actor`` and ``correlation_id`` say
    who and which job.
    """

    touches_proxy: ClassVar[bool] = False

    seq: int = 0
    position: int = 0
    recorded_at: UtcDatetime
    schema_version: int = 1
    pool_id: UUID = NIL
    proxy_id: UUID | None = None
    lease_id: UUID | None = None
    consumer: str | None = None
    actor: str | None = None
    correlation_id: str | None = None


class _PoolEvent(EventBase):
    name: str
    description: str | None = None
    lease_slow: bool = False


class PoolRegistered(_PoolEvent):
    """A pool came into being."""

    type: Literal["PoolRegistered"] = "PoolRegistered"


class PoolChanged(_PoolEvent):
    """A pool has another name, description or rule for SLOW proxies."""

    type: Literal["PoolChanged"] = "PoolChanged"


class PoolRemoved(EventBase):
    """A pool is gone; the events before it removed its proxies."""

    type: Literal["PoolRemoved"] = "PoolRemoved"
    name: str


class ConsumerRegistered(EventBase):
    """A consumer was named for the first time."""

    type: Literal["ConsumerRegistered"] = "ConsumerRegistered"
    consumer: str
    consumer_id: UUID


class _ProxyEvent(EventBase):
    touches_proxy: ClassVar[bool] = True

    proxy_id: UUID
    before: ProxyState | None = None
    after: ProxyState | None = None


class ProxyDescribed(_ProxyEvent):
    """What ProxyRegistered and ProxyChanged have in common: the whole description."""

    after: ProxyState
    host: str
    port: int
    protocol: ProxyProtocol
    checked_at: UtcDatetime
    credential_id: UUID | None = None
    source: str | None = None
    country: str | None = None
    city: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    isp: str | None = None
    asn: int | None = None


class ProxyRegistered(ProxyDescribed):
    """A proxy joined its pool."""

    type: Literal["ProxyRegistered"] = "ProxyRegistered"


class ProxyChanged(ProxyDescribed):
    """A person changed a proxy's description, capacity or status; ``reason`` may say why."""

    type: Literal["ProxyChanged"] = "ProxyChanged"
    before: ProxyState
    reason: str | None = None


class ProxyRemoved(_ProxyEvent):
    """A proxy left its pool; its leases were released before."""

    type: Literal["ProxyRemoved"] = "ProxyRemoved"
    before: ProxyState


class _LeaseEvent(_ProxyEvent):
    lease_id: UUID
    consumer: str
    before: ProxyState
    after: ProxyState
    consumer_id: UUID
    pool_name: str


class LeaseAcquired(_LeaseEvent):
    """A consumer got a proxy until ``expires_at``; ``own_id``: under an id that it chose."""

    type: Literal["LeaseAcquired"] = "LeaseAcquired"
    expires_at: UtcDatetime
    selector: SelectorStrategy | None = None
    filters: dict[str, Any] | None = None
    predicate: bool = False
    own_id: bool = False


class LeaseReleased(_LeaseEvent):
    """A lease was given back; ``reason`` says why if it was not simply done with."""

    type: Literal["LeaseReleased"] = "LeaseReleased"
    acquired_at: UtcDatetime
    reason: str | None = None


class LeaseExpired(_LeaseEvent):
    """A lease ran out and its proxy was taken back."""

    type: Literal["LeaseExpired"] = "LeaseExpired"
    acquired_at: UtcDatetime
    expires_at: UtcDatetime


class LeasesPruned(EventBase):
    """The read model forgot the leases of a pool that had ended before a moment."""

    type: Literal["LeasesPruned"] = "LeasesPruned"
    ended_before: UtcDatetime


class AcquireMissed(EventBase):
    """A consumer asked and nothing was free."""

    type: Literal["AcquireMissed"] = "AcquireMissed"
    consumer: str
    pool_name: str
    reason: MissReason
    selector: SelectorStrategy
    filters: dict[str, Any] | None = None
    predicate: bool = False


class CursorMoved(EventBase):
    """Round-robin offered a proxy without leasing it, so the next one's turn came."""

    type: Literal["CursorMoved"] = "CursorMoved"
    proxy_id: UUID
    selector: SelectorStrategy = SelectorStrategy.ROUND_ROBIN


class HealthChecked(_ProxyEvent):
    """A probe's result.

    ``applied`` is False for one that is not newer than the newest; then it changes
    no read model. ``after`` has another status only if the result decides it, and
    ``lease_ids`` are the leases held on a proxy that may be leased no more by it.
    ``streak`` is how many results in a row were like this one, negative for
    failures; ``mean_latency_ms`` is what LOWEST_LATENCY goes by from now on, None
    if this result does not say. ``source`` is the proxy's: who provided it.
    """

    type: Literal["HealthChecked"] = "HealthChecked"
    before: ProxyState
    after: ProxyState
    applied: bool
    status: ProxyStatus
    reachable: bool
    latency_ms: int | None = None
    mean_latency_ms: int | None = None
    protocol: ProxyProtocol
    attempts: int = 1
    status_code: int | None = None
    checked_at: UtcDatetime
    error: str | None = None
    failure: CheckFailure | None = None
    streak: int = 0
    lease_ids: tuple[UUID, ...] = ()
    source: str | None = None


Event = Annotated[
    PoolRegistered
    | PoolChanged
    | PoolRemoved
    | ConsumerRegistered
    | ProxyRegistered
    | ProxyChanged
    | ProxyRemoved
    | LeaseAcquired
    | LeaseReleased
    | LeaseExpired
    | LeasesPruned
    | AcquireMissed
    | CursorMoved
    | HealthChecked,
    Field(discriminator="type"),
]
"""Any event, told apart by its ``type``."""

VERSIONS: dict[str, int] = {
    event.model_fields["type"].default: event.model_fields["schema_version"].default
    for event in get_args(get_args(Event)[0])
}
"""The version in which each type of event is recorded now."""

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)
_UPCASTER = Upcaster(VERSIONS)

ENDED_STATUS = {"LeaseReleased": LeaseStatus.RELEASED, "LeaseExpired": LeaseStatus.EXPIRED}
"""The status of a lease after the event that ended it."""


def held(event: LeaseReleased | LeaseExpired) -> timedelta:
    """Return for how long the lease was held that an event ended."""
    return event.recorded_at - event.acquired_at


def named_pool(event: EventBase) -> str | None:
    """Return the name that an event itself gives its pool, if it does."""
    if isinstance(event, PoolRegistered | PoolChanged | PoolRemoved):
        return event.name
    return getattr(event, "pool_name", None)


def decode(columns: dict[str, Any], data: dict[str, Any]) -> Event:
    """Return the event that a row of the log holds, in today's shape.

    Parameters
    ----------
    columns:
        The row's envelope, by the names of :data:`ENVELOPE`.
    data:
        The row's ``data`` as parsed JSON.

    Raises
    ------
    EventVersionError
        If a newer pharox recorded it.
    pydantic.ValidationError
        If no event of this version has this shape.
    """
    return _ADAPTER.validate_python(_UPCASTER.upcast({**columns, **data}))
