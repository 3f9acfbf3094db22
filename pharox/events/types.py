"""The events that the log keeps, named in the past tense.

An event is decided once, under the lock of its proxy, and never changed. It carries
everything that its folds need: an event about a proxy has the proxy's state ``before``
and ``after`` (None before registration and after removal). A fold therefore only sums,
or takes the last state, over one event or a million.

An event never carries a secret: ``credential_id`` refers to a row of another
table. A predicate is code and is not recorded; ``predicate=True`` says that
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
    CoolDown,
    LeaseStatus,
    MissReason,
    OutcomeKind,
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
"""The event fields that are columns of the log. All other fields are its data."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class ProxyState:
    """The state of a proxy, on which lease decisions are based."""

    status: ProxyStatus
    leases: int
    max_concurrency: int | None = None

    @property
    def has_capacity(self) -> bool:
        """Whether the proxy can take one more lease."""
        return self.max_concurrency is None or self.leases < self.max_concurrency

    @property
    def is_available(self) -> bool:
        """Whether the pool's statistics count it as available."""
        return self.status is ProxyStatus.ACTIVE and self.has_capacity

    def with_leases(self, leases: int) -> ProxyState:
        """Return this state with another number of leases."""
        return ProxyState(self.status, leases, self.max_concurrency)


class EventBase(_Fact):
    """The fields that all events have.

    ``position`` is assigned when the event is appended. ``seq`` is assigned when it is
    sealed: its place in the readers' order, without gaps (0 until then). ``recorded_at``
    is by the storage's clock. ``actor`` and ``correlation_id`` say who did it and in
    which job.
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
        """Return the events that projections fold: this one, or the ones that it contains."""
        return (self,)

    def part_of(self, proxy_id: UUID) -> EventBase | None:
        """Return the part about a proxy: the event itself, or one of its checks."""
        return self if self.proxy_id == proxy_id else None


class _PoolEvent(EventBase):
    name: str
    description: str | None = None
    lease_slow: bool = False
    rest_after_release_seconds: float | None = None
    rest_after_expiry_seconds: float | None = None
    max_held_seconds: float | None = None
    cool_down: CoolDown | None = None
    selector: SelectorStrategy | None = None
    lease_seconds: float | None = None
    max_concurrency: int | None = None


class PoolRegistered(_PoolEvent):
    """A pool was created."""

    type: Literal["PoolRegistered"] = "PoolRegistered"


class PoolChanged(_PoolEvent):
    """A pool's name, description or rule for SLOW proxies was changed."""

    type: Literal["PoolChanged"] = "PoolChanged"


class PoolRemoved(EventBase):
    """A pool was removed. Earlier events removed its proxies."""

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
    """The common base of ProxyRegistered and ProxyChanged: a proxy's full description."""

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
    """A proxy was added to its pool."""

    type: Literal["ProxyRegistered"] = "ProxyRegistered"


class ProxyChanged(ProxyDescribed):
    """A person changed a proxy's description, capacity or status; ``reason`` may say why.

    With ``drains`` the proxy is BANNED, and is removed when its last lease ends, unless a later
    change comes first. With ``until`` the ban is over then: whoever notices records it as a
    change to the status ``returns_to``, for the reason "ban over".
    """

    type: Literal["ProxyChanged"] = "ProxyChanged"
    before: ProxyState
    reason: str | None = None
    drains: bool = False
    until: UtcDatetime | None = None
    returns_to: ProxyStatus | None = None


class ProxyRemoved(_ProxyEvent):
    """A proxy was removed from its pool, after its leases were released."""

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
    """A consumer got a proxy until ``expires_at``. With ``own_id`` it chose the lease id.

    ``target`` is the host that it asked for the proxy for, if it said so, and ``session`` the key
    of the sticky session.

    ``waited_ms`` is how long it waited in the pool's queue, in milliseconds; None if it did not.
    """

    type: Literal["LeaseAcquired"] = "LeaseAcquired"
    expires_at: UtcDatetime
    selector: SelectorStrategy | None = None
    filters: dict[str, Any] | None = None
    predicate: bool = False
    own_id: bool = False
    waited_ms: int | None = None
    target: str | None = None
    session: str | None = None


class LeaseRenewed(EventBase):
    """A lease was renewed: it now ends at ``expires_at``. Its id and fencing token stay.

    Its holder asked for it, unless ``reason`` says that the clock went back: then the lease is
    re-dated, so that it lasts its duration from now. With ``max_held`` it ends earlier than was
    asked for, as its pool lets a lease be held no longer.
    """

    type: Literal["LeaseRenewed"] = "LeaseRenewed"
    proxy_id: UUID
    lease_id: UUID
    consumer: str
    consumer_id: UUID
    pool_name: str
    acquired_at: UtcDatetime
    expires_at: UtcDatetime
    reason: Literal["clock_went_back", "max_held"] | None = None

    @property
    def is_redated(self) -> bool:
        """Whether the lease was re-dated as the clock went back."""
        return self.reason == "clock_went_back"


class _PairEvent(EventBase):
    """The record of a proxy at a target after the event, as :class:`pharox.models.PairRecord`."""

    proxy_id: UUID
    successes: float = 0.0
    failures: float = 0.0
    streak: int = 0
    cool_downs: int = 0
    cools_until: UtcDatetime | None = None
    outcome: OutcomeKind | None = None
    status: int | None = None


class OutcomeReported(_PairEvent):
    """A holder said what became of ``count`` requests through its proxy.

    ``target`` is the host that was asked; if None, the outcome is of no pair. The pair is not
    leased before ``cools_until``.
    """

    type: Literal["OutcomeReported"] = "OutcomeReported"
    lease_id: UUID
    consumer: str
    consumer_id: UUID
    pool_name: str
    outcome: OutcomeKind
    target: str | None = None
    count: int = 1
    retry_after_seconds: float | None = None
    bytes: int | None = None
    note: str | None = None


class CoolDownSet(_PairEvent):
    """A person had a proxy rest for one target until ``cools_until``, or, if None, ended its rest.

    ``outcome`` and ``status`` are the last ones, which were reported at ``reported_at``.
    """

    type: Literal["CoolDownSet"] = "CoolDownSet"
    target: str
    reason: str | None = None
    reported_at: UtcDatetime | None = None


class TargetTroubled(EventBase):
    """A target fails for most of the proxies that were used there lately: it is to blame itself.

    ``failed`` of ``proxies`` failed there last, all within a minute. Until one succeeds, no
    further pair begins to rest, and one lease at a time is granted for the target.
    """

    type: Literal["TargetTroubled"] = "TargetTroubled"
    target: str
    pool_name: str
    proxies: int
    failed: int


class TargetRecovered(EventBase):
    """A request succeeded at a target that had been in trouble."""

    type: Literal["TargetRecovered"] = "TargetRecovered"
    target: str
    pool_name: str


class _LeaseEnd(_LeaseEvent):
    """The end of a lease. Its proxy is not leased before ``rests_until``, if that is given."""

    acquired_at: UtcDatetime
    rests_until: UtcDatetime | None = None


class LeaseReleased(_LeaseEnd):
    """A lease was released. ``reason`` says why, unless its holder was simply done."""

    type: Literal["LeaseReleased"] = "LeaseReleased"
    reason: str | None = None


class LeaseExpired(_LeaseEnd):
    """A lease expired, which freed its proxy."""

    type: Literal["LeaseExpired"] = "LeaseExpired"
    expires_at: UtcDatetime


class LeaseRevoked(_LeaseEnd):
    """Somebody else than its holder ended a lease; ``reason`` says why."""

    type: Literal["LeaseRevoked"] = "LeaseRevoked"
    reason: str


LeaseEnd = LeaseReleased | LeaseExpired | LeaseRevoked
"""An event that ends a lease."""


class LeasesPruned(EventBase):
    """Leases of a pool that ended before a given time were deleted from the read model."""

    type: Literal["LeasesPruned"] = "LeasesPruned"
    ended_before: UtcDatetime


class AcquireMissed(EventBase):
    """A consumer requested leases and got none.

    ``count`` is how many leases were requested at once, ``free`` how many of them
    could have been granted. ``waited_ms`` is how long it waited in the pool's queue, in
    milliseconds; None if it did not. ``session`` is the key of the sticky session, and
    ``session_proxy_id`` the proxy that it was bound to, if it was bound.
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
    waited_ms: int | None = None
    target: str | None = None
    session: str | None = None
    session_proxy_id: UUID | None = None


class SessionBound(EventBase):
    """A key was bound to a proxy until ``expires_at``, or its binding lives longer.

    ``country`` and ``exit_ip`` are those of the proxy. If another proxy was ``replaced``,
    ``because`` says what it was. ``inherited_from`` is the key whose binding this was before; such
    a binding comes without a lease. With ``shared`` other shared bindings may be to the proxy, too.
    """

    type: Literal["SessionBound"] = "SessionBound"
    key: str
    pool_name: str
    proxy_id: UUID
    expires_at: UtcDatetime
    target: str | None = None
    shared: bool = False
    country: str | None = None
    exit_ip: str | None = None
    replaced: UUID | None = None
    because: Literal["removed", "banned", "inactive"] | None = None
    inherited_from: str | None = None


class SessionForgotten(EventBase):
    """A key's binding ended before its time: somebody forgot it, or another key inherited it."""

    type: Literal["SessionForgotten"] = "SessionForgotten"
    key: str
    pool_name: str
    proxy_id: UUID
    inherited_by: str | None = None


class CursorMoved(EventBase):
    """Round-robin offered a proxy without leasing it, and moved on to the next one."""

    type: Literal["CursorMoved"] = "CursorMoved"
    proxy_id: UUID
    selector: SelectorStrategy = SelectorStrategy.ROUND_ROBIN


class HealthChecked(_ProxyEvent):
    """The result of a health check.

    ``applied`` is False if the proxy already has a result at least as new; then no read
    model changes. ``after`` has another status only if this result changes it. If the
    proxy thereby becomes unleasable, ``lease_ids`` has the leases held on it.
    ``streak`` is the number of consecutive results like this one, negative for
    failures. ``mean_latency_ms`` is the latency that LOWEST_LATENCY uses from now on, or
    None if this result has none. ``source`` says who provided the proxy. ``exit_ip`` is
    the address from which the target saw the proxy, if it is not the one that was known.
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
    exit_ip: str | None = None


class CheckGroup(_Fact):
    """The :class:`HealthChecked` fields that all checks of a group share.

    ``stays`` is the status of the proxy before and after.
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
    """Results of many health checks that change no status, recorded as one event.

    Each takes a tenth of the space of a :class:`HealthChecked`; :meth:`checks` returns
    them as such. The values of single checks are in arrays parallel to
    ``proxy_ids``: ``group`` is the index of the check's group, and ``age_us`` is how many
    microseconds before ``checked_at`` the check was made. ``exit_ip`` is None if no check
    found another exit.
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
    exit_ip: tuple[str | None, ...] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        arrays = [getattr(self, name) for name in _CHECK_ARRAYS]
        if self.exit_ip is not None:
            arrays.append(self.exit_ip)
        if any(len(array) != len(self.proxy_ids) for array in arrays):
            raise ValueError("an array differs in length from proxy_ids")
        if any(not 0 <= number < len(self.groups) for number in self.group):
            raise ValueError("a check has no group")
        return self

    @classmethod
    def fields_of(cls, checks: Sequence[HealthChecked]) -> dict[str, Any]:
        """Return the fields of an event with these checks, which must not change a status."""
        groups: dict[CheckGroup, int] = {}
        latest = max(check.checked_at for check in checks)
        exits = tuple(check.exit_ip for check in checks)
        numbers = tuple(groups.setdefault(_group_of(check), len(groups)) for check in checks)
        return {
            "proxy_ids": tuple(check.proxy_id for check in checks),
            "groups": tuple(groups),
            "checked_at": latest,
            "group": numbers,
            "age_us": tuple((latest - check.checked_at) // _MICROSECOND for check in checks),
            "leases": tuple(check.before.leases for check in checks),
            **{name: tuple(getattr(check, name) for check in checks) for name in _MEASURED},
            "exit_ip": exits if any(exits) else None,
        }

    def checks(self) -> tuple[HealthChecked, ...]:
        """Return each check as a single event, with the position and seq of this one."""
        return tuple(map(self._check, range(len(self.proxy_ids))))

    def parts(self) -> Sequence[EventBase]:
        """Return its checks."""
        return self.checks()

    def part_of(self, proxy_id: UUID) -> HealthChecked | None:
        """Return the check of a proxy, or None if there is none."""
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
                **{name: getattr(self, name)[place] for name in _MEASURED},
                "exit_ip": self.exit_ip and self.exit_ip[place],
            },
        )


_MICROSECOND = timedelta(microseconds=1)
_MEASURED = ("latency_ms", "mean_latency_ms", "streak")
_CHECK_ARRAYS = ("group", "age_us", "leases", *_MEASURED)
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
    fields = {name: getattr(check, name) for name in _GROUPED}
    state = check.after
    return built(
        CheckGroup, {**fields, "stays": state.status, "max_concurrency": state.max_concurrency}
    )


BAN_OVER = "ban over"
"""The reason of the ``ProxyChanged`` with which a ban ends by itself."""

Event = Annotated[
    PoolRegistered
    | PoolChanged
    | PoolRemoved
    | ConsumerRegistered
    | ProxyRegistered
    | ProxyChanged
    | ProxyRemoved
    | LeaseAcquired
    | LeaseRenewed
    | LeaseReleased
    | LeaseExpired
    | LeaseRevoked
    | LeasesPruned
    | OutcomeReported
    | CoolDownSet
    | TargetTroubled
    | TargetRecovered
    | SessionBound
    | SessionForgotten
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
"""The current schema version of each event type."""

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)
_UPCASTER = Upcaster(VERSIONS)

ENDED_STATUS = {
    "LeaseReleased": LeaseStatus.RELEASED,
    "LeaseExpired": LeaseStatus.EXPIRED,
    "LeaseRevoked": LeaseStatus.REVOKED,
}
"""The status of a lease after the event that ends it."""


def recorded_types(types: Collection[str]) -> frozenset[str]:
    """Return the types as which events of these types are recorded, including ProxiesChecked."""
    together = {"ProxiesChecked"} if "HealthChecked" in types else frozenset[str]()
    return frozenset(types) | together


def held(event: LeaseEnd) -> timedelta:
    """Return how long the lease that an event ended was held."""
    return event.recorded_at - event.acquired_at


def named_pool(event: EventBase) -> str | None:
    """Return the name of the pool if the event contains it."""
    if isinstance(event, PoolRegistered | PoolChanged | PoolRemoved):
        return event.name
    return getattr(event, "pool_name", None)


def decode(columns: dict[str, Any], data: dict[str, Any]) -> Event:
    """Return the event in a row of the log, in its current version.

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
        If the row does not have the shape of its event type.
    """
    return _ADAPTER.validate_python(_UPCASTER.upcast({**columns, **data}))
