"""Evaluate the alert rules that pharox ships for Prometheus, from what the ledger knows now.

Names, conditions and durations are those of ``prometheus-rules.yml``; a test holds the names
together. What only a process can tell of itself (how long its calls take, whose callbacks fail) is
not in the ledger: those rules are for Prometheus alone, see :data:`ELSEWHERE`.

A rule whose condition holds is pending until it has been seen to hold for its duration. It is seen
only while somebody looks: after :data:`LOOKED_S` without a look nobody knows what was in between,
so the duration begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from ..incident.wording import span
from ..models import PoolMove, SourceStatus
from ..storage.moving import LEAVING, STUCK_S, move_command
from .figures import PoolFigures, SubscriptionFigures
from .figures.activity import SLOT_S, Slot, slot_of

ELSEWHERE = (
    "PharoxSlowAcquisitions",
    "PharoxProviderFails",
    "PharoxCallbacksFail",
    "PharoxLedgerUnreadable",
    "PharoxNobodyCounts",
)
"""Rules that are not evaluated here: of processes, of metrics, and of the page's own database."""

LOOKED_S = 30.0
"""For how many seconds what was seen is taken to hold on until the next look: three times as long
as a page may be shown before its figures are read again."""

_RATE_SLOTS = 300 // SLOT_S


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at."""

    now: datetime
    pools: Sequence[PoolFigures]
    slots: Mapping[UUID, Mapping[int, Slot]]
    subscriptions: Sequence[SubscriptionFigures] = ()
    sources: Sequence[SourceStatus] = ()
    moves: Sequence[PoolMove] = ()

    def lately(self, pool: PoolFigures) -> list[Slot]:
        """Return a pool's slots of the last five minutes."""
        first = slot_of(self.now) - _RATE_SLOTS
        return [slot for number, slot in self.slots.get(pool.id, {}).items() if number > first]


class Found(NamedTuple):
    """A condition that holds: of what, and what to say and do about it.

    ``kind`` is "pool", "subscription", "source" or "move", and ``of`` the name of one; of a move
    the name of its pool.
    """

    of: str
    sentence: str
    advice: str
    pool_id: UUID | None = None
    kind: str = "pool"


class Rule(NamedTuple):
    """A rule: its name in Prometheus, for how many seconds it must hold, and its condition."""

    name: str
    for_s: int
    find: Callable[[Facts], Iterable[Found]]


class Alert(NamedTuple):
    """A rule seen to hold for something since a moment; pending before its duration is over."""

    rule: str
    found: Found
    since: datetime
    is_pending: bool


def _of_pool(pool: PoolFigures, sentence: str, advice: str) -> Found:
    return Found(pool.name, sentence, advice, pool.id)


def _nearly_exhausted(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        if pool.active and pool.available < 0.1 * pool.active:
            left = f"{pool.available:,} of {pool.active:,} healthy proxies have room for a lease"
            yield _of_pool(pool, left, "Add proxies, or look who holds them.")


def _many_misses(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        slots = facts.lately(pool)
        misses = sum(slot.misses.total() for slot in slots)
        asked = misses + sum(slot.granted for slot in slots)
        if misses > 0.1 * asked:
            said = f"{misses:,} of {asked:,} attempts in five minutes found nothing"
            yield _of_pool(pool, said, "The misses by reason say why.")


def _long_queue(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        if pool.waiting > 100:
            said = f"{pool.waiting:,} requests wait for a proxy"
            yield _of_pool(pool, said, "Add proxies, or look who holds them.")


def _long_wait(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        if pool.longest_wait_s > 60:
            said = f"A request has waited {span(pool.longest_wait_s)}"
            yield _of_pool(pool, said, "What it asks for may seldom be free, or leases are long.")


def _waits_in_vain(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        slots = facts.lately(pool)
        waits = sum(slot.waited for slot in slots)
        vain = sum(slot.waited_in_vain for slot in slots)
        if vain > 0.1 * waits:
            said = f"{vain:,} of {waits:,} waits in five minutes ended with nothing"
            yield _of_pool(pool, said, "Wait longer, or add proxies.")


def _many_inactive(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        if pool.active < 0.7 * pool.total:
            said = f"Only {pool.active:,} of {pool.total:,} proxies are healthy"
            yield _of_pool(pool, said, "The proxies' last checks say what was found.")


def _stuck_lease(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        if pool.oldest_lease_s > 3600:
            said = f"A lease has been held for {span(pool.oldest_lease_s)}"
            yield _of_pool(pool, said, "Its holder may hang.")


def _overdue_leases(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        if pool.overdue:
            said = f"{pool.overdue:,} leases have run out and were not taken back"
            yield _of_pool(pool, said, "Nobody asks for its proxies: expire leases now and then.")


def _subscription_lag(facts: Facts) -> Iterator[Found]:
    for each in facts.subscriptions:
        if each.lag_s > 60:
            said = f"It is {span(each.lag_s)} behind the log"
            advice = "Its reader is slow, or there is none."
            yield Found(each.name, said, advice, kind="subscription")


def _parked_events(facts: Facts) -> Iterator[Found]:
    for each in facts.subscriptions:
        if each.parked:
            said = f"It could not take {each.parked:,} events"
            advice = "Their errors are with the subscription."
            yield Found(each.name, said, advice, kind="subscription")


def _many_refusals(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        slots = facts.lately(pool)
        blocked = sum(slot.outcomes["blocked"] for slot in slots)
        requests = sum(slot.outcomes.total() for slot in slots)
        if blocked > 0.2 * requests:
            said = f"Targets refused {blocked:,} of {requests:,} requests in five minutes"
            yield _of_pool(
                pool, said, "The stories of the targets say which, and of which proxies."
            )


def _target_in_trouble(facts: Facts) -> Iterator[Found]:
    for pool in facts.pools:
        if sum(slot.troubled for slot in facts.lately(pool)):
            said = "A target fails for most of its proxies"
            yield _of_pool(pool, said, "It is tried by one lease at a time.")


def _stale_source(facts: Facts) -> Iterator[Found]:
    for each in facts.sources:
        age_s = (facts.now - (each.succeeded_at or each.saved_at)).total_seconds()
        if each.enabled and age_s > max(3 * each.every_seconds, 300):
            often = f"though it should be every {span(each.every_seconds)}"
            said = f"It was {'last' if each.succeeded_at else 'never'} fetched well"
            said += f", {span(age_s)} ago" if each.succeeded_at else f" in {span(age_s)}"
            advice = each.failure and f"It fails: {each.failure.rstrip('.')}."
            nobody = "Nobody runs pharox sources refresh --every."
            yield Found(each.name, f"{said}, {often}", advice or nobody, each.pool_id, "source")


def _stuck_move(facts: Facts) -> Iterator[Found]:
    for each in facts.moves:
        most_s = STUCK_S.get(each.stage, float("inf"))
        age_s = (facts.now - each.changed_at).total_seconds()
        if age_s > most_s:
            said = f"It {LEAVING[each.stage]} for {each.ledger} {span(age_s)} ago"
            said += " and has not arrived"
            command = move_command(each.pool_name, each.ledger)
            advice = f"Nobody can lease from it. Go on with {command}, or take it back with --back."
            yield Found(each.pool_name, said, advice, each.pool_id, "move")


RULES = (
    Rule("PharoxPoolNearlyExhausted", 300, _nearly_exhausted),
    Rule("PharoxManyMisses", 300, _many_misses),
    Rule("PharoxLongQueue", 300, _long_queue),
    Rule("PharoxLongWait", 300, _long_wait),
    Rule("PharoxWaitsInVain", 300, _waits_in_vain),
    Rule("PharoxManyInactive", 600, _many_inactive),
    Rule("PharoxStuckLease", 300, _stuck_lease),
    Rule("PharoxOverdueLeases", 600, _overdue_leases),
    Rule("PharoxSubscriptionLag", 300, _subscription_lag),
    Rule("PharoxParkedEvents", 0, _parked_events),
    Rule("PharoxManyRefusals", 300, _many_refusals),
    Rule("PharoxTargetInTrouble", 0, _target_in_trouble),
    Rule("PharoxStaleSource", 300, _stale_source),
    Rule("PharoxStuckMove", 300, _stuck_move),
)


class Watch:
    """Remembers since when each condition was seen to hold."""

    def __init__(self) -> None:
        self._looked_at: datetime | None = None
        self._since: dict[tuple[str, str, str], datetime] = {}

    def look(self, facts: Facts) -> list[Alert]:
        """Return what holds now, first what has held for long enough."""
        found = [(rule, each) for rule in RULES for each in rule.find(facts)]
        if self._looked_at and facts.now - self._looked_at > timedelta(seconds=LOOKED_S):
            self._since = {}
        self._looked_at = facts.now
        holding = {(rule.name, each.kind, each.of) for rule, each in found}
        self._since = {key: self._since.get(key, facts.now) for key in sorted(holding)}
        alerts = []
        for rule, each in found:
            since = self._since[rule.name, each.kind, each.of]
            is_pending = (facts.now - since).total_seconds() < rule.for_s
            alerts.append(Alert(rule.name, each, since, is_pending))
        return sorted(alerts, key=lambda alert: (alert.is_pending, alert.since))
