"""Random commands against memory, PostgreSQL and a plain model: no step tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar
from uuid import UUID, uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import projections
from pharox import (
    CoolDown,
    DefaultSeconds,
    HealthCheckResult,
    HealthPolicy,
    InMemoryStorage,
    Lease,
    LeaseEndedError,
    MissReason,
    Outcome,
    OutcomeKind,
    PharoxError,
    Proxy,
    ProxyFilters,
    ProxyNotFoundError,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    ProxyUnavailableError,
    SelectorStrategy,
    TargetOutcomes,
)
from pharox.events import EventBase
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.folding import Folder
from pharox.storage.reports import CoolDownRequest, ReportRequest
from pharox.storage.requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    EndedLease,
    ReleaseRequest,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
    SetAcquisition,
)
from tests.conftest import (
    SECRET_KEY,
    AnyStorage,
    Clock,
    clock_of,
    new_database,
    open_engine,
)

from .plain_model import PlainModel

POOLS = ("plain", "slow")
COUNTRIES = ("AR", "CL", None)
FILTERS = st.sampled_from(
    [
        None,
        None,
        ProxyFilters(country="AR"),
        ProxyFilters(none_of=[ProxyFilters(country="AR")]),
        ProxyFilters(any_of=[ProxyFilters(country="CL"), ProxyFilters(source="a")]),
        ProxyFilters(predicate=lambda proxy: proxy.port % 2 == 0),
        ProxyFilters(none_of=[ProxyFilters(predicate=lambda proxy: proxy.country is None)]),
    ]
)
SELECTORS = st.sampled_from([None, *SelectorStrategy])
STATUSES = st.sampled_from([*ProxyStatus, ProxyStatus.ACTIVE, ProxyStatus.ACTIVE])
PICK = st.integers(0, 10**6)
HOSTS = ("shop.example", "news.example")
OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from([*OutcomeKind, OutcomeKind.BLOCKED]),
    target=st.sampled_from([*HOSTS, None]),
    status=st.sampled_from([None, 403, 429]),
    retry_after_seconds=st.sampled_from([None, None, None, 0, 12.5, 200]),
    count=st.integers(1, 3),
)
COOL_DOWNS = (
    CoolDown(jitter=0),
    CoolDown(base_seconds=20, factor=1.5, max_seconds=25, jitter=0, after=1),
    CoolDown(base_seconds=0),
)
"""Jitter is drawn from the lease's id, which each storage makes up for itself."""


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing to all three and compares what came of it."""

    server_url: ClassVar[str]
    template: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._database = new_database(self.server_url, f"m_{uuid4().hex[:16]}", self.template)
        engine = open_engine(self._database.__enter__())
        self.postgres = PostgresStorage(engine, secret_keys=[SECRET_KEY])
        self.memory = InMemoryStorage()
        self.both: tuple[AnyStorage, AnyStorage] = (self.memory, self.postgres)
        self.clocks: list[Clock] = [clock_of(storage) for storage in self.both]
        self.model = PlainModel(now=self.clocks[0].now)
        self.held: list[tuple[Lease, Lease]] = []

    def teardown(self) -> None:
        assert self.postgres.verify() == []
        self.postgres.close()
        self._database.__exit__()

    # Rules

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        for number, name in enumerate(POOLS):
            pool = ProxyPool(
                id=UUID(int=9 - number),
                name=name,
                lease_slow=name == "slow",
                cool_down=COOL_DOWNS[0],
            )
            self.model.pools[pool.id] = pool
            for storage in self.both:
                storage.save_pool(pool)
        for number in range(count):
            self.register(number % 2, 0, ProxyStatus.ACTIVE, 1 + number % 2, 0)

    @rule(
        pool=st.integers(0, 1),
        place=st.integers(0, 2),
        status=STATUSES,
        capacity=st.sampled_from([None, 0, 1, 1, 2]),
        age=st.integers(0, 3),
    )
    def register(
        self, pool: int, place: int, status: ProxyStatus, capacity: int | None, age: int
    ) -> None:
        """A proxy without a capacity, here 0, has that of its pool."""
        limit = {} if capacity == 0 else {"max_concurrency": capacity}
        proxy = Proxy(
            id=UUID(int=len(self.model.proxies) * 7919 % 1000 + 1000 * pool + age),
            host=f"proxy-{place}.example",
            port=8000 + age,
            protocol=ProxyProtocol.SOCKS5,
            pool_id=list(self.model.pools)[pool],
            status=status,
            checked_at=self.model.now - timedelta(minutes=age),
            country=COUNTRIES[place],
            source="a" if age % 2 else None,
            weight=(None, 3, 7)[age % 3],
            **limit,
        )
        known = self.model.proxies.get(proxy.id)
        if known is not None and known.pool_id != proxy.pool_id:
            return
        of_pool = {"max_concurrency": self.model.pools[proxy.pool_id].max_concurrency}
        self.model.decide(proxy if limit else proxy.model_copy(update=of_pool))
        for storage in self.both:
            storage.save_proxy(proxy)

    @rule(pool=st.integers(0, 2), selector=SELECTORS, filters=FILTERS, seconds=st.integers(1, 90))
    def acquire(
        self,
        pool: int,
        selector: SelectorStrategy | None,
        filters: ProxyFilters | None,
        seconds: int,
    ) -> None:
        name = [*POOLS, "unknown"][pool]
        request = AcquireRequest(name, f"worker-{seconds % 3}", seconds, filters, selector, True)
        ours, theirs = (storage.acquire_lease(request) for storage in self.both)
        assert ours.miss_reason == theirs.miss_reason
        assert ours.stats == theirs.stats
        assert len(ours.expired) == len(theirs.expired)
        if name == "unknown":
            assert ours.miss_reason == "unknown_pool"
            return
        wanted = self._pool(name)
        self.model.end_bans(wanted.id)
        assert self.model.expire(wanted.id) == len(ours.expired)
        self._begin_search(filters)
        chosen = self.model.offer(wanted, selector, filters)
        if chosen is None:
            assert (ours.lease, theirs.lease) == (None, None)
            assert ours.miss_reason == self.model.reason(wanted, filters)
        else:
            assert ours.lease is not None
            assert theirs.lease is not None
            assert (ours.lease.proxy_id, theirs.lease.proxy_id) == (chosen.id, chosen.id)
            self.model.grant(chosen, request.consumer_name, seconds)
            self.held.append((ours.lease, theirs.lease))
            self.model.turn(chosen, selector)
        assert ours.stats == self.model.stats(wanted)
        assert ours.selector == theirs.selector == self.model.used(wanted, selector)

    @rule(
        pool=st.sampled_from(POOLS),
        selector=SELECTORS,
        filters=FILTERS,
        count=st.integers(1, 6),
        missing=st.integers(0, 5),
        distinct=st.booleans(),
    )
    def acquire_set(
        self,
        pool: str,
        selector: SelectorStrategy | None,
        filters: ProxyFilters | None,
        count: int,
        missing: int,
        distinct: bool,
    ) -> None:
        """A set is what single acquisitions would be, or nothing but a miss."""
        wanted, at_least = self._pool(pool), max(1, count - missing)
        request = AcquireSetRequest(
            pool, "setter", count, DefaultSeconds(60), filters, selector, True, at_least, distinct
        )
        ours, theirs = (storage.acquire_set(request) for storage in self.both)
        self.model.end_bans(wanted.id)
        assert self.model.expire(wanted.id) == len(ours.expired) == len(theirs.expired)
        self._begin_search(filters)
        self._check_set(request, ours, theirs)

    @precondition(lambda self: self.model.proxies)
    @rule(
        releases=st.lists(PICK, max_size=3),
        asked=st.lists(st.tuples(st.sampled_from(POOLS), SELECTORS, FILTERS), max_size=3),
        swapped=st.booleans(),
    )
    def batch(
        self,
        releases: list[int],
        asked: list[tuple[str, SelectorStrategy | None, ProxyFilters | None]],
        swapped: bool,
    ) -> None:
        """A batch is expiry, then its releases, then its acquisitions, whatever their order."""
        asked = [*asked, *((pool, SelectorStrategy.LEAST_USED, None) for pool in POOLS)]
        picks = [pick % len(self.held) for pick in releases if self.held]
        acquiring: list[Command] = [
            AcquireRequest(pool, f"batch-{i % 2}", _duration_s(i % 2), filters, selector, True)
            for i, (pool, selector, filters) in enumerate(asked)
        ]
        answers = []
        for number, storage in enumerate(self.both):
            giving_back: list[Command] = [
                ReleaseRequest(self.held[pick][number], "done", True) for pick in picks
            ]
            parts = [acquiring, giving_back] if swapped else [giving_back, acquiring]
            found = list(storage.run_batch([*parts[0], *parts[1]]))
            if swapped:
                found = [*found[len(acquiring) :], *found[: len(acquiring)]]
            answers.append(found)
        ours, theirs = answers
        expired = 0
        for one, other in zip(ours, theirs, strict=True):
            assert not isinstance(one, Exception)
            assert not isinstance(other, Exception)
            assert len(one.expired) == len(other.expired)
            expired += len(one.expired)
        self.model.end_bans()
        assert self.model.expire() == expired
        for _, _, filters in asked:
            self._begin_search(filters)
        for pick, one, other in zip(picks, ours, theirs, strict=False):
            self._check_release(pick, one, other)
        for i, ((pool, selector, filters), one, other) in enumerate(
            zip(asked, ours[len(picks) :], theirs[len(picks) :], strict=True)
        ):
            self._begin_search(filters)
            self._check_acquisition(pool, selector, filters, f"batch-{i % 2}", one, other)

    @rule(pool=st.sampled_from(POOLS), selector=SELECTORS, filters=FILTERS)
    def find(
        self, pool: str, selector: SelectorStrategy | None, filters: ProxyFilters | None
    ) -> None:
        ours, theirs = (s.find_available_proxy(pool, filters, selector) for s in self.both)
        expected = self.model.offer(self._pool(pool), selector, filters)
        assert ours == theirs
        assert (ours and ours.id) == (expected and expected.id)
        if expected is not None:
            self.model.turn(expected, selector)

    @precondition(lambda self: self.model.proxies)
    @rule(pick=PICK, seconds=st.integers(1, 90))
    def lease_one(self, pick: int, seconds: int) -> None:
        proxy = self._proxy(pick)
        self.model.end_bans(proxy.pool_id)
        proxy = self.model.proxies[proxy.id]
        self.model.expire(proxy.pool_id)
        granted: list[Lease] = []
        for storage in self.both:
            with suppress(ProxyUnavailableError, ProxyNotFoundError):
                granted.append(storage.create_lease(proxy, "direct", seconds))
        pool = self.model.pools[proxy.pool_id]
        is_free = self.model.has_room(proxy) and not self.model.is_resting(proxy)
        if self.model.healthy(pool, proxy) and is_free:
            self.held.append((granted[0], granted[1]))
            self.model.grant(proxy, "direct", seconds)
        else:
            assert granted == []

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        number = pick % len(self.held)
        plain = self.model.leases[number]
        was_held = plain.status == "active" and plain.expires_at > self.model.now
        late = plain.status == "active" and not was_held
        returned: list[ReleaseResult] = []
        for storage, lease in zip(self.both, self.held[number], strict=True):
            returned.append(storage.return_lease(lease, with_stats=True))
        ours, theirs = returned
        assert (ours.ending is not None) == (theirs.ending is not None) == was_held
        assert len(ours.expired) == len(theirs.expired)
        if was_held:
            self.model.end(plain, "released")
            assert ours.ending is not None
            assert theirs.ending is not None
            assert ours.ending.stats == theirs.ending.stats
        elif late:
            assert self.model.expire(plain.pool_id) == len(ours.expired)
        if any(len(storage.list_leases()) > number for storage in self.both):
            ours_lease, theirs_lease = self.held[number]
            assert ours_lease.status == theirs_lease.status
            assert ours_lease.released_at == theirs_lease.released_at

    @precondition(lambda self: self.held)
    @rule(
        picks=st.lists(PICK, min_size=1, max_size=4),
        seconds=st.sampled_from([None, None, 1, 60, 500]),
        forged=st.booleans(),
    )
    def renew(self, picks: list[int], seconds: int | None, forged: bool) -> None:
        """Those that have not ended are extended, each for its own time if none is said."""
        numbers = [pick % len(self.held) for pick in picks]
        orders = [sorted(numbers, key=lambda n: self.held[n][side].id) for side in (0, 1)]
        if orders[0] != orders[1]:  # Ids of one millisecond are in no order, which renewals have.
            numbers = numbers[:1]
        answers = []
        for side, storage in enumerate(self.both):
            leases = [self.held[number][side] for number in numbers]
            if forged:
                wrong = {"fencing_token": 10**9}
                leases[0] = leases[0].model_copy(update=wrong)
            answers.append(storage.renew_leases([RenewRequest(each, seconds) for each in leases]))
        for place, number in enumerate(numbers):
            ours, theirs = answers[0][place], answers[1][place]
            assert type(ours) is type(theirs)
            plain = self.model.leases[number]
            may = plain.status == "active" and plain.expires_at > self.model.now
            may = may and not (forged and place == 0)
            assert isinstance(ours, Lease) == may
            if may:
                bound = self.model.pools[plain.pool_id].max_held_seconds
                plain.renew(self.model.now, seconds, bound)
            if isinstance(ours, Lease) and isinstance(theirs, Lease):
                assert ours.expires_at == theirs.expires_at == plain.expires_at
                assert ours.renewed_at == theirs.renewed_at == self.model.now

    @precondition(lambda self: self.held)
    @rule(picks=st.lists(PICK, min_size=1, max_size=4), with_stats=st.booleans())
    def revoke(self, picks: list[int], with_stats: bool) -> None:
        """Those that have not ended do, one after the other, each once."""
        numbers = [pick % len(self.held) for pick in picks]
        answers = [
            storage.revoke_leases(
                RevokeRequest(tuple(self.held[n][side].id for n in numbers), "why", with_stats)
            )
            for side, storage in enumerate(self.both)
        ]
        for number, ours, theirs in zip(numbers, *answers, strict=True):
            plain = self.model.leases[number]
            if not self.model.revoke(plain):
                assert isinstance(ours, LeaseEndedError)
                assert isinstance(theirs, LeaseEndedError)
                continue
            assert isinstance(ours, EndedLease)
            assert isinstance(theirs, EndedLease)
            # What PostgreSQL answers does not say when a lease was renewed.
            told = ours.lease.model_copy(update={"renewed_at": theirs.lease.renewed_at})
            assert _story([told]) == _story([theirs.lease])
            stats = self.model.stats(self.model.pools[plain.pool_id]) if with_stats else None
            assert ours.stats == theirs.stats == stats

    @rule(
        pool=st.integers(0, 1),
        release=st.sampled_from([None, None, 0.0, 5.0, 50.0]),
        expiry=st.sampled_from([None, 0.0, 10.0, 99.5]),
        held=st.sampled_from([None, None, 50.0, 120.0]),
        cool_down=st.sampled_from(COOL_DOWNS),
        selector=SELECTORS,
        seconds=st.sampled_from([None, 20.0]),
        limit=st.sampled_from([None, 2]),
    )
    def set_rests_bound_and_defaults(
        self,
        pool: int,
        release: float | None,
        expiry: float | None,
        held: float | None,
        cool_down: CoolDown,
        selector: SelectorStrategy | None,
        seconds: float | None,
        limit: int | None,
    ) -> None:
        """Rests that have begun go on as they are."""
        rests = {
            "rest_after_release_seconds": release,
            "rest_after_expiry_seconds": expiry,
            "max_held_seconds": held,
            "cool_down": cool_down,
            "selector": selector,
            "lease_seconds": seconds,
            "max_concurrency": limit,
        }
        changed = list(self.model.pools.values())[pool].model_copy(update=rests)
        self.model.pools[changed.id] = changed
        for storage in self.both:
            storage.save_pool(changed)
            assert storage.get_pool(str(changed.id)) == changed

    @precondition(lambda self: self.held)
    @rule(reports=st.lists(st.tuples(PICK, OUTCOMES), min_size=1, max_size=5))
    def report(self, reports: list[tuple[int, Outcome]]) -> None:
        """Outcomes of leases, ended ones too, are recorded alike; a pruned lease is unknown."""
        answers = []
        of_pair = {
            (self.held[pick % len(self.held)][0].proxy_id, outcome.target): (pick, outcome)
            for pick, outcome in reports
        }
        for side, storage in enumerate(self.both):
            requests = [
                ReportRequest(self.held[pick % len(self.held)][side], outcome)
                for pick, outcome in of_pair.values()
            ]
            answers.append(storage.report_outcomes(requests))
        for ours, theirs in zip(*answers, strict=True):
            if isinstance(ours, PharoxError):
                assert type(ours) is type(theirs)
            else:
                assert ours == theirs

    @precondition(lambda self: self.model.proxies)
    @rule(
        pick=PICK,
        host=st.sampled_from(HOSTS),
        seconds=st.sampled_from([None, None, 30.0, 500.0]),
    )
    def set_cool_down(self, pick: int, host: str, seconds: float | None) -> None:
        request = CoolDownRequest(self._proxy(pick).id, host, seconds, "why")
        ours, theirs = (storage.set_cool_down(request) for storage in self.both)
        assert ours == theirs

    @rule(seconds=st.sampled_from([0.5, 10, 45, 100]))
    def time_passes(self, seconds: float) -> None:
        for clock in self.clocks:
            clock.advance(seconds)
        self.model.now = self.clocks[0].now

    @rule(seconds=st.sampled_from([0.5, 10, 45, 100]))
    def clock_goes_back(self, seconds: float) -> None:
        """Whoever cleans up notices it: leases from the future are re-dated."""
        self.time_passes(-seconds)
        self.model.redate()
        self.clean_up()

    @rule()
    def clean_up(self) -> None:
        self.model.end_bans()
        expected = self.model.expire()
        assert [storage.cleanup_expired_leases() for storage in self.both] == [expected, expected]

    @precondition(lambda self: self.model.proxies)
    @rule(pick=PICK, status=STATUSES, latency=st.integers(0, 5), age=st.integers(-2, 2))
    def check_health(self, pick: int, status: ProxyStatus, latency: int, age: int) -> None:
        result = self._result(pick, status, latency, age)
        ours, theirs = (storage.apply_health_check_result(result) for storage in self.both)
        self.model.check(result, HealthPolicy())
        expected = self.model.proxies[result.proxy_id]
        assert ours == theirs
        assert ours is not None
        assert (ours.status, ours.checked_at) == (expected.status, expected.checked_at)

    @precondition(lambda self: self.model.proxies)
    @rule(
        checks=st.lists(
            st.tuples(PICK, STATUSES, st.integers(0, 9), st.integers(-2, 4)), min_size=1, max_size=6
        ),
        policy=st.builds(HealthPolicy, *[st.integers(1, 3)] * 3),
    )
    def sweep(self, checks: list[tuple[int, ProxyStatus, int, int]], policy: HealthPolicy) -> None:
        """Results of a sweep come in batches, in any order, some twice, some too late."""
        results = [self._result(*check) for check in checks]
        ours, theirs = (storage.record_health_checks(results, policy) for storage in self.both)
        for result, one, other in zip(results, ours, theirs, strict=True):
            before = self.model.proxies[result.proxy_id].status
            holders = self.model.check(result, policy)
            after = self.model.proxies[result.proxy_id].status
            assert (one.status_before, one.status_after) == (before, after)
            assert replace(one, lease_ids=()) == replace(other, lease_ids=())
            for storage, outcome in zip(self.both, (one, other), strict=True):
                leases = [storage.get_lease(str(lease_id)) for lease_id in outcome.lease_ids]
                assert [lease and lease.consumer_name for lease in leases] == holders

    @precondition(lambda self: self.model.proxies)
    @rule(age=st.integers(-1, 1), held_back=st.integers(0, 2))
    def sweep_in_vain(self, age: int, held_back: int) -> None:
        """All proxies are found as they stand: their checks are one event, if they are several."""
        proxies = sorted(self.model.proxies.values(), key=lambda proxy: proxy.id)[held_back:]
        places = {proxy.id: place for place, proxy in enumerate(self.model.proxies.values())}
        self.sweep(
            [(places[proxy.id], proxy.status, i, age) for i, proxy in enumerate(proxies)],
            HealthPolicy(),
        )

    @precondition(lambda self: self.model.proxies)
    @rule(pick=PICK, status=st.sampled_from(ProxyStatus))
    def set_status(self, pick: int, status: ProxyStatus) -> None:
        proxy = self._proxy(pick)
        self.model.decide(proxy.model_copy(update={"status": status}))
        self.model.bans.pop(proxy.id, None)
        ours, theirs = (s.set_status(proxy.id, status, reason="why") for s in self.both)
        assert ours == theirs
        assert ours.status is status

    @precondition(lambda self: self.model.proxies)
    @rule(pick=PICK, seconds=st.sampled_from([0.5, 5, 45, 100]))
    def ban_for_a_time(self, pick: int, seconds: float) -> None:
        """It ends when somebody asks for a proxy or cleans up, not before."""
        proxy = self._proxy(pick)
        self.model.ban(proxy, seconds)
        ours, theirs = (
            s.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=seconds) for s in self.both
        )
        assert ours == theirs
        assert ours.banned_until == self.model.now + timedelta(seconds=seconds)

    @rule(
        pool=st.sampled_from([None, *POOLS]),
        age=st.sampled_from([None, 0, 1, 60]),
        statuses=st.one_of(st.none(), st.sets(st.sampled_from(ProxyStatus))),
    )
    def load_what_is_due(
        self, pool: str | None, age: float | None, statuses: set[ProxyStatus] | None
    ) -> None:
        ours, theirs = (
            list(s.load_proxies_for_healthchecks(pool, stale_after=age, statuses=statuses))
            for s in self.both
        )
        wanted = set(ProxyStatus) - {ProxyStatus.BANNED} if statuses is None else statuses
        due = {
            proxy.id
            for proxy in self.model.proxies.values()
            if (pool is None or proxy.pool_id == self._pool(pool).id)
            and proxy.status in wanted
            and (age is None or self._age(proxy) >= timedelta(seconds=age))
        }
        assert ours == theirs
        assert {proxy.id for proxy in ours} == due
        assert len(ours) == len(due)

    @precondition(lambda self: self.model.proxies)
    @rule(pick=PICK)
    def remove(self, pick: int) -> None:
        proxy = self._proxy(pick)
        self.model.end_held(proxy.id)
        self.model.forget(proxy.id)
        for storage in self.both:
            storage.delete_proxy(str(proxy.id))

    @rule(minutes=st.integers(0, 3))
    def prune(self, minutes: int) -> None:
        before = self.model.now - timedelta(minutes=minutes)
        counts = [storage.prune_leases(before) for storage in self.both]
        assert counts[0] == counts[1]

    @rule(lease_slow=st.booleans())
    def change_pool(self, lease_slow: bool) -> None:
        changed = self._pool("slow").model_copy(update={"lease_slow": lease_slow})
        self.model.pools[changed.id] = changed
        for storage in self.both:
            storage.save_pool(changed)

    @rule(batch=st.integers(1, 9))
    def fold_in_batches(self, batch: int) -> None:
        """However the log is cut, SQL folds it to what Python does."""
        log = list(self.postgres.events())
        with self.postgres.session(keep=False) as session:
            folder = Folder(session, "pharox", projections.ALL)
            folder.batch = batch
            folder.create()
            assert [*folder.advance(len(log))][-1:] == [len(log)]
            assert folder.states() == projections.fold(log, projections.ALL)

    @rule(part=st.floats(0, 1))
    def ask_for_the_past(self, part: float) -> None:
        """A state of the past is the fold of the events until then, from a snapshot or not."""
        log = list(self.postgres.events())
        seq = round(part * len(log))
        past = projections.current(projections.fold(log[:seq], projections.ALL), projections.ALL)
        assert self.postgres.state_at(seq) == past
        self.postgres.take_snapshot(seq)
        assert self.postgres.state_at(seq) == past

    @rule()
    def rebuild_all(self) -> None:
        """A rebuild finds nothing wrong with the live tables, and changes nothing in them."""
        before = self.postgres.live_states()
        assert rebuild(self.postgres).findings == ()
        assert self.postgres.live_states() == before

    # What holds after every step

    @precondition(lambda self: self.model.proxies)
    @rule(pick=PICK)
    def drain(self, pick: int) -> None:
        """It is banned, and removed with its last lease: at once if it has none."""
        proxy = self._proxy(pick)
        self.model.drain(proxy)
        self.model.remove_drained()
        ours, theirs = (storage.drain_proxy(proxy.id, reason="why") for storage in self.both)
        assert ours == theirs
        assert (ours is None) == (proxy.id not in self.model.proxies)

    @invariant()
    def statistics_agree(self) -> None:
        self.model.remove_drained()
        for pool in self.model.pools.values():
            expected = self.model.stats(pool)
            for storage in self.both:
                assert storage.get_pool_stats(pool.name) == expected

    @invariant()
    def read_models_agree(self) -> None:
        self.model.remove_drained()
        for pool in self.model.pools.values():
            ours, theirs = (storage.list_proxies(str(pool.id)) for storage in self.both)
            assert ours == theirs
            for proxy in ours:
                expected = self.model.proxies[proxy.id]
                kept = {
                    "current_leases": self.model.held(proxy.id),
                    "draining": proxy.id in self.model.draining,
                    "exit_ip": self.model.exits.get(proxy.id),
                    "banned_until": self.model.bans.get(proxy.id, (None,))[0],
                    "rests_until": self.model.rests[proxy.id]
                    if self.model.is_resting(proxy)
                    else None,
                }
                assert proxy == expected.model_copy(update=kept)
        stories = [_story(storage.list_leases()) for storage in self.both]
        assert stories[0] == stories[1]

    @invariant()
    def pairs_agree(self) -> None:
        ours, theirs = (storage.list_target_outcomes() for storage in self.both)
        assert list(map(_pair, ours)) == list(map(_pair, theirs))

    @invariant()
    def logs_agree(self) -> None:
        ours, theirs = (list(storage.events()) for storage in self.both)
        assert [event.type for event in ours] == [event.type for event in theirs]
        assert _facts(ours) == _facts(theirs)

    @invariant()
    def read_models_are_the_fold_of_the_log(self) -> None:
        assert self.memory.verify() == []
        folded = projections.fold(self.postgres.events(), projections.ALL)
        assert self.postgres.live_states() == folded

    # Parts

    def _begin_search(self, filters: ProxyFilters | None) -> None:
        """Let a search with a predicate begin, which has a commit of its own."""
        if filters is not None and filters.requires_python():
            self.model.remove_drained()

    def _check_set(
        self, request: AcquireSetRequest, ours: SetAcquisition, theirs: SetAcquisition
    ) -> None:
        pool = self._pool(request.pool_name)
        found = self.model.offer_set(
            pool, request.selector, request.filters, request.count, distinct=request.distinct
        )
        assert (ours.miss_reason, ours.free) == (theirs.miss_reason, theirs.free)
        if len(found) < request.needed:
            reason = self.model.reason(pool, request.filters)
            assert ours.miss_reason == (MissReason.TOO_FEW if found else reason)
            assert (ours.free, ours.acquisitions) == (len(found), ())
            assert ours.stats == theirs.stats == self.model.stats(pool)
            return
        for proxy, one, other in zip(found, ours.acquisitions, theirs.acquisitions, strict=True):
            self._check_grant(proxy, request.selector, "setter", one, other)

    def _check_release(self, pick: int, one: object, other: object) -> None:
        assert isinstance(one, ReleaseResult)
        assert isinstance(other, ReleaseResult)
        plain = self.model.leases[pick]
        assert (one.ending is not None) == (other.ending is not None) == plain.is_held
        if plain.is_held:
            self.model.end(plain, "released")
            assert one.ending is not None
            assert other.ending is not None
            stats = self.model.stats(self.model.pools[plain.pool_id])
            assert one.ending.stats == other.ending.stats == stats

    def _check_acquisition(
        self,
        name: str,
        selector: SelectorStrategy | None,
        filters: ProxyFilters | None,
        consumer: str,
        one: object,
        other: object,
    ) -> None:
        assert isinstance(one, Acquisition)
        assert isinstance(other, Acquisition)
        pool = self._pool(name)
        chosen = self.model.offer(pool, selector, filters)
        if chosen is not None:
            self._check_grant(chosen, selector, consumer, one, other)
            return
        assert (one.lease, other.lease) == (None, None)
        assert one.miss_reason == other.miss_reason == self.model.reason(pool, filters)
        assert one.stats == other.stats == self.model.stats(pool)

    def _check_grant(
        self,
        proxy: Proxy,
        selector: SelectorStrategy | None,
        consumer: str,
        one: Acquisition,
        other: Acquisition,
    ) -> None:
        assert one.lease is not None
        assert other.lease is not None
        assert (one.lease.proxy_id, other.lease.proxy_id) == (proxy.id, proxy.id)
        of_pool = self.model.pools[proxy.pool_id].lease_seconds
        self.model.grant(proxy, consumer, 60 if consumer == "batch-0" else of_pool or 60)
        self.model.turn(proxy, selector)
        self.held.append((one.lease, other.lease))
        stats = self.model.stats(self.model.pools[proxy.pool_id])
        assert one.stats == other.stats == stats

    def _pool(self, name: str) -> ProxyPool:
        return next(pool for pool in self.model.pools.values() if pool.name == name)

    def _age(self, proxy: Proxy) -> timedelta:
        probed = self.model.probed.get(proxy.id)
        return timedelta.max if probed is None else self.model.now - probed

    def _result(self, pick: int, status: ProxyStatus, latency: int, age: int) -> HealthCheckResult:
        return HealthCheckResult(
            proxy_id=self._proxy(pick).id,
            status=status,
            latency_ms=latency * 100,
            protocol=ProxyProtocol.SOCKS5,
            checked_at=self.model.now - timedelta(seconds=age),
            exit_ip=f"198.51.100.{latency % 3}" if latency % 3 else None,
        )

    def _proxy(self, pick: int) -> Proxy:
        return list(self.model.proxies.values())[pick % len(self.model.proxies)]


def _duration_s(number: int) -> int:
    """Return how long to lease, or how long if the pool does not say it."""
    return DefaultSeconds(60) if number else 60


def _story(leases: Sequence[Lease]) -> list[object]:
    return [lease.model_dump(exclude={"id", "consumer_id", "fencing_token"}) for lease in leases]


def _facts(events: Sequence[EventBase]) -> list[dict[str, object]]:
    """Return events without the ids that each storage makes up for itself.

    Checks that are kept together are taken apart: how they are grouped is each storage's own.
    """
    unlike = {"position", "lease_id", "lease_ids", "consumer_id"}
    parts = (part.model_dump(exclude=unlike) for event in events for part in event.parts())
    return list(map(_rounded, parts))


def _pair(pair: TargetOutcomes) -> dict[str, object]:
    return _rounded(pair.model_dump())


def _rounded(facts: dict[str, object]) -> dict[str, object]:
    """Return facts with the counts of outcomes rounded, which are sums of what is rounded."""
    counts = {name: facts.get(name) for name in ("successes", "failures")}
    rounded = {name: round(n, 3) for name, n in counts.items() if isinstance(n, float)}
    return {**facts, **rounded}


def test_no_command_tells_memory_postgres_and_the_plain_model_apart(
    server_url: str, template: str
) -> None:
    """Results, read models, statistics, logs and folds agree after every random command."""

    class Machine(LedgerMachine):
        pass

    Machine.server_url, Machine.template = server_url, template
    run_state_machine_as_test(Machine, settings=settings(max_examples=15, stateful_step_count=30))
