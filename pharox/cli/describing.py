"""Describe an event as a sentence of a story.

A :class:`Described` has the sentence and the lines below it: the request, what to look
at next, who did it. All fields of an event are in its JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import events
from ..models import REFUSALS, CoolDown, MissReason, OutcomeKind
from .showing import in_utc

if TYPE_CHECKING:
    from projections import PoolCounts

_WHY_MISSED = {
    MissReason.UNKNOWN_POOL: "there was no such pool",
    MissReason.EMPTY_POOL: "the pool had no proxies",
    MissReason.NO_MATCH: "no proxy matched the filters",
    MissReason.NONE_HEALTHY: "no matching proxy was healthy",
    MissReason.AT_CAPACITY: "every matching proxy was leased to its limit",
    MissReason.TOO_FEW: "fewer proxies were free than a set needed",
    MissReason.RESTING: "a matching proxy rested after its last lease",
    MissReason.COOLING_DOWN: "all matching proxies that were free rested for the target",
    MissReason.SESSION_BUSY: "the proxy that the session requires was not free",
    MissReason.ALL_BOUND: "all matching proxies that were free were bound to other sessions",
    MissReason.TARGET_TROUBLED: "the target was in trouble, and a lease was trying it already",
}
_GROUPS = {"all_of": "all of", "any_of": "any of", "none_of": "none of"}
_PLACE = ("latitude", "longitude", "radius_km")
_DESCRIPTION = ("country", "city", "isp", "asn", "source")
_SHORT_S = 60


class Described(NamedTuple):
    """A sentence and the lines that belong to it; ``asked`` and ``by`` may be empty.

    ``asked`` is the request, and ``by`` says who did it and as part of which job;
    consecutive events often share them.
    """

    sentence: str
    asked: str
    details: tuple[str, ...]
    by: str


def describe(
    event: events.Event,
    *,
    pool: str | None,
    address: str | None,
    pool_had: PoolCounts | None = None,
) -> Described:
    """Return an event as a sentence.

    Parameters
    ----------
    pool:
        The name of its pool.
    address:
        The address of its proxy.
    pool_had:
        The pool's statistics, for a miss.
    """
    proxy = address or (str(event.proxy_id) if event.proxy_id else "")
    sentence = _sentence(event, _quoted(pool or ""), proxy)
    details = (
        _row(_description(event)),
        "" if pool_had is None else in_numbers(pool_had),
        _row(_ids(event)),
    )
    by = _row((("by", event.actor), ("job", event.correlation_id)))
    return Described(sentence, _asked(event), tuple(filter(None, details)), by)


def in_numbers(counts: PoolCounts) -> str:
    """Return a pool's statistics in words."""
    return (
        f"the pool had {counted(counts.total_proxies, 'proxy', 'proxies')}: "
        f"{counts.active_proxies} active, {counts.available_proxies} available, "
        f"{counts.leased_proxies} leased ({counted(counts.total_leases, 'lease', 'leases')})"
    )


def counted(number: int, one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many}"


def lasting(seconds: float) -> str:
    """Return a length of time in words, in its two largest units."""
    if round(seconds, 3) < _SHORT_S:
        return f"{f'{seconds:.3f}'.rstrip('0').rstrip('.')} s"
    whole = round(seconds)
    for size, unit, part, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s"


def shown_status(status: str, *, drains: bool, until: datetime | None = None) -> str:
    """Return a proxy's status as a list shows it: a draining proxy is not just banned."""
    if drains:
        return "draining"
    return status if until is None else f"{status} until {in_utc(until)}"


def clock(moment: datetime) -> str:
    """Return a moment's time of day, in UTC, with milliseconds."""
    return moment.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]


def day_of(moment: datetime) -> str:
    """Return a moment's day, in UTC."""
    return f"{moment.astimezone(UTC):%A %Y-%m-%d} UTC"


def _sentence(event: events.Event, pool: str, proxy: str) -> str:  # noqa: PLR0911, PLR0912 - one a type
    match event:
        case events.PoolRegistered():
            return f"pool {pool} was registered{_described(event)}"
        case events.PoolChanged():
            return f"the pool is now named {pool}{_described(event)}"
        case events.PoolRemoved():
            return f"pool {pool} was removed"
        case events.ConsumerRegistered():
            return f"consumer {_quoted(event.consumer)} was seen for the first time"
        case events.ProxyRegistered():
            return f"{proxy} joined pool {pool}: {_state(event.after)}"
        case events.ProxyChanged():
            what = _moved(event.before, event.after) or "its description"
            if event.drains:
                return f"{proxy} drains: it leaves with its last lease{_because(event.reason)}"
            until = "" if event.until is None else f", until {in_utc(event.until)}"
            return f"{proxy} was changed: {what}{until}{_because(event.reason)}"
        case events.ProxyRemoved():
            return f"{proxy} left pool {pool}"
        case events.LeaseAcquired():
            length = lasting((event.expires_at - event.recorded_at).total_seconds())
            got = f"{_quoted(event.consumer)} got {proxy} of pool {pool} for {length}"
            return f"{got}{_waited(event)}"
        case events.LeaseRenewed():
            length = lasting((event.expires_at - event.recorded_at).total_seconds())
            if event.is_redated:
                lease = f"the lease of {_quoted(event.consumer)} on {proxy}"
                return f"{lease} was re-dated, as the clock went back: {length} from now"
            kept = lasting((event.recorded_at - event.acquired_at).total_seconds())
            bound = ", as long as its pool allows" if event.reason == "max_held" else ""
            return f"{_quoted(event.consumer)} renewed {proxy} for {length}, after {kept}{bound}"
        case events.LeaseReleased():
            back = f"{_quoted(event.consumer)} gave {proxy} back after {_held(event)}"
            return f"{back}{_because(event.reason)}"
        case events.LeaseExpired():
            late = (event.recorded_at - event.expires_at).total_seconds()
            return (
                f"the lease of {_quoted(event.consumer)} on {proxy} ran out: taken back after "
                f"{_held(event)}, {lasting(late)} late"
            )
        case events.LeaseRevoked():
            return (
                f"the lease of {_quoted(event.consumer)} on {proxy} was revoked after "
                f"{_held(event)}{_because(event.reason)}"
            )
        case events.AcquireMissed():
            why = _WHY_MISSED[event.reason]
            if event.reason is MissReason.SESSION_BUSY:
                session, proxy_id = _quoted(event.session or ""), event.session_proxy_id
                why = f"session {session} requires proxy {proxy_id}, which was not free"
            return f"{_quoted(event.consumer)} got nothing from pool {pool}{_waited(event)}: {why}"
        case events.HealthChecked():
            return f"{proxy} was checked: {_checked(event)}"
        case events.ProxiesChecked():
            checks = counted(len(event.proxy_ids), "proxy was", "proxies were")
            return f"{checks} checked in pool {pool}, without a change of status: {_found(event)}"
        case events.CursorMoved():
            return f"{proxy} was offered in its turn, but not leased"
        case events.OutcomeReported():
            return _reported(event, proxy)
        case events.CoolDownSet():
            if event.cools_until is None:
                rest = f"the rest of {proxy} for {event.target} was ended"
            else:
                rest = f"{proxy} was told to rest for {event.target}, {_until(event)}"
            return f"{rest}{_because(event.reason)}"
        case events.TargetTroubled():
            return (
                f"{event.target} is in trouble: {event.failed} of {event.proxies} proxies of pool "
                f"{pool} failed there within a minute, so none begins to rest"
            )
        case events.TargetRecovered():
            return f"{event.target} answers again in pool {pool}"
        case events.SessionBound():
            return _bound(event, proxy)
        case events.SessionForgotten():
            heir = event.inherited_by
            how = "was forgotten" if heir is None else f"was inherited by {_quoted(heir)}"
            return f"session {_quoted(event.key)}, bound to {proxy}, {how}"
        case events.LeasesPruned():
            return (
                f"leases of pool {pool} that ended before {in_utc(event.ended_before)} were pruned"
            )


def _waited(event: events.LeaseAcquired | events.AcquireMissed) -> str:
    if event.waited_ms is None:
        return ""
    return f", having waited {lasting(event.waited_ms / 1000)}"


def _reported(event: events.OutcomeReported, proxy: str) -> str:
    """Return what became of requests: where, through which proxy, what follows, who says so."""
    target = event.target or "a target"
    what = {
        OutcomeKind.OK: f"{target} answered {proxy}",
        OutcomeKind.BLOCKED: f"{target} refused {proxy}",
        OutcomeKind.PROXY_FAILED: f"{proxy} let nothing through to {target}",
        OutcomeKind.TARGET_FAILED: f"{target} failed, asked through {proxy}",
        OutcomeKind.UNCLEAR: f"a request to {target} failed behind {proxy}",
    }
    parts = [
        what[event.outcome],
        f" with {event.status}" if event.status else "",
        f", {event.count} times" if event.count > 1 else "",
        _in_a_row(event),
    ]
    if event.retry_after_seconds is not None:
        parts.append(f", asking to be left alone for {lasting(event.retry_after_seconds)}")
    parts.append(f", said {_quoted(event.consumer)}{_because(event.note)}")
    if event.cools_until is not None and event.cools_until > event.recorded_at:
        parts.append(f"; the proxy rests for it, {_until(event)}")
    return "".join(parts)


def _in_a_row(event: events.OutcomeReported) -> str:
    """Return how many refusals there were without a success, if there were some before."""
    has_earlier = event.outcome in REFUSALS and -event.streak > event.count
    return f", {-event.streak} refusals in a row" if has_earlier else ""


def _until(event: events.OutcomeReported | events.CoolDownSet) -> str:
    """Return for how long, and until when, a pair rests."""
    until = event.cools_until or event.recorded_at
    length = lasting((until - event.recorded_at).total_seconds())
    return f"for {length}, until {clock(until)}"


def _bound(event: events.SessionBound, proxy: str) -> str:
    """Return which proxy a key is bound to, until when, and what it had before."""
    until = f"session {_quoted(event.key)} is bound to {proxy} until {clock(event.expires_at)}"
    if event.inherited_from is not None:
        return f"{until}, inherited from {_quoted(event.inherited_from)}"
    if event.replaced is not None:
        return f"{until}, in place of {event.replaced}, which was {event.because}"
    return until


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _described(event: events.PoolRegistered | events.PoolChanged) -> str:
    parts = [
        event.description or "",
        "leases SLOW proxies too" if event.lease_slow else "",
        *(
            f"a proxy rests for {lasting(seconds)} after {what}"
            for seconds, what in (
                (event.rest_after_release_seconds, "a release"),
                (event.rest_after_expiry_seconds, "an expiry"),
            )
            if seconds
        ),
        f"a lease is held for {lasting(event.max_held_seconds)} at most"
        if event.max_held_seconds
        else "",
        _cools(event.cool_down),
        f"selector {event.selector.value} by default" if event.selector else "",
        f"a lease lasts {lasting(event.lease_seconds)} by default" if event.lease_seconds else "",
        f"a proxy takes {counted(event.max_concurrency, 'lease', 'leases')} at once by default"
        if event.max_concurrency
        else "",
    ]
    description = ", ".join(filter(None, parts))
    return f": {description}" if description else ""


def _cools(rule: CoolDown | None) -> str:
    """Return the rule by which proxies rest for targets, if the pool has one of its own."""
    if rule is None:
        return ""
    if rule.base_seconds == 0:
        return "no proxy rests for a target"
    refusals = counted(rule.after, "refusal", "refusals in a row")
    return (
        f"a proxy rests for a target for {lasting(min(rule.base_seconds, rule.max_seconds))} "
        f"after {refusals}, {rule.factor:g} times as long each time, up to "
        f"{lasting(rule.max_seconds)}"
    )


def _state(state: events.ProxyState) -> str:
    limit = "any number of leases"
    if state.max_concurrency is not None:
        limit = f"up to {counted(state.max_concurrency, 'lease', 'leases')} at once"
    return f"{state.status.value}, {limit}"


def _moved(before: events.ProxyState, after: events.ProxyState) -> str:
    names = {"max_concurrency": "limit"}
    moves = (
        f"{names.get(part.name, part.name)} {_value(was)} -> {_value(becomes)}"
        for part in fields(events.ProxyState)
        if (was := getattr(before, part.name)) != (becomes := getattr(after, part.name))
    )
    return ", ".join(moves)


def _checked(event: events.HealthChecked) -> str:
    found = [event.status.value]
    if event.latency_ms is not None and event.reachable:
        found.append(f"{event.latency_ms} ms")
    if event.exit_ip is not None:
        found.append(f"seen as {event.exit_ip}")
    if event.status_code is not None:
        found.append(f"HTTP {event.status_code}")
    if not (event.reachable or event.error):
        found.append("not reachable")
    if why := event.error or event.failure:
        found.append(why)
    if not event.applied:
        found.append("but a newer check was already recorded")
    elif moved := _moved(event.before, event.after):
        found.append(f"so {moved}")
    elif event.status is not event.before.status:
        found.append(f"it stays {event.before.status.value}")
    if event.lease_ids:
        leases = counted(len(event.lease_ids), "lease was", "leases were")
        found.append(f"while {leases} held on it")
    return ", ".join(found)


def _found(event: events.ProxiesChecked) -> str:
    """Return the results of checks with their numbers, the most frequent first."""
    found = Counter(event.groups[number].status.value for number in event.group)
    return ", ".join(f"{number} {status}" for status, number in found.most_common())


def _held(event: events.LeaseEnd) -> str:
    return lasting(events.held(event).total_seconds())


def _asked(event: events.Event) -> str:
    if not isinstance(event, events.LeaseAcquired | events.AcquireMissed):
        return ""
    asked = [f"selector {event.selector.value}" if event.selector else "only this proxy"]
    if event.filters:
        asked.append(in_words(event.filters))
    if event.predicate:
        asked.append("a predicate")
    if event.target:
        asked.append(f"target {event.target}")
    return f"asked for {', '.join(asked)}"


def _description(event: events.Event) -> Iterator[tuple[str, Any]]:
    if isinstance(event, events.ProxyDescribed):
        for name in _DESCRIPTION:
            value = getattr(event, name)
            yield name, None if value is None else _quoted(str(value))


def _row(attributes: Iterable[tuple[str, Any]]) -> str:
    """Return attributes in one line, without missing ones."""
    return ", ".join(f"{name} {value}" for name, value in attributes if value is not None)


def in_words(filters: dict[str, Any]) -> str:
    """Return recorded filters in words."""
    parts = [
        f"{name} {_quoted(str(value))}"
        for name, value in filters.items()
        if name not in _GROUPS and name not in _PLACE
    ]
    if "latitude" in filters:
        place = f"{filters['latitude']}, {filters['longitude']}"
        radius = filters.get("radius_km")
        parts.append(f"at {place}" if radius is None else f"within {radius:g} km of {place}")
    for group, words in _GROUPS.items():
        if children := filters.get(group):
            description = "; ".join(in_words(child) or "a predicate" for child in children)
            parts.append(f"{words} ({description})")
    return ", ".join(parts)


def _ids(event: events.Event) -> Iterator[tuple[str, Any]]:
    yield "lease", event.lease_id
    if isinstance(event, events.LeaseAcquired):
        yield "until", in_utc(event.expires_at)
    if isinstance(
        event,
        events.ProxyRegistered | events.ProxyRemoved | events.ProxyChanged | events.LeaseAcquired,
    ):
        yield "proxy", event.proxy_id
    if isinstance(event, events.PoolRegistered | events.PoolRemoved):
        yield "pool", event.pool_id


def _quoted(name: str) -> str:
    """Return a name, quoted where it could be mistaken for something else."""
    return name if name and not set(name) & set(" \"',;:()") else repr(name)


def _value(value: Any) -> str:
    return "any" if value is None else str(value)
