"""The history of a fleet is the histories of its ledgers, each as if it were alone."""

from __future__ import annotations

from itertools import count
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from pharox import (
    Fleet,
    InMemoryStorage,
    Lease,
    Outcome,
    PharoxError,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    Sticky,
)
from pharox.events import Event
from tests.conftest import Clock

LEDGER_OF = {"a": "near", "b": "far", "c": "far"}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [*["acquire"] * 4, "fallback", "set", "release", "renew", "report", "wait", "revoke"]
        ),
        st.sampled_from("abc"),
        st.integers(0, 5),
    ),
    max_size=25,
)


def new_storage(clock: Clock, ledger: str) -> InMemoryStorage:
    """A ledger with its pools, the same each time."""
    storage = InMemoryStorage(clock=clock)
    numbers = count(1 if ledger == "near" else 101)
    for name, place in LEDGER_OF.items():
        if place != ledger:
            continue
        pool = ProxyPool(id=UUID(int=next(numbers)), name=name)
        storage.save_pool(pool)
        for _ in range(2):
            storage.save_proxy(
                Proxy(
                    id=UUID(int=next(numbers)),
                    host="192.0.2.1",
                    port=next(numbers),
                    protocol=ProxyProtocol.HTTP,
                    pool_id=pool.id,
                    status=ProxyStatus.ACTIVE,
                    checked_at=clock.now,
                    max_concurrency=1,
                )
            )
    return storage


class Walk:
    """The same steps, by the manager of a fleet, or by that of each ledger."""

    def __init__(self, manager_of: dict[str, ProxyManager], clock: Clock) -> None:
        self.manager_of, self.clock = manager_of, clock
        self.leases: list[Lease] = []
        self.ids = count(1)

    def do(self, step: str, pool: str, number: int) -> Any:
        """Take a step, and return what a caller sees of it."""
        manager = self.manager_of[pool]
        try:
            match step:
                case "acquire":
                    sticky = Sticky(f"key {number}") if number % 2 else None
                    lease = manager.acquire_proxy(
                        pool, f"w{number}", 60, lease_id=self._new_id(), sticky=sticky
                    )
                    return self._kept(lease)
                case "fallback" if pool != "a":
                    other = "c" if pool == "b" else "b"
                    lease = manager.acquire_proxy(
                        pool, "w", 60, lease_id=self._new_id(), fallback=[other]
                    )
                    return self._kept(lease)
                case "set":
                    ids = [self._new_id(), self._new_id()]
                    found = manager.acquire_proxies(pool, 2, "w", 60, at_least=1, lease_ids=ids)
                    return [self._kept(lease) for lease in found]
                case "wait":
                    self.clock.advance(number * 20)
                    return sum(
                        each.cleanup_expired_leases() for each in {*self.manager_of.values()}
                    )
                case _ if self.leases:
                    return self._end(step, self.leases[number % len(self.leases)])
        except PharoxError as error:
            return type(error).__name__

    def _new_id(self) -> UUID:
        """Rests are drawn by the lease's id, so both walks choose the same ones."""
        return UUID(int=next(self.ids))

    def _kept(self, lease: Lease | None) -> Any:
        if lease is None:
            return None
        self.leases.append(lease)
        return lease.pool_name, lease.proxy_id, lease.expires_at

    def _end(self, step: str, lease: Lease) -> Any:
        manager = self.manager_of[str(lease.pool_name)]
        match step:
            case "release":
                return manager.release_proxy(lease)
            case "renew":
                return manager.renew_lease(lease, 90).expires_at
            case "report":
                (reported,) = manager.report_outcomes([(lease, Outcome.blocked("shop.example"))])
                return reported.target, reported.cools_until
            case "revoke":
                return manager.revoke_lease(lease.id, "because").status


def shape(event: Event) -> Any:
    """What an event says, without ids that a ledger chooses and its place in the log."""
    facts = event.model_dump(mode="json")
    for name in ("seq", "position", "consumer_id"):
        facts.pop(name, None)
    return facts


@settings(max_examples=30)
@given(steps=STEPS)
def test_a_fleet_records_what_its_ledgers_would_record_alone(
    steps: list[tuple[str, str, int]],
) -> None:
    """Step by step callers see the same, and in the end each ledger has the same log."""
    clocks = Clock(), Clock()
    together = {name: new_storage(clocks[0], name) for name in ("near", "far")}
    alone = {name: new_storage(clocks[1], name) for name in ("near", "far")}
    fleet = Fleet.connect({"home": "near", "ledgers": together})
    for pool, ledger in LEDGER_OF.items():
        fleet.place(pool, ledger)
    managers = {name: ProxyManager(storage) for name, storage in alone.items()}
    of_fleet = Walk(dict.fromkeys(LEDGER_OF, fleet.manager), clocks[0])
    of_ledgers = Walk({pool: managers[name] for pool, name in LEDGER_OF.items()}, clocks[1])
    for step in steps:
        assert of_fleet.do(*step) == of_ledgers.do(*step), step
    for name, storage in alone.items():
        own = [shape(e) for e in together[name].events() if e.type != "PoolPlaced"]
        assert own == [shape(event) for event in storage.events()]
        assert together[name].verify() == []
    rows, missing = fleet.log()
    merged = [(row.ledger, row.value.seq) for row in rows]
    assert sorted(merged) == sorted(
        (name, event.seq) for name, each in together.items() for event in each.events()
    )
    assert not missing
