"""Describe an event as a sentence of a story.

A :class:`Described` has the sentence and the lines below it: the request, what to look
at next, who did it. All fields of an event are in its JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .. import events
from ..models import (
    REFUSALS,
    CoolDown,
    GatewayExit,
    MissReason,
    OutcomeKind,
    Pace,
    PoolLimits,
    PoolMissed,
    RotationPolicy,
    SourceCounts,
)
from ..models.budgets import shown_budgets
from ..models.text import in_utc

if TYPE_CHECKING:
    from projections import PoolCounts

    from ..history.miss_runs import MissRun
    from ..history.past_counts import Holding

_WHY_MISSED = {
    MissReason.UNKNOWN_POOL: "there was no such pool",
    MissReason.EMPTY_POOL: "the pool had no proxies",
    MissReason.NO_MATCH: "no proxy matched the filters",
    MissReason.NONE_HEALTHY: "no matching proxy was healthy",
    MissReason.AT_CAPACITY: "every healthy matching proxy was leased to its limit",
    MissReason.TOO_FEW: "fewer proxies were free than a set needed",
    MissReason.RESTING: "a matching proxy rested after its last lease",
    MissReason.ROTATING: "a matching proxy rested until it has another exit",
    MissReason.COOLING_DOWN: "all matching proxies that were free rested for the target",
    MissReason.SESSION_BUSY: "the proxy that the session requires was not free",
    MissReason.ALL_BOUND: "all matching proxies that were free were bound to other sessions",
    MissReason.TARGET_TROUBLED: "the target was in trouble, and a lease was trying it already",
    MissReason.LIMIT_REACHED: "a limit of the pool left no room",
    MissReason.POOL_MOVING: "the pool was moving to another ledger",
    MissReason.POOL_MOVED: "the pool had moved to another ledger",
}
_GROUPS = {"all_of": "all of", "any_of": "any of", "none_of": "none of"}
_PLACE = ("latitude", "longitude", "radius_km")
_DESCRIPTION = (
    "country",
    "city",
    "isp",
    "asn",
    "source",
    "cost_per_gb",
    "cost_per_lease",
    "weight",
)
_SHORT_S = 60
_NAMED = 5
"""How many consumers are named in a line."""


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
    fallback_had: Sequence[PoolCounts | None] = (),
    holders: Sequence[Holding] = (),
    known: events.ProxyDescribed | None = None,
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
    fallback_had:
        Those of the other pools that an acquisition tried in vain, as far as they are known.
    holders:
        Who held leases of the pool, for a miss.
    known:
        What was recorded of its proxy before, for a change, if the story has that.
    """
    proxy = address or (str(event.proxy_id) if event.proxy_id else "")
    sentence = _sentence(event, _quoted(pool or ""), proxy)
    if isinstance(event, events.ProxyChanged) and not event.drains:
        sentence = f"{proxy} {_changed(event, known)}{_because(event.reason)}"
    details = (
        _row(_description(event)),
        "" if pool_had is None else in_numbers(pool_had),
        _held_by(holders),
        *(
            in_numbers(counts, f"pool {_quoted(other.pool_name)}")
            for other, counts in zip(events.fallback_of(event), fallback_had, strict=False)
            if counts is not None
        ),
        _row(_ids(event)),
    )
    by = _row((("by", event.actor), ("job", event.correlation_id)))
    return Described(sentence, _asked(event), tuple(filter(None, details)), by)


def describe_run(run: MissRun) -> Described:
    """Return misses that follow each other as one sentence.

    What the pool had, and who held it, is as it was at the first of them.
    """
    first = run.first
    miss = cast("events.AcquireMissed", first.event)
    told = describe(
        miss,
        pool=first.pool,
        address=None,
        pool_had=first.pool_had,
        fallback_had=first.fallback_had,
        holders=first.holders,
    )
    pool = _quoted(first.pool or "")
    since, until = clock(miss.recorded_at), clock(run.last.event.recorded_at)
    when = f"{run.count} times between {since} and {until} (until event {run.last.event.seq})"
    why = f"{_why_missed(miss)}{_elsewhere(miss, ' had none either')}"
    if len(run.consumers) == 1:
        sentence = f"{_quoted(miss.consumer)} got nothing from pool {pool} {when}: {why}"
        details = told.details
    else:
        sentence = f"pool {pool} had nothing {when}: {why}"
        details = f"missed by {_most(run.consumers.most_common())}", *told.details
    return Described(sentence, told.asked, details, told.by if run.has_one_origin else "")


def _held_by(holders: Sequence[Holding]) -> str:
    return f"held by {_most(holders)}" if holders else ""


def _most(numbers: Sequence[tuple[str, int]]) -> str:
    """Return the first few names with their numbers, and how many more there are."""
    named = ", ".join(f"{_quoted(name)} ({number})" for name, number in numbers[:_NAMED])
    more = len(numbers) - _NAMED
    return f"{named} and {more} more" if more > 0 else named


def in_numbers(counts: PoolCounts, pool: str = "the pool") -> str:
    """Return a pool's statistics in words."""
    return (
        f"{pool} had {counted(counts.total_proxies, 'proxy', 'proxies')}: "
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


def _sentence(event: events.Event, pool: str, proxy: str) -> str:  # noqa: PLR0911, PLR0912, PLR0915 - a type each
    if isinstance(event, events.PoolMoveEvent):
        return _move(event, pool)
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
        case events.ProxyChanged():  # That it drains: other changes are described by `describe`.
            return f"{proxy} drains: it leaves with its last lease{_because(event.reason)}"
        case events.ProxyRemoved():
            return f"{proxy} left pool {pool}"
        case events.LeaseAcquired():
            length = lasting((event.expires_at - event.recorded_at).total_seconds())
            got = f"{_quoted(event.consumer)} got {proxy} of pool {pool} for {length}"
            return (
                f"{got}{_waited(event)}{_exit(event.exit)}{_at_cost(event)}"
                f"{_elsewhere(event, ' had none')}"
            )
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
            why = _why_missed(event)
            missed = (
                f"{_quoted(event.consumer)} got nothing from pool {pool}{_waited(event)}: {why}"
            )
            return f"{missed}{_elsewhere(event, ' had none either')}"
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
        case events.TargetRulesSet():
            if event.rules is None:
                return f"the default rules hold for {event.target} again"
            return f"rules were set for {event.target}: {rules_in_words(event.rules)}"
        case events.PoolPlaced():
            before = "" if event.ledger_before is None else f"; it was in {event.ledger_before}"
            return f"pool {pool} is in the ledger {event.ledger}{before}"
        case events.SourceSaved():
            state = f"is fetched every {lasting(event.every_seconds)}"
            how = state if event.enabled else "is paused"
            return f"source {_quoted(event.source)} of pool {pool}, at {event.host}, {how}"
        case events.SourceRemoved():
            return f"source {_quoted(event.source)} of pool {pool} was removed; its proxies stay"
        case events.SourceRefreshed():
            found = counts_in_words(event.counts)
            return f"pool {pool} is in step with source {_quoted(event.source)}: {found}"
        case events.SourceFailed():
            what = f"source {_quoted(event.source)} failed, and pool {pool} stays as it is"
            return f"{what}: {event.reason}"
        case events.ApiTokenIssued():
            where = f", for {counted(len(event.pools), 'pool', 'pools')}" if event.pools else ""
            return f"{_quoted(event.consumer)} got a token to {' and '.join(event.rights)}{where}"
        case events.ApiTokenWithdrawn():
            return f"a token of {_quoted(event.consumer)} was withdrawn"
        case events.ActionTaken():
            what = event.action.replace("_", " ")
            return f"{what}: {_quoted(event.subject)}{_because(event.reason)}"
        case events.SessionBound():
            return _bound(event, proxy)
        case events.ExitRotated():
            return _rotated(event, proxy)
        case events.RotationBegan() | events.RotationCalled() | events.RotationAnswered():
            return _exits(event, proxy)
        case events.SessionForgotten():
            heir = event.inherited_by
            how = "was forgotten" if heir is None else f"was inherited by {_quoted(heir)}"
            return f"session {_quoted(event.key)}, bound to {proxy}, {how}"
        case events.LeasesPruned():
            return (
                f"leases of pool {pool} that ended before {in_utc(event.ended_before)} were pruned"
            )


def _move(event: events.PoolMoveEvent, pool: str) -> str:
    """Return what became of a pool that moves between two ledgers."""
    other = f"ledger {_quoted(event.ledger)}"
    match event:
        case events.PoolMoveBegan():
            return f"pool {pool} begins to move to {other}: no more of its proxies are leased here"
        case events.PoolStateCarried():
            rows = counted(len(event.rows), "row", "rows")
            how = f"brought from {other}" if event.arrived else f"to be taken to {other}"
            return f"{rows} of {event.read_model} of pool {pool}, {how}"
        case events.PoolDeparted():
            return f"pool {pool} left for {other}; {_head(event)}"
        case events.PoolArrived():
            return f"pool {pool} came from {other}, whose log has what was before; {_head(event)}"
        case events.PoolMoved():
            return f"pool {pool} is in {other} from here on"
        case events.PoolMoveCancelled():
            return f"the move of pool {pool} was cancelled; the other ledger is {other}"


def _head(event: events.PoolDeparted | events.PoolArrived) -> str:
    """Return where a pool's history ends in the ledger that it left."""
    root = "" if event.root is None else f", root {event.root}"
    return f"its history there ends at seq {event.last_seq}{root}"


_SECRET = {"credential_id": "its credentials", "rotate_id": "its link for another exit"}
"""What an event only refers to: nobody sees what it was and is."""


def _changed(event: events.ProxyChanged, known: events.ProxyDescribed | None) -> str:
    """Return what became of a proxy. Only its end tells a ban from one that it had before."""
    moved = _moved(event.before, event.after)
    if event.stays_banned and not moved:
        return (
            f"stays banned, {'for good' if event.until is None else f'until {in_utc(event.until)}'}"
        )
    until = "" if event.until is None else f", until {in_utc(event.until)}"
    described = ", ".join(_redescribed(known, event)) if known else ""
    what = ", ".join(filter(None, (moved, described))) or "its description"
    return f"was changed: {what}{until}"


def _redescribed(known: events.ProxyDescribed, event: events.ProxyDescribed) -> Iterator[str]:
    """Yield what differs between two descriptions of a proxy, beside its state."""
    for name in events.ProxyDescribed.model_fields:
        if name in events.EventBase.model_fields or name in ("before", "after", "checked_at"):
            continue
        was, becomes = getattr(known, name), getattr(event, name)
        if was != becomes:
            yield _SECRET.get(name) or f"{name} {_or_none(was)} -> {_or_none(becomes)}"


def _or_none(value: object) -> str:
    return "none" if value is None else _value(value)


def counts_in_words(counts: SourceCounts) -> str:
    """Return what a refresh found, without what it did not find."""
    words = {
        "added": "new",
        "changed": "changed",
        "removed": "removed",
        "draining": "draining",
        "returned": "back",
        "unchanged": "unchanged",
        "kept": "kept, though not listed",
        "skipped": "skipped",
    }
    given = ((getattr(counts, name), word) for name, word in words.items())
    found = ", ".join(f"{number} {word}" for number, word in given if number)
    return f"{counts.listed} listed" + (f", {found}" if found else "")


def _why_missed(event: events.AcquireMissed) -> str:
    if event.reason is MissReason.SESSION_BUSY:
        session, proxy_id = _quoted(event.session or ""), event.session_proxy_id
        return f"session {session} requires proxy {proxy_id}, which was not free"
    return _WHY_MISSED[event.reason] if event.limit is None else _limited(event, event)


def rules_in_words(rules: Mapping[str, Any]) -> str:
    """Return what the answers of a target mean by its recorded rules."""
    parts = [
        f"{', '.join(map(str, rules[name]))} {words}"
        for name, words in (
            ("ok_statuses", "ok"),
            ("blocked_statuses", "blocked"),
            ("target_failed_statuses", "target_failed"),
        )
        if rules.get(name)
    ]
    if rules.get("blocked_if_body"):
        parts.append(f"a body with {rules['blocked_if_body']!r} blocked")
    return "; ".join(parts)


def _waited(event: events.LeaseAcquired | events.AcquireMissed) -> str:
    if event.waited_ms is None:
        return ""
    return f", having waited {lasting(event.waited_ms / 1000)}"


def _limited(
    event: events.LeaseAcquired | events.AcquireMissed, missed: events.AcquireMissed | PoolMissed
) -> str:
    """Return which limit of a pool was reached, by how much, and when time frees it."""
    limit = missed.limit
    if limit is None:
        return ""
    whose = {
        "consumer": f"consumer {_quoted(event.consumer)}",
        "pool": f"pool {_quoted(missed.pool_name)}",
        "target": f"target {event.target}",
        "pair": f"each free proxy, for {event.target},",
        "proxy": "each free proxy",
    }.get(limit.per, limit.per)
    if limit.unit is not None:
        budget = f"{limit.used:,} of its {limit.most:,} {limit.unit} of the day"
        again = lasting(missed.retry_after_seconds or 0)
        return f"{whose} had used {budget}; the next begins in {again}, at midnight UTC"
    if limit.name == "pace":
        most = counted(int(limit.most), "lease", "leases")
        why = f"{whose} had begun {limit.used:g} of at most {most} in {lasting(limit.seconds or 0)}"
    elif limit.per == "target":
        most = counted(int(limit.most), "lease", "leases")
        why = f"{limit.used:g} of at most {most} were held for {whose} already"
    else:
        most = counted(int(limit.most), "lease", "leases")
        why = f"{whose} already held {limit.used:g} of at most {most}"
    if missed.retry_after_seconds is None:
        return why
    return f"{why}; time frees one in {lasting(missed.retry_after_seconds)}"


def _elsewhere(event: events.LeaseAcquired | events.AcquireMissed, had: str) -> str:
    """Return why an acquisition got nothing from other pools."""
    return "".join(
        f"; pool {_quoted(other.pool_name)}{had}: "
        f"{_limited(event, other) or _WHY_MISSED[other.reason]}"
        for other in events.fallback_of(event)
    )


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
        _at_cost(event),
    ]
    if event.retry_after_seconds is not None:
        parts.append(f", asking to be left alone for {lasting(event.retry_after_seconds)}")
    parts.append(f", said {_quoted(event.consumer)}{_because(event.note)}")
    if event.cools_until is not None and event.cools_until > event.recorded_at:
        parts.append(f"; the proxy rests for it, {_until(event)}")
    return "".join(parts)


def _at_cost(event: events.LeaseAcquired | events.OutcomeReported) -> str:
    return "" if event.cost is None else f", at a cost of {event.cost:f}"


def _in_a_row(event: events.OutcomeReported) -> str:
    """Return how many refusals and unclear failures there were without a success, if several."""
    has_earlier = event.outcome in REFUSALS and -event.streak > event.count
    return f", {-event.streak} times in a row refused or unclear" if has_earlier else ""


def _until(event: events.OutcomeReported | events.CoolDownSet) -> str:
    """Return for how long, and until when, a pair rests."""
    until = event.cools_until or event.recorded_at
    length = lasting((until - event.recorded_at).total_seconds())
    return f"for {length}, until {clock(until)}"


def _bound(event: events.SessionBound, proxy: str) -> str:
    """Return which proxy a key is bound to, until when, and what it had before."""
    until = f"session {_quoted(event.key)} is bound to {proxy} until {clock(event.expires_at)}"
    until += _exit(event.exit)
    if event.inherited_from is not None:
        return f"{until}, inherited from {_quoted(event.inherited_from)}"
    if event.replaced is not None:
        return f"{until}, in place of {event.replaced}, which was {event.because}"
    return until


def _rotated(event: events.ExitRotated, proxy: str) -> str:
    """Return which exit a lease took in place of which, and which session keeps it."""
    kept = "" if event.session is None else f", which session {_quoted(event.session)} keeps"
    return (
        f"{_quoted(event.consumer)} took another exit of {proxy}: {event.session_after} in "
        f"place of {event.session_before}{kept}"
    )


def _exits(
    event: events.RotationBegan | events.RotationCalled | events.RotationAnswered, proxy: str
) -> str:
    """Return what became of a proxy that is to take another exit by its link."""
    if isinstance(event, events.RotationCalled):
        return f"the link of {proxy} is called for another exit"
    if isinstance(event, events.RotationBegan):
        why = {
            "release": "as its last lease ended",
            "blocked": "as a target refused the one it has",
            "asked": "as somebody asked for it",
        }[event.because]
        return f"{proxy} rests for another exit until {clock(event.ends_at)}, {why}"
    if event.failure is None:
        address = f", {event.exit_ip}" if event.exit_ip else ""
        return f"{proxy} has another exit{address}"
    answer = f" with {event.status}" if event.status else ""
    then = "it keeps the one that it has"
    if event.ends_at is not None and event.calls_at is not None:
        then = f"it is called again at {clock(event.calls_at)}"
    return f"the link of {proxy} gave no other exit ({event.failure}{answer}): {then}"


def _exit(gateway_exit: GatewayExit | None) -> str:
    """Return which exit of a gateway is asked for, if it is a gateway."""
    if gateway_exit is None:
        return ""
    parts = [
        f" {gateway_exit.session}" if gateway_exit.session else "",
        f" in {gateway_exit.country}" if gateway_exit.country else "",
        f" for {gateway_exit.minutes} min" if gateway_exit.minutes else "",
    ]
    return f", by its exit{''.join(parts)}"


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
        *_bounds(event.limits),
        f"a GB costs {event.cost_per_gb:f}" if event.cost_per_gb else "",
        f"a lease costs {event.cost_per_lease:f}" if event.cost_per_lease else "",
        ""
        if event.reported_failures is None
        else "failures that holders report count as failed health checks"
        if event.reported_failures
        else "failures that holders report do not count as failed health checks",
        rotates_in_words(event.rotation) or "",
    ]
    description = ", ".join(filter(None, parts))
    return f": {description}" if description else ""


def rotates_in_words(policy: RotationPolicy | None) -> str | None:
    """Return when proxies with a link take another exit; None if only when somebody asks."""
    if policy is None:
        return None
    when = {"release": "after each lease", "blocked": "when a target refused it"}[policy.on]
    return (
        f"a proxy with a link takes another exit {when}, within {lasting(policy.within_seconds)}"
        + (f", every {lasting(policy.every_seconds)} at most" if policy.every_seconds else "")
        + (f", and settles for {lasting(policy.settle_seconds)}" if policy.settle_seconds else "")
    )


def _bounds(limits: PoolLimits | None) -> Iterator[str]:
    """Yield what bounds the leases of a pool."""
    if limits is None:
        return
    for most, whose in (
        (limits.leases_per_consumer, "a consumer holds"),
        (limits.leases_per_target, "a target is leased for with"),
    ):
        if most is not None:
            yield f"{whose} {counted(most, 'lease', 'leases')} at most"
    yield from map(_paced, limits.paces)
    if budgets := shown_budgets(limits):
        yield f"{budgets} a day"


def _paced(pace: Pace) -> str:
    whose = {"pair": "a proxy for one target"}.get(pace.per, f"a {pace.per}")
    starts = counted(pace.starts, "lease", "leases")
    return f"{whose} begins {starts} in {lasting(pace.seconds)} at most"


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
