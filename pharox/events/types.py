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

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from ..models import (
    ApiRight,
    CheckFailure,
    CoolDown,
    GatewayExit,
    LeaseStatus,
    LimitReached,
    MissReason,
    OutcomeKind,
    PoolLimits,
    PoolMissed,
    ProxyProtocol,
    ProxyStatus,
    RotationCause,
    RotationFailure,
    RotationPolicy,
    SelectorStrategy,
    SourceCounts,
    UtcDatetime,
    explores,
    seed_of,
)
from ..models.building import built
from ..models.ids import NIL
from ..models.model import Model
from ..models.money import Money, Price
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


class _Fact(Model):
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
    cool_down: Annotated[CoolDown | None, BeforeValidator(CoolDown.as_saved)] = None
    selector: SelectorStrategy | None = None
    lease_seconds: float | None = None
    max_concurrency: int | None = None
    limits: PoolLimits | None = None
    cost_per_gb: Price | None = None
    cost_per_lease: Price | None = None
    reported_failures: bool | None = None
    rotation: RotationPolicy | None = None


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
    """The common base of ProxyRegistered and ProxyChanged: a proxy's full description.

    ``placeholders`` are the names of what is filled for each lease, if the proxy is a template:
    "country lifetime session", or fewer of these. ``rotate_id`` refers to the link that gives it
    another exit, as ``credential_id`` does to its credentials.
    """

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
    cost_per_gb: Price | None = None
    cost_per_lease: Price | None = None
    placeholders: str | None = None
    weight: int | None = None
    rotate_id: UUID | None = None


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

    @property
    def stays_banned(self) -> bool:
        """Whether it was banned before and is now: ``until`` None is for good then."""
        return self.before.status is self.after.status is ProxyStatus.BANNED


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
    With ``limited`` the pool had limits, among which the lease counts; its start counts for
    ``paced_seconds`` if the pool had a pace.
    ``cost`` is what the lease costs by itself; None if nothing.
    ``exit`` is for which exit of the gateway it asks, if the proxy is a template.
    ``fallback_from`` are the pools that were asked before this one, and why each had nothing.
    ``explored`` says whether MOST_SUCCESSFUL took any proxy rather than the best.
    ``turn`` and ``next_turn`` are set by WEIGHTED: the place of the lease in the pool's order of
    turns, and that of the proxy's next one.
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
    limited: bool = False
    paced_seconds: float | None = None
    cost: Money | None = None
    exit: GatewayExit | None = None
    fallback_from: tuple[PoolMissed, ...] = ()
    turn: int | None = None
    next_turn: int | None = None

    @property
    def explored(self) -> bool:
        """Whether MOST_SUCCESSFUL took any proxy, rather than the best.

        It is drawn from the target and the time of the event.
        """
        if self.selector is not SelectorStrategy.MOST_SUCCESSFUL or self.target is None:
            return False
        return explores(seed_of(self.target, self.recorded_at))


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
    leased before ``cools_until``. ``cost`` is what the ``bytes`` cost; None if nothing.
    ``begins_rest`` says that the proxy rests for the target from this one on.
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
    cost: Money | None = None
    begins_rest: bool = False


class CoolDownSet(_PairEvent):
    """A person had a proxy rest for one target until ``cools_until``, or, if None, ended its rest.

    Its rest for a target that refused it also ends when it takes another exit by its link.
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


class TargetRulesSet(EventBase):
    """What answers of a target mean was said for the whole fleet, or, if None, unsaid.

    ``target`` is a host, or ``*.`` and a host. ``rules`` are the other fields of
    :class:`pharox.TargetRules` that are set.
    """

    type: Literal["TargetRulesSet"] = "TargetRulesSet"
    target: str
    rules: dict[str, Any] | None = None


class PoolPlaced(EventBase):
    """A pool is in a ledger of the fleet from now on. The home ledger records it.

    ``ledger`` is a name of the fleet's settings, and ``ledger_before`` the one where the pool was.
    The pool's own events are in its ledger.
    """

    type: Literal["PoolPlaced"] = "PoolPlaced"
    pool_name: str
    ledger: str
    ledger_before: str | None = None


class _SourceEvent(EventBase):
    """An event of a source of a pool's proxies.

    ``source`` is its name. Another source of the same name, after it was removed, has another
    ``source_id``.
    """

    source: str
    source_id: UUID
    pool_name: str


class SourceSaved(_SourceEvent):
    """A source was added, or its settings were changed.

    Of its URL only the ``host`` is recorded. ``secret_id`` refers to the row of another table that
    has the URL and the headers, encrypted. ``options`` are those of :class:`pharox.ListOptions`
    that are set.
    """

    type: Literal["SourceSaved"] = "SourceSaved"
    host: str
    every_seconds: float
    max_removed: str
    enabled: bool
    options: dict[str, Any] = Field(default_factory=dict)
    secret_id: UUID


class SourceRemoved(_SourceEvent):
    """A source was removed. Its proxies stay in the pool."""

    type: Literal["SourceRemoved"] = "SourceRemoved"


class SourceRefreshed(_SourceEvent):
    """A source's list was fetched, and the pool is in step with it.

    The proxies that came and went have events of their own, with the same ``correlation_id``.
    ``reasons`` say of the first entries that were skipped why they could not be read. A refresh
    that found nothing new is not recorded, unless the one before it failed.
    """

    type: Literal["SourceRefreshed"] = "SourceRefreshed"
    counts: SourceCounts
    reasons: tuple[str, ...] = ()


class SourceFailed(_SourceEvent):
    """A source's list could not be fetched or was not trusted; nothing was changed.

    Of a source that fails in the same way again and again one event an hour is recorded.
    """

    type: Literal["SourceFailed"] = "SourceFailed"
    reason: str


class ApiTokenIssued(EventBase):
    """A token was issued, with which a consumer leases over HTTP.

    ``digest`` is the SHA-256 of its text, which nobody keeps. ``pools`` are those that it is for,
    all if it names none. ``token_expires_at`` is from when on it is refused, if ever.
    """

    type: Literal["ApiTokenIssued"] = "ApiTokenIssued"
    consumer: str
    token_id: UUID
    digest: str
    rights: tuple[ApiRight, ...]
    pools: tuple[str, ...] = ()
    token_expires_at: UtcDatetime | None = None


class ApiTokenWithdrawn(EventBase):
    """A token was withdrawn: it is refused from then on, seconds later at most."""

    type: Literal["ApiTokenWithdrawn"] = "ApiTokenWithdrawn"
    consumer: str
    token_id: UUID


class ActionTaken(EventBase):
    """A person did something that no other event says, or says without a reason.

    ``action`` is what, such as ``rebuild``; ``subject`` is to what: the name of a pool, of a
    subscription, of projections. What followed has the same ``correlation_id``.
    """

    type: Literal["ActionTaken"] = "ActionTaken"
    action: str
    subject: str
    reason: str


class _MoveEvent(EventBase):
    """An event of a pool's move from one ledger to another. ``ledger`` names the other one.

    A move has one ``move_id`` in both.
    """

    pool_name: str
    move_id: UUID
    ledger: str


class _PassedOn(_MoveEvent):
    """Where the pool's history ends in the ledger that it left, as both logs say it.

    ``last_seq`` is the last sealed event before the pool left, ``root`` the hash of the chain up to
    it (hex; None in memory, which seals nothing), ``last_position`` the highest position that any
    of its events has there. Fencing tokens are positions, so those of the next ledger are higher.
    """

    last_seq: int
    last_position: int
    root: str | None = None


class PoolMoveBegan(_MoveEvent):
    """A pool began to move to ``ledger``: no more of its proxies are leased here."""

    type: Literal["PoolMoveBegan"] = "PoolMoveBegan"


class PoolStateCarried(_MoveEvent):
    """Rows of a read model of a pool, as they were when it left a ledger.

    The ledger that the pool leaves records them before it removes the pool; the one where it
    ``arrived`` folds them, so the pool goes on there as it was.
    """

    type: Literal["PoolStateCarried"] = "PoolStateCarried"
    read_model: str
    rows: tuple[dict[str, Any], ...]
    arrived: bool = False


class PoolDeparted(_PassedOn):
    """A pool left this ledger for another; earlier events carried its state and removed it.

    ``carried`` events from ``first_position`` on have its state.
    """

    type: Literal["PoolDeparted"] = "PoolDeparted"
    first_position: int
    carried: int


class PoolArrived(_PassedOn):
    """A pool came from another ledger, whose log has its earlier history.

    Later events register it.
    """

    type: Literal["PoolArrived"] = "PoolArrived"


class PoolMoved(_PassedOn):
    """The pool is in the other ledger, as this one knows: its secrets are deleted here."""

    type: Literal["PoolMoved"] = "PoolMoved"


class PoolMoveCancelled(_MoveEvent):
    """A move was cancelled: the pool stays where it was.

    The ledger that the pool should have come to records it too, if the pool may have been under
    way: then it does not take it any more.
    """

    type: Literal["PoolMoveCancelled"] = "PoolMoveCancelled"


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
    ``session_proxy_id`` the proxy that it was bound to, if it was bound. ``limit`` is the limit
    that was reached, if that is the reason, which time frees in ``retry_after_seconds``.
    ``fallback`` are the pools that were asked after this one, and why each had nothing either.
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
    limit: LimitReached | None = None
    retry_after_seconds: float | None = None
    fallback: tuple[PoolMissed, ...] = ()


class SessionBound(EventBase):
    """A key was bound to a proxy until ``expires_at``, or its binding lives longer.

    ``country`` and ``exit_ip`` are those of the proxy. If another proxy was ``replaced``,
    ``because`` says what it was. ``inherited_from`` is the key whose binding this was before; such
    a binding comes without a lease. With ``shared`` other shared bindings may be to the proxy, too.
    ``exit`` is the exit of a gateway that the key keeps, if the proxy is a template.
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
    exit: GatewayExit | None = None


class SessionForgotten(EventBase):
    """A key's binding ended before its time: somebody forgot it, or another key inherited it."""

    type: Literal["SessionForgotten"] = "SessionForgotten"
    key: str
    pool_name: str
    proxy_id: UUID
    inherited_by: str | None = None


class ExitRotated(EventBase):
    """A lease of a template took another exit: a session id in place of the one before.

    ``session`` is the key of the sticky session that had this exit and took the same one.
    """

    type: Literal["ExitRotated"] = "ExitRotated"
    proxy_id: UUID
    lease_id: UUID
    consumer: str
    consumer_id: UUID
    pool_name: str
    session_before: str
    session_after: str
    session: str | None = None


class _RotationEvent(_ProxyEvent):
    """The record of a proxy's rotations after the event. The proxy's state stays.

    The rotation that is under way, for the cause ``because``, is over at ``ends_at`` at the latest;
    both are None if there is none. Its link is not called before ``calls_at``, and by one process
    alone until ``claimed_until``. The proxy is not leased before ``rests_until``; without the
    rotation it would rest until ``rested_until``. It took its exit at ``rotated_at``.
    """

    before: ProxyState
    after: ProxyState
    pool_name: str
    because: RotationCause | None = None
    ends_at: UtcDatetime | None = None
    calls_at: UtcDatetime | None = None
    claimed_until: UtcDatetime | None = None
    rotated_at: UtcDatetime | None = None
    rested_until: UtcDatetime | None = None
    rests_until: UtcDatetime | None = None


class RotationBegan(_RotationEvent):
    """A proxy rests until it has another exit, or until the bound."""

    type: Literal["RotationBegan"] = "RotationBegan"
    because: RotationCause
    ends_at: UtcDatetime


class RotationCalled(_RotationEvent):
    """A process calls a proxy's link. No lease holds the proxy, and no other process calls it."""

    type: Literal["RotationCalled"] = "RotationCalled"
    because: RotationCause
    claimed_until: UtcDatetime


class RotationAnswered(_RotationEvent):
    """A proxy's link gave it another exit, or, if there is a ``failure``, did not.

    After a failure the link is called again at ``calls_at`` if that is before the bound; else the
    rotation is given up. ``exit_ip`` is the new address, if the link's answer says it.
    """

    type: Literal["RotationAnswered"] = "RotationAnswered"
    failure: RotationFailure | None = None
    status: int | None = None
    exit_ip: str | None = None


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


PoolMoveEvent = (
    PoolMoveBegan | PoolStateCarried | PoolDeparted | PoolArrived | PoolMoved | PoolMoveCancelled
)
"""Any event of a pool's move between two ledgers."""

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
    | TargetRulesSet
    | SourceSaved
    | SourceRemoved
    | SourceRefreshed
    | SourceFailed
    | ApiTokenIssued
    | ApiTokenWithdrawn
    | ActionTaken
    | PoolPlaced
    | PoolMoveEvent
    | SessionBound
    | SessionForgotten
    | ExitRotated
    | RotationBegan
    | RotationCalled
    | RotationAnswered
    | AcquireMissed
    | CursorMoved
    | HealthChecked
    | ProxiesChecked,
    Field(discriminator="type"),
]
"""Any event, told apart by its ``type``."""

_CLASSES: dict[str, type[Event]] = {
    event.model_fields["type"].default: event for event in get_args(get_args(Event)[0])
}

VERSIONS: dict[str, int] = {
    type_: event.model_fields["schema_version"].default for type_, event in _CLASSES.items()
}
"""The current schema version of each event type."""

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


def fallback_of(event: EventBase) -> tuple[PoolMissed, ...]:
    """Return the pools beside its own that an acquisition tried in vain."""
    if isinstance(event, LeaseAcquired):
        return event.fallback_from
    return event.fallback if isinstance(event, AcquireMissed) else ()


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
    upcasted = _UPCASTER.upcast({**columns, **data})
    # By its class, not by the union of all, which would build every one of them.
    return _CLASSES[upcasted["type"]].model_validate(upcasted)
