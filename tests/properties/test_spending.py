"""Costs are the same in memory, in PostgreSQL, in the fold of the log, and worked out by hand.

By hand means with fractions, from prices that the test itself remembers: neither decimals nor
events of the ledger are in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import projections
from pharox import (
    InMemoryStorage,
    Lease,
    MissReason,
    Outcome,
    OutcomeKind,
    PoolLimits,
    PoolNotFoundError,
    Proxy,
    ProxyFilters,
    ProxyNotFoundError,
    ProxyPool,
    ProxyStatus,
    ProxyUnavailableError,
    Sticky,
    Usage,
)
from pharox.models.money import cost_of_bytes, plain, total
from pharox.models.usage import USAGE_KEYS
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import ReportRequest
from pharox.storage.requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    SetAcquisition,
)
from projections.spending import WHOLE_POOL
from tests.conftest import AnyStorage, Clock, clock_of, proxies_of

PRICES = st.one_of(
    st.none(),
    st.sampled_from(["0", "0.1", "3.5", "0.000000001", "999999.999999999"]),
    st.decimals(0, 999_999, places=9).map(str),
    st.decimals(0, 10**12, places=2).map(str),
)
BYTES = st.one_of(st.none(), st.sampled_from([0, 1, 333, 10**9, 2**53 + 1, 2**63 - 1]))
MAYBE_BYTES = st.sampled_from([None, None, 1, 333, 334, 10**9, 2**53 - 1])
MAYBE_MONEY = st.sampled_from([None, None, "0.000000001", "0.1", "3.5", "1000000"])
OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from([OutcomeKind.OK, OutcomeKind.OK, OutcomeKind.BLOCKED]),
    target=st.sampled_from([None, "shop.example", "else.example"]),
    bytes=BYTES,
    count=st.integers(1, 5),
)
ASKED = st.fixed_dictionaries(
    {
        "consumer": st.sampled_from(["a", "b", "ü"]),
        "target": st.sampled_from([None, "shop.example"]),
        "how": st.sampled_from(["one", "filters", "id", "sticky", "set", "exact"]),
        "outcome": OUTCOMES,
        "prices": st.tuples(PRICES, PRICES),
        "limits": st.one_of(
            st.none(),
            st.builds(
                PoolLimits,
                bytes_per_day=MAYBE_BYTES,
                consumer_bytes_per_day=MAYBE_BYTES,
                money_per_day=MAYBE_MONEY,
                consumer_money_per_day=MAYBE_MONEY,
            ),
        ),
    }
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["acquire"] * 5,
                *["report"] * 6,
                *["release"] * 2,
                *["price_pool", "price_proxy", "price_proxy", "label", "rename"],
                *["limit", "limit"],
                *["wait", "wait", "prune", "ban", "leave", "remove"],
            ]
        ),
        st.integers(0, 10**6),
        ASKED,
    ),
    min_size=5,
    max_size=30,
)


class Used(NamedTuple):
    """One lease or report, as the test remembers it."""

    consumer: str
    source: str | None
    target: str | None
    pool: str
    day: date
    leases: int
    requests: int
    ok: int
    bytes: int
    money: Fraction


class TwoLives:
    """Leads the same life in two storages, and remembers what it has cost."""

    def __init__(self, both: Sequence[AnyStorage], clocks: Sequence[Clock]) -> None:
        self.both, self.clocks = both, clocks
        self.pool = ProxyPool(name=f"pool {uuid4()}")
        self.known = {proxy.id: proxy for proxy in proxies_of(self.pool, 4)}
        for number, proxy in enumerate(self.known.values()):
            proxy.max_concurrency = (1, 2, None, None)[number]
            proxy.source = (None, "acme", "emca", "acme")[number]
        self.ids = list(self.known)
        self.sources = {each.id: each.source for each in self.known.values()}
        self.is_gone = False
        self.leases: list[tuple[Lease, Lease]] = []
        self.used: list[Used] = []
        self.misses: list[Any] = []
        for storage in both:
            storage.save_pool(self.pool)
            storage.add_proxies_bulk(list(self.known.values()))

    def acquire(self, pick: int, asked: dict[str, Any]) -> None:
        is_used_up = self._is_used_up(asked["consumer"])
        answers = [self._acquire(storage, pick, asked) for storage in self.both]
        assert [x.proxy_id for x in answers[0]] == [x.proxy_id for x in answers[1]]
        assert not (is_used_up and answers[0])
        for ours, theirs in zip(*answers, strict=True):
            self.leases.append((ours, theirs))
            price = self._price(ours.proxy_id, "cost_per_lease")
            self._note(ours, asked["target"] if asked["how"] != "exact" else None, price, leases=1)

    def _acquire(self, storage: AnyStorage, pick: int, asked: dict[str, Any]) -> list[Lease]:
        name, consumer, target = self.pool.name, asked["consumer"], asked["target"]
        if asked["how"] == "exact":
            with suppress(KeyError, ProxyNotFoundError, ProxyUnavailableError):
                proxy = self.known[self.ids[pick % 4]]
                return [storage.create_lease(proxy, consumer, 10_000_000)]
            return []
        if asked["how"] == "set":
            wish = AcquireSetRequest(name, consumer, 2, 10_000_000, at_least=1, target=target)
            answer = storage.acquire_set(wish)
            self._note_miss(answer)
            return [each.lease for each in answer.acquisitions if each.lease is not None]
        further: dict[str, Any] = {}
        if asked["how"] == "filters":
            further["filters"] = ProxyFilters(source="acme")
        elif asked["how"] == "id":
            further["lease_id"] = asked.setdefault("own_id", uuid4())  # The same in both storages.
        elif asked["how"] == "sticky":
            further["sticky"] = Sticky("key")
        request = AcquireRequest(name, consumer, 10_000_000, target=target, **further)
        found = storage.acquire_lease(request)
        self._note_miss(found)
        return [] if found.lease is None else [found.lease]

    def _note_miss(self, answer: Acquisition | SetAcquisition) -> None:
        """Remember why a storage granted nothing: both must say the same."""
        reached = answer.limit and answer.limit.model_dump()
        self.misses.append((answer.miss_reason, reached, answer.retry_after_seconds))
        if answer.miss_reason is MissReason.LIMIT_REACHED and answer.limit is not None:
            now = self.clocks[0].now
            midnight = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
            assert answer.retry_after_seconds == (midnight - now).total_seconds()
            assert answer.limit.used >= answer.limit.most

    def _is_used_up(self, consumer: str) -> bool:
        """Return whether a budget of the day is used up, by what the test remembers."""
        limits, day = self.pool.limits or PoolLimits(), self.clocks[0].now.date()
        return any(
            most is not None
            and sum(getattr(used, unit) for used in self.used if used.day == day and who(used))
            >= Fraction(most)
            for most, unit, who in (
                (limits.bytes_per_day, "bytes", lambda _: True),
                (limits.money_per_day, "money", lambda _: True),
                (limits.consumer_bytes_per_day, "bytes", lambda used: used.consumer == consumer),
                (limits.consumer_money_per_day, "money", lambda used: used.consumer == consumer),
            )
        )

    def report(self, pick: int, asked: dict[str, Any]) -> None:
        if not self.leases:
            return
        outcome: Outcome = asked["outcome"]
        held = self.leases[pick % len(self.leases)]
        answers = [
            storage.report_outcomes([ReportRequest(lease, outcome)])[0]
            for storage, lease in zip(self.both, held, strict=True)
        ]
        assert type(answers[0]) is type(answers[1])
        if isinstance(answers[0], Exception):
            return
        lease = held[0]
        price = self._price(lease.proxy_id, "cost_per_gb")
        self._note(
            lease,
            outcome.target or lease.target,
            price * (outcome.bytes or 0) / 10**9,
            requests=outcome.count,
            ok=outcome.count if outcome.kind is OutcomeKind.OK else 0,
            bytes=outcome.bytes or 0,
        )

    def _price(self, proxy_id: UUID, name: str) -> Fraction:
        proxy = self.known.get(proxy_id)
        own = None if proxy is None else getattr(proxy, name)
        price = getattr(self.pool, name) if own is None else own
        return Fraction(price or 0)

    def _note(self, lease: Lease, target: str | None, money: Fraction, **counts: int) -> None:
        proxy = self.sources[lease.proxy_id]
        day = self.clocks[0].now.date()
        self.used.append(
            Used(
                consumer=lease.consumer_name or "",
                source=proxy,
                target=target,
                pool=lease.pool_name or "",
                day=day,
                money=money,
                leases=counts.get("leases", 0),
                requests=counts.get("requests", 0),
                ok=counts.get("ok", 0),
                bytes=counts.get("bytes", 0),
            )
        )

    def release(self, pick: int, _: dict[str, Any]) -> None:
        if self.leases:
            held = self.leases[pick % len(self.leases)]
            for storage, lease in zip(self.both, held, strict=True):
                storage.return_lease(lease)

    def price_pool(self, _: int, asked: dict[str, Any]) -> None:
        self._change_pool(cost_per_gb=asked["prices"][0], cost_per_lease=asked["prices"][1])

    def limit(self, _: int, asked: dict[str, Any]) -> None:
        self._change_pool(limits=asked["limits"])

    def rename(self, pick: int, _: dict[str, Any]) -> None:
        self._change_pool(name=f"pool {pick} {uuid4()}")

    def _change_pool(self, **changes: Any) -> None:
        if self.is_gone:
            return
        self.pool = ProxyPool(**{**self.pool.model_dump(), **changes})
        for storage in self.both:
            storage.save_pool(self.pool)

    def price_proxy(self, pick: int, asked: dict[str, Any]) -> None:
        prices = asked["prices"]
        self._change_proxy(pick, cost_per_gb=prices[0], cost_per_lease=prices[1])

    def label(self, pick: int, _: dict[str, Any]) -> None:
        self._change_proxy(pick, source=(None, "acme", "emca")[pick // 4 % 3])

    def _change_proxy(self, pick: int, **changes: Any) -> None:
        proxy_id = self.ids[pick % 4]
        if proxy_id not in self.known:
            return
        own = self.known[proxy_id].model_dump(exclude={"current_leases", "rests_until"})
        self.known[proxy_id] = proxy = Proxy(**{**own, **changes})
        self.sources[proxy_id] = proxy.source
        for storage in self.both:
            storage.change_proxy(proxy)

    def wait(self, pick: int, _: dict[str, Any]) -> None:
        now = self.clocks[0].now
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        to_midnight = (midnight - now).total_seconds()
        seconds = (5, to_midnight - 0.000001, 0.000001, to_midnight, 86_400)[pick % 5]
        for clock in self.clocks:
            clock.advance(seconds)

    def prune(self, pick: int, _: dict[str, Any]) -> None:
        before = self.clocks[0].now - timedelta(seconds=pick % 120)
        for storage in self.both:
            storage.prune_leases(before)

    def ban(self, pick: int, _: dict[str, Any]) -> None:
        """Ban for a minute: the end of a ban describes the proxy anew."""
        for storage in self.both:
            with suppress(ProxyNotFoundError):
                storage.set_status(self.ids[pick % 4], ProxyStatus.BANNED, for_seconds=60)

    def leave(self, pick: int, _: dict[str, Any]) -> None:
        proxy_id = self.ids[pick % 4]
        self.known.pop(proxy_id, None)
        for storage in self.both:
            with suppress(ProxyNotFoundError):
                storage.delete_proxy(str(proxy_id))

    def remove(self, pick: int, _: dict[str, Any]) -> None:
        if pick % 4:
            return
        self.known.clear()
        self.is_gone = True
        for storage in self.both:
            with suppress(PoolNotFoundError):
                storage.delete_pool(str(self.pool.id))

    def compare(self) -> None:
        """Misses are the same, and usage is what was remembered, however it is summed up."""
        assert self.misses[::2] == self.misses[1::2]
        names = {used.pool for used in self.used}
        for by in _selections():
            ours = self.both[0].usage(by)
            theirs = [u for name in sorted(names) for u in self.both[1].usage(by, pool_name=name)]
            by_name = [u for name in sorted(names) for u in self.both[0].usage(by, pool_name=name)]
            assert by_name == theirs
            assert {_group(u, by): _sums(u) for u in ours} == self._by_hand(by)

    def _by_hand(self, by: tuple[str, ...]) -> dict[Any, tuple[Any, ...]]:
        sums: dict[Any, tuple[Any, ...]] = {}
        for used in self.used:
            own = (used.leases, used.requests, used.ok, used.bytes, used.money)
            group = _group(used, by)
            before = sums.get(group, (0, 0, 0, 0, Fraction(0)))
            sums[group] = tuple(x + y for x, y in zip(before, own, strict=True))
        return sums


def _selections() -> Iterator[tuple[str, ...]]:
    yield ()
    for size in (1, 2, 5):
        yield from list(combinations(USAGE_KEYS, size))[:5]


def _group(used: Usage | Used, by: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(used, key) for key in by)


def _sums(usage: Usage) -> tuple[Any, ...]:
    return (usage.leases, usage.requests, usage.ok, usage.bytes, Fraction(usage.money))


def test_memory_postgres_the_fold_and_the_log_tell_the_same_costs(
    postgres: PostgresStorage,
) -> None:
    """Whatever is leased and reported while prices, labels and days change."""
    clock = clock_of(postgres)

    @given(STEPS)
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(steps: list[tuple[str, int, dict[str, Any]]]) -> None:
        memory = InMemoryStorage()
        clocks = [clock_of(memory), clock]
        clocks[0].advance((clock.now - clocks[0].now).total_seconds())
        lives = TwoLives((memory, postgres), clocks)
        for name, pick, asked in steps:
            getattr(lives, name)(pick, asked)
        lives.compare()
        assert memory.verify() == []
        pool_id = lives.pool.id
        ours = {k: v for k, v in memory._state.rows["spending"].items() if k[0] == pool_id}
        theirs = {k: v for k, v in postgres.live_states()["spending"].items() if k[0] == pool_id}
        assert ours == theirs
        for (_, day, consumer), row in ours.items():
            own = [u for u in lives.used if u.day == day and consumer in (u.consumer, WHOLE_POOL)]
            assert row.bytes == sum(used.bytes for used in own)
            assert Fraction(row.money) == sum(used.money for used in own)

    agree()
    assert postgres.verify() == []
    folded = projections.fold(postgres.events(), projections.ALL)
    assert postgres.live_states() == folded


AMOUNTS = st.decimals(0, 10**15, places=18)


@given(st.lists(AMOUNTS, max_size=50), st.randoms(use_true_random=False))
def test_sums_are_exact_in_any_order(amounts: list[Decimal], random: Any) -> None:
    """No digit is lost, where floats or 28 digits would lose some."""
    shuffled = random.sample(amounts, len(amounts))
    assert total(*amounts) == total(*shuffled)
    assert Fraction(total(*amounts)) == sum(map(Fraction, amounts))


@given(st.integers(0, 2**63 - 1), PRICES)
@example(2**63 - 1, "999999.999999999")
def test_what_bytes_cost_is_exact(count: int, price: str | None) -> None:
    """A gigabyte is 10**9 bytes."""
    cost = cost_of_bytes(count, None if price is None else Decimal(price))
    assert Fraction(cost or 0) == Fraction(price or "0") * count / 10**9
    assert cost is None or cost == plain(cost) > 0


@given(st.decimals(allow_nan=True, allow_infinity=True) | st.floats() | st.booleans() | st.text())
@example(10**1000)
@example("1e-400")
@example(Decimal("1E+999999"))
def test_a_price_is_exact_in_json_or_refused(given_price: Any) -> None:
    """What is accepted survives JSON, whose numbers are read as floats."""
    try:
        pool = ProxyPool(name="pool", cost_per_gb=given_price)
    except ValueError:
        return
    again = ProxyPool.model_validate(json.loads(pool.model_dump_json()))
    assert again.cost_per_gb == pool.cost_per_gb == Decimal(str(given_price))
