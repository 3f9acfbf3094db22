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

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from ..models import (
    CheckFailure,
    LeaseStatus,
    MissReason,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
    UtcDatetime,
)
from ..models.building import built
from ..models.ids import NIL
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

    def parts(self) -> Sequence[EventBase]:
        """Return the events that projections fold: this one, or those that it keeps together."""
        return (self,)

    def part_of(self, proxy_id: UUID) -> EventBase | None:
        """Return what of it is about a proxy: the event itself, or the one check of many."""
        return self if self.proxy_id == proxy_id else None


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
    """A consumer asked and got nothing.

    ``count`` is how many leases were asked for at once, ``free`` how many of them
    could have been granted.
    """

    type: Literal["AcquireMissed"] = "AcquireMissed"
    consumer: str
    pool_name: str
    reason: MissReason
    selector: SelectorStrategy
    filters: dict[str, Any] | None = None
    predicate: bool = False
    count: int = 1
    free: int = 0


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


class CheckGroup(_Fact):
    """What the checks of a group have in common: fields of their :class:`HealthChecked`.

    ``stays`` is the status that the proxy has before and after.
    """

    stays: ProxyStatus
    max_concurrency: int | None = None
    applied: bool
    status: ProxyStatus
    reachable: bool
    protocol: ProxyProtocol
    attempts: int = 1
    status_code: int | None = None
    error: str | None = None
    failure: CheckFailure | None = None
    source: str | None = None


class ProxiesChecked(EventBase):
    """Probes' results that change no status, kept together because a sweep has so many of them.

    Each is a :class:`HealthChecked` that takes a tenth of the room: :meth:`checks` returns
    them. What differs from check to check is in arrays with a place for each of
    ``proxy_ids``: ``group`` is the place of its group, ``age_us`` by how many microseconds it
    was made before ``checked_at``.
    """

    MOST: ClassVar[int] = 500

    type: Literal["ProxiesChecked"] = "ProxiesChecked"
    proxy_ids: tuple[UUID, ...]
    groups: tuple[CheckGroup, ...]
    checked_at: UtcDatetime
    group: tuple[int, ...]
    age_us: tuple[int, ...]
    leases: tuple[int, ...]
    latency_ms: tuple[int | None, ...]
    mean_latency_ms: tuple[int | None, ...]
    streak: tuple[int, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        arrays = (getattr(self, name) for name in _CHECK_ARRAYS)
        if any(len(array) != len(self.proxy_ids) for array in arrays):
            raise ValueError("an array has not as many places as there are proxies")
        if any(not 0 <= number < len(self.groups) for number in self.group):
            raise ValueError("a check is of no group")
        return self

    @classmethod
    def facts_of(cls, checks: Sequence[HealthChecked]) -> dict[str, Any]:
        """Return the fields that keep these checks, which change no status, together."""
        groups: dict[CheckGroup, int] = {}
        latest = max(check.checked_at for check in checks)
        numbers = tuple(groups.setdefault(_group_of(check), len(groups)) for check in checks)
        return {
            "proxy_ids": tuple(check.proxy_id for check in checks),
            "groups": tuple(groups),
            "checked_at": latest,
            "group": numbers,
            "age_us": tuple((latest - check.checked_at) // _MICROSECOND for check in checks),
            "leases": tuple(check.before.leases for check in checks),
            **{
                name: tuple(getattr(check, name) for check in checks)
                for name in ("latency_ms", "mean_latency_ms", "streak")
            },
        }

    def checks(self) -> tuple[HealthChecked, ...]:
        """Return each check as the event that it would be alone, with this one's place."""
        return tuple(map(self._check, range(len(self.proxy_ids))))

    def parts(self) -> Sequence[EventBase]:
        """Return its checks."""
        return self.checks()

    def part_of(self, proxy_id: UUID) -> HealthChecked | None:
        """Return the check of a proxy, or None."""
        if proxy_id not in self.proxy_ids:
            return None
        return self._check(self.proxy_ids.index(proxy_id))

    def _check(self, place: int) -> HealthChecked:
        group = self.groups[self.group[place]]
        state = ProxyState(group.stays, self.leases[place], group.max_concurrency)
        return built(
            HealthChecked,
            {
                **{name: getattr(self, name) for name in _PLACED},
                **{name: getattr(group, name) for name in _GROUPED},
                "proxy_id": self.proxy_ids[place],
                "before": state,
                "after": state,
                "checked_at": self.checked_at - self.age_us[place] * _MICROSECOND,
                "latency_ms": self.latency_ms[place],
                "mean_latency_ms": self.mean_latency_ms[place],
                "streak": self.streak[place],
            },
        )


_MICROSECOND = timedelta(microseconds=1)
_CHECK_ARRAYS = ("group", "age_us", "leases", "latency_ms", "mean_latency_ms", "streak")
_PLACED = (
    "seq",
    "position",
    "recorded_at",
    "schema_version",
    "pool_id",
    "actor",
    "correlation_id",
)
_GROUPED = tuple(name for name in CheckGroup.model_fields if name in HealthChecked.model_fields)


def _group_of(check: HealthChecked) -> CheckGroup:
    facts = {name: getattr(check, name) for name in _GROUPED}
    state = check.after
    return built(
        CheckGroup, {**facts, "stays": state.status, "max_concurrency": state.max_concurrency}
    )


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
    | HealthChecked
    | ProxiesChecked,
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


def recorded_types(types: Collection[str]) -> frozenset[str]:
    """Return the types under which events of these types are recorded: checks also together."""
    together = {"ProxiesChecked"} if "HealthChecked" in types else frozenset[str]()
    return frozenset(types) | together


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
