"""Exits of gateways are the same in memory, in PostgreSQL and in the fold of the log."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pharox import InMemoryStorage, Lease, ProxyCredentials, ProxyFilters, new_lease_id
from pharox.models.gateway import wished_country
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest
from tests.conftest import clock_of, run_sql

from .test_sticky import ASKED, TwoLives

USERS = ("plain", "u-{session}-{country}-{lifetime}", "u-{session}", "u-{COUNTRY}")
COUNTRIES = st.sampled_from([None, "", "DE", "FR", "BR"])
FILTERS = st.recursive(
    st.builds(ProxyFilters, country=COUNTRIES),
    lambda inner: st.builds(
        ProxyFilters,
        country=COUNTRIES,
        **{name: st.lists(inner, max_size=2) for name in ("all_of", "any_of", "none_of")},
    ),
    max_leaves=6,
)
OPTIONS = st.tuples(ASKED, st.one_of(st.none(), FILTERS)).map(
    lambda both: both[0] if both[1] is None else {**both[0], "filters": both[1]}
)
ROTATING = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["acquire"] * 8,
                *["rotate"] * 4,
                *["release"] * 2,
                *["wait", "forget", "inherit", "status", "remove", "prune"],
            ]
        ),
        st.integers(0, 10**6),
        OPTIONS,
    ),
    min_size=5,
    max_size=30,
)


class GatewayLives(TwoLives):
    """Leads the same life with templates, whose session ids follow from ids of leases."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for number, proxy in enumerate(self.proxies):
            proxy.credentials = ProxyCredentials(user=USERS[number], password="p")
            for storage in self.both:
                storage.save_proxy(proxy)

    def acquire(self, _: int, asked: dict[str, Any]) -> None:
        request = AcquireRequest(self.pool.name, "w", 100, lease_id=new_lease_id(), **asked)
        ours, theirs = self.both_do(lambda storage: storage.acquire_lease(request))
        assert ours.miss_reason == theirs.miss_reason
        if ours.lease is not None:
            assert ours.lease.exit == theirs.lease.exit
            assert ours.lease.proxy.url == theirs.lease.proxy.url
            assert ("{" in ours.lease.proxy.url) is False
            self.leases.append((ours.lease, theirs.lease))

    def rotate(self, pick: int, _: dict[str, Any]) -> None:
        if not self.leases:
            return
        lease, _same = self.leases[pick % len(self.leases)]
        before = lease.exit
        ours, theirs = self.both_do(lambda storage: storage.rotate_exit(lease.id))
        assert ours == theirs
        if not isinstance(ours, type):
            assert before is not None
            for each in self.leases[pick % len(self.leases)]:
                each.take_exit(ours)

    def compare(self) -> None:
        ours, theirs = (storage.list_sessions(self.pool.name) for storage in self.both)
        assert ours == theirs
        held: list[list[Lease]] = [
            sorted(storage.list_held_leases(self.pool.name), key=lambda lease: lease.id)
            for storage in self.both
        ]
        assert [lease.exit for lease in held[0]] == [lease.exit for lease in held[1]]
        assert _shared(held[0]) <= {
            (session.proxy_id, session.exit.session) for session in ours if session.exit
        } | set(self.kept(held[0]))

    def kept(self, held: list[Lease]) -> list[tuple[UUID, str | None]]:
        """Return the exits that leases of one key may share, though its binding has gone on."""
        keys = {
            event.lease_id: event.session
            for event in self.both[0].events()
            if event.type == "LeaseAcquired" and event.session
        }
        return [
            (lease.proxy_id, lease.exit.session)
            for lease in held
            if lease.exit and lease.id in keys
        ]


def _shared(held: list[Lease]) -> set[tuple[UUID, str | None]]:
    """Return the exits that several leases have."""
    exits = Counter(
        (lease.proxy_id, lease.exit.session) for lease in held if lease.exit and lease.exit.session
    )
    return {each for each, number in exits.items() if number > 1}


def test_memory_postgres_and_the_fold_tell_the_same_of_exits(postgres: PostgresStorage) -> None:
    """Whatever is leased and rotated; active leases share an exit only under one key."""
    clock = clock_of(postgres)

    @given(ROTATING)
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(steps: list[tuple[str, int, dict[str, Any]]]) -> None:
        memory = InMemoryStorage()
        clocks = [clock_of(memory), clock]
        clocks[0].advance((clock.now - clocks[0].now).total_seconds())
        lives = GatewayLives((memory, postgres), clocks)
        for name, pick, asked in steps:
            getattr(lives, name)(pick, asked)
            lives.compare()
        assert memory.verify() == []

    agree()
    assert postgres.verify() == []


def test_python_and_sql_wish_for_the_same_country(postgres: PostgresStorage) -> None:
    """However filters nest."""

    @given(FILTERS)
    @settings(max_examples=100, deadline=None)
    def agree(filters: ProxyFilters) -> None:
        text = filters.model_dump_json(exclude_none=True).replace("'", "''")
        query = f"SELECT pharox.wished_country_v1('{text}'::jsonb)"
        ((wished,),) = run_sql(postgres.engine, query)
        assert wished == wished_country(filters)

    agree()
