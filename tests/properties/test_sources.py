"""After any lists of a provider the pool has the last good one, in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import projections
from pharox import InMemoryStorage, ProxyPool, ProxySource
from pharox.events import SourceRefreshed
from pharox.sources import SourceRefresh, refresh_sources
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage
from tests.provider import Answer, Provider, running_provider

ADDRESSES = [f"192.0.2.{n}:8080" for n in range(1, 7)]
LISTS = st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=6, unique=True)
PASSWORDS = st.sampled_from(["", ":ann:one", ":ann:two"])
GOOD = st.builds(lambda lines, login: [line + login for line in lines], LISTS, PASSWORDS)
BROKEN = st.sampled_from(
    [
        Answer(b"", 200),
        Answer(b"busy", 503),
        Answer(b"<html>log in</html>"),
        Answer(b'{"detail": "invalid token"}'),
        Answer(b"192.0.2.1:8080\n", cut=10),
        Answer(b"one:two:three:four:five\n"),
    ]
)
STEPS = st.lists(st.one_of(GOOD, GOOD, BROKEN), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


def proxies_in(storage: AnyStorage, pool: ProxyPool) -> set[str]:
    """Return the proxies of a pool as lines of a list."""
    found = set()
    for proxy in storage.list_proxies(str(pool.id)):
        login = proxy.credentials
        end = f":{login.user}:{login.password.get_secret_value()}" if login else ""
        found.add(f"{proxy.host}:{proxy.port}{end}")
    return found


def untimed(refresh: SourceRefresh) -> dict[str, object]:
    return asdict(refresh) | {"pool": None}


def test_a_pool_has_the_last_good_list(postgres: PostgresStorage, provider: Provider) -> None:
    """A broken answer changes nothing; whatever was fetched, a second look changes nothing."""
    number = iter(range(10_000))

    @given(STEPS, st.booleans())
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    def in_step(steps: list[list[str] | Answer], has_etags: bool) -> None:
        memory, name = InMemoryStorage(), f"pool-{next(number)}"
        provider.reset()
        last: set[str] = set()
        pool = ProxyPool(name=name)
        for storage in (memory, postgres):
            storage.save_pool(pool)
            storage.save_source(
                ProxySource(
                    name=name,
                    pool_name=name,
                    url=provider.url(),
                    max_removed="100%",
                    options={"protocol": "http"},
                )
            )
        for n, step in enumerate(steps):
            if isinstance(step, Answer):
                provider.answers["/list"] = step
            else:
                provider.lists(step, etag=f'"{n}"' if has_etags else None)
            first = [refresh_sources(storage, [name])[0] for storage in (memory, postgres)]
            assert untimed(first[0]) == untimed(first[1])
            if isinstance(step, Answer):
                assert first[0].outcome == "failed"
            else:
                assert (first[0].outcome == "changed") is (set(step) != last)
                last = set(step)
            again = [refresh_sources(storage, [name])[0] for storage in (memory, postgres)]
            assert "changed" not in {one.outcome for one in again}
            assert proxies_in(memory, pool) == proxies_in(postgres, pool) == last
        assert memory.verify() == []
        told = [e for e in memory.events() if isinstance(e, SourceRefreshed)]
        assert all(e.counts.is_change for e in told) or any(isinstance(s, Answer) for s in steps)
        same = [
            [(e.type, getattr(e, "reason", None)) for e in storage.events() if e.pool_id == pool.id]
            for storage in (memory, postgres)
        ]
        assert sorted(same[0], key=str) == sorted(same[1], key=str)
        postgres.remove_source(name)

    in_step()
    assert postgres.verify() == []
    assert postgres.live_states() == projections.fold(postgres.events(), projections.ALL)
