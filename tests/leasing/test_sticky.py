"""A sticky session keeps one proxy for a key."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

import pytest

from pharox import (
    AsyncProxyManager,
    HealthCheckResult,
    InvalidInputError,
    Lease,
    MissReason,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    ProxyUnavailableError,
    SelectorStrategy,
    Sticky,
    new_lease_id,
)
from pharox.errors import ConflictError, SessionNotFoundError
from pharox.events import AcquireMissed, LeaseAcquired, SessionBound, SessionForgotten
from pharox.storage.postgres import AsyncPostgresStorage
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import AnyStorage, clock_of, fill, for_tasks, threads, types_of

SHOP = "shop.example"


def acquired(storage: AnyStorage, sticky: Sticky | None, **options: Any) -> Lease:
    """Lease a proxy for a session."""
    request = AcquireRequest("pool", "w", sticky=sticky, **options)
    lease = storage.acquire_lease(request).lease
    assert lease is not None
    return lease


def used(storage: AnyStorage, sticky: Sticky | None, **options: Any) -> UUID:
    """Lease a proxy for a session, give it back, and return which it was."""
    lease = acquired(storage, sticky, **options)
    storage.return_lease(lease)
    return lease.proxy_id


def miss(storage: AnyStorage, sticky: Sticky | None, **options: Any) -> MissReason | None:
    """Return why nothing can be had for a session."""
    acquisition = storage.acquire_lease(AcquireRequest("pool", "w", sticky=sticky, **options))
    assert acquisition.lease is None
    return acquisition.miss_reason


def bindings(storage: AnyStorage) -> list[SessionBound]:
    """Return the events that bound keys."""
    return [event for event in storage.events() if isinstance(event, SessionBound)]


class TestBinding:
    """The first lease binds the key; the next are of the same proxy."""

    @pytest.mark.parametrize("selector", SelectorStrategy)
    def test_it_is_the_same_proxy_each_time(
        self, any_storage: AnyStorage, selector: SelectorStrategy
    ) -> None:
        fill(any_storage, 4)
        first = used(any_storage, Sticky("a"), selector=selector)
        other = used(any_storage, Sticky("b"), selector=selector)
        plain = used(any_storage, None, selector=selector)
        for _ in range(3):
            assert used(any_storage, Sticky("a"), selector=selector) == first
        assert used(any_storage, Sticky("b"), selector=selector) == other != first
        assert plain is not None
        assert [event.key for event in bindings(any_storage)] == ["a", "b"]
        assert any_storage.verify() == []

    def test_a_binding_ends_at_its_time(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 2)
        used(any_storage, Sticky("a", seconds=60))
        (session,) = any_storage.list_sessions("pool")
        assert (session.key, session.remaining_seconds) == ("a", 60)
        clock.advance(30)
        used(any_storage, Sticky("a", seconds=60))
        clock.advance(30)
        assert any_storage.list_sessions() == []
        used(any_storage, Sticky("a", seconds=60))
        assert len(bindings(any_storage)) == 2

    def test_a_sliding_binding_lives_from_its_last_lease(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 2)
        sticky = Sticky("a", seconds=60, sliding=True)
        first = used(any_storage, sticky)
        for _ in range(3):
            clock.advance(50)
            assert used(any_storage, sticky) == first
        assert len(bindings(any_storage)) == 4
        assert any_storage.list_sessions()[0].remaining_seconds == 60
        assert any_storage.verify() == []

    def test_the_lease_and_the_binding_are_recorded_together(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 1)
        lease = acquired(any_storage, Sticky("a"), target=f"https://{SHOP}/")
        *_, granted, bound = any_storage.events()
        assert isinstance(granted, LeaseAcquired)
        assert isinstance(bound, SessionBound)
        assert (granted.session, bound.key, bound.target) == ("a", "a", SHOP)
        assert bound.lease_id == granted.lease_id == lease.id
        assert (bound.proxy_id, bound.consumer) == (lease.proxy_id, "w")

    def test_filters_choose_the_proxy_and_must_fit_it(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 2)
        first, second = any_storage.list_proxies(str(pool.id))
        only = ProxyFilters(proxy_id=second.id)
        assert used(any_storage, Sticky("a"), filters=only) == second.id
        elsewhere = ProxyFilters(proxy_id=first.id)
        assert used(any_storage, Sticky("a"), filters=elsewhere) == first.id
        required = Sticky("a", policy="require")
        assert miss(any_storage, required, filters=elsewhere) is MissReason.NO_MATCH
        assert used(any_storage, required) == second.id

    def test_an_own_id_is_granted_once(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)
        lease_id = new_lease_id()
        request = AcquireRequest("pool", "w", lease_id=lease_id, sticky=Sticky("a"))
        first, second = (any_storage.acquire_lease(request) for _ in range(2))
        assert first.lease is not None
        assert second.lease is not None
        assert (first.is_new, second.is_new) == (True, False)
        assert first.lease.id == second.lease.id == lease_id
        assert types_of(any_storage).count("SessionBound") == 1

    def test_there_may_be_no_pool(self, any_storage: AnyStorage) -> None:
        assert miss(any_storage, Sticky("a")) is MissReason.UNKNOWN_POOL
        fill(any_storage, 0)
        assert miss(any_storage, Sticky("a")) is MissReason.EMPTY_POOL

    def test_a_due_lease_is_taken_back_first(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 1)
        held = acquired(any_storage, Sticky("a"), duration_seconds=10)
        clock.advance(10)
        assert acquired(any_storage, Sticky("a", policy="require")).proxy_id == held.proxy_id
        assert any_storage.verify() == []


class TestBusy:
    """What happens while the proxy of a session is not free."""

    def test_another_is_lent_and_the_binding_stays(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)
        held = acquired(any_storage, Sticky("a"))
        lent = used(any_storage, Sticky("a"))
        assert lent != held.proxy_id
        any_storage.return_lease(held)
        assert used(any_storage, Sticky("a")) == held.proxy_id
        assert len(bindings(any_storage)) == 1

    def test_a_required_one_is_missed(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 2)
        held = acquired(any_storage, Sticky("a"), duration_seconds=40)
        pool = ProxyManager(any_storage).pool("pool", wait_seconds=None)
        acquired(any_storage, None, duration_seconds=15)
        clock.advance(10)
        with (
            pytest.raises(ProxyUnavailableError) as missed,
            pool.lease(sticky=Sticky("a", policy="require")),
        ):
            pass
        assert missed.value.reason is MissReason.SESSION_BUSY
        assert missed.value.retry_after_seconds == 30
        *_, event = any_storage.events()
        assert event.type == "AcquireMissed"
        assert (event.session, event.session_proxy_id) == ("a", held.proxy_id)

    def test_a_required_one_is_waited_for(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)
        held = acquired(any_storage, Sticky("a"))
        got: list[UUID] = []

        def work(number: int) -> None:
            if number:
                time.sleep(0.3)
                any_storage.return_lease(held)
            else:
                sticky = Sticky("a", policy="require")
                got.append(acquired(any_storage, sticky, wait_seconds=10).proxy_id)

        threads(2, work)
        assert got == [held.proxy_id]
        assert any_storage.verify() == []

    def test_a_wait_ends(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)
        acquired(any_storage, Sticky("a"))
        sticky = Sticky("a", policy="require")
        assert miss(any_storage, sticky, wait_seconds=0.2) is MissReason.SESSION_BUSY
        *_, event = any_storage.events()
        assert isinstance(event, AcquireMissed)
        assert event.waited_ms is not None

    def test_a_new_key_waits_for_a_proxy(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 1)
        held = acquired(any_storage, None)
        got: list[UUID] = []

        def work(number: int) -> None:
            if number:
                time.sleep(0.3)
                any_storage.return_lease(held)
            else:
                got.append(acquired(any_storage, Sticky("a"), wait_seconds=10).proxy_id)

        threads(2, work)
        assert got == [held.proxy_id]
        assert [event.key for event in bindings(any_storage)] == ["a"]


class TestReplacing:
    """A proxy that cannot come back by itself is replaced."""

    @pytest.mark.parametrize("status", [ProxyStatus.BANNED, ProxyStatus.INACTIVE])
    def test_a_proxy_out_of_use(self, any_storage: AnyStorage, status: ProxyStatus) -> None:
        fill(any_storage, 2)
        first = used(any_storage, Sticky("a"))
        any_storage.set_status(first, status)
        second = used(any_storage, Sticky("a", policy="require"))
        assert second != first
        last = bindings(any_storage)[-1]
        assert (last.replaced, last.because) == (first, status.value)
        any_storage.set_status(first, ProxyStatus.ACTIVE)
        assert used(any_storage, Sticky("a")) == second

    def test_a_removed_proxy(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)
        first = used(any_storage, Sticky("a"))
        any_storage.delete_proxy(str(first))
        assert any_storage.list_sessions()[0].address is None
        assert used(any_storage, Sticky("a")) != first
        assert bindings(any_storage)[-1].because == "removed"
        assert any_storage.verify() == []

    def test_one_of_the_same_country_comes_first(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 6)
        proxies = any_storage.list_proxies(str(pool.id))
        for number, proxy in enumerate(proxies):
            proxy.country = "DE" if number in (1, 4) else "FR"
            any_storage.save_proxy(proxy)
        first = used(any_storage, Sticky("a"), filters=ProxyFilters(country="DE"))
        any_storage.delete_proxy(str(first))
        second = used(any_storage, Sticky("a"))
        assert {first, second} == {proxies[1].id, proxies[4].id}
        any_storage.delete_proxy(str(second))
        assert used(any_storage, Sticky("a")) not in (first, second)
        assert [event.country for event in bindings(any_storage)] == ["DE", "DE", "FR"]

    def test_one_with_the_same_exit_comes_before_all(self, any_storage: AnyStorage) -> None:
        _, proxies = fill(any_storage, 5)
        for number, exit_ip in ((1, "198.51.100.7"), (3, "198.51.100.7"), (4, "198.51.100.9")):
            result = HealthCheckResult(
                proxy_id=proxies[number].id,
                status=ProxyStatus.ACTIVE,
                latency_ms=1,
                protocol=proxies[number].protocol,
                exit_ip=exit_ip,
            )
            any_storage.record_health_checks([result])
        first = used(any_storage, Sticky("a"), filters=ProxyFilters(proxy_id=proxies[3].id))
        any_storage.set_status(first, ProxyStatus.BANNED)
        assert used(any_storage, Sticky("a")) == proxies[1].id
        assert [event.exit_ip for event in bindings(any_storage)] == ["198.51.100.7"] * 2

    def test_a_ban_that_is_over_ends_first(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 1)
        first = used(any_storage, Sticky("a"))
        any_storage.set_status(first, ProxyStatus.BANNED, for_seconds=60)
        assert miss(any_storage, Sticky("a")) is MissReason.NONE_HEALTHY
        clock.advance(60)
        assert used(any_storage, Sticky("a", policy="require")) == first
        assert len(bindings(any_storage)) == 1

    def test_a_pools_defaults_hold(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 3)
        defaults = {"selector": SelectorStrategy.LEAST_RECENTLY_USED, "lease_seconds": 45}
        any_storage.save_pool(pool.model_copy(update=defaults))
        manager = ProxyManager(any_storage)
        with manager.pool("pool").lease(sticky=Sticky("a")) as lease:
            assert (lease.expires_at - lease.acquired_at).total_seconds() == 45
        event = next(e for e in any_storage.events() if isinstance(e, LeaseAcquired))
        assert event.selector is SelectorStrategy.LEAST_RECENTLY_USED


class TestSharing:
    """Two keys do not share a proxy, unless they say so or are for other targets."""

    def test_a_bound_proxy_is_passed_over(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2, max_concurrency=None)
        assert used(any_storage, Sticky("a")) != used(any_storage, Sticky("b"))
        assert miss(any_storage, Sticky("c")) is MissReason.ALL_BOUND
        assert used(any_storage, None) is not None
        assert miss(any_storage, Sticky("c", shared=True)) is MissReason.ALL_BOUND

    def test_shared_bindings_share(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 1, max_concurrency=None)
        assert used(any_storage, Sticky("a", shared=True)) == used(
            any_storage, Sticky("b", shared=True)
        )
        assert miss(any_storage, Sticky("c")) is MissReason.ALL_BOUND

    def test_other_targets_share(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 1)
        used(any_storage, Sticky("a"), target=SHOP)
        used(any_storage, Sticky("b"), target="else.example")
        assert miss(any_storage, Sticky("c"), target=SHOP) is MissReason.ALL_BOUND
        assert miss(any_storage, Sticky("c")) is MissReason.ALL_BOUND
        assert any_storage.verify() == []

    def test_a_miss_says_when_a_binding_ends(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 2)
        used(any_storage, Sticky("a", seconds=60))
        clock.advance(10)
        used(any_storage, Sticky("b", seconds=60))
        pool = ProxyManager(any_storage).pool("pool", wait_seconds=None)
        with pytest.raises(ProxyUnavailableError) as missed, pool.lease(sticky=Sticky("c")):
            pass
        assert missed.value.reason is MissReason.ALL_BOUND
        assert missed.value.retry_after_seconds == 50

    def test_one_becomes_free_when_a_binding_ends(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 1)
        first = used(any_storage, Sticky("a", seconds=60))
        assert miss(any_storage, Sticky("b")) is MissReason.ALL_BOUND
        clock.advance(60)
        assert used(any_storage, Sticky("b")) == first
        assert miss(any_storage, Sticky("a")) is MissReason.ALL_BOUND

    def test_many_are_bound(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 60)
        first = [used(any_storage, Sticky(f"k{n}")) for n in range(60)]
        assert len(set(first)) == 60
        assert [used(any_storage, Sticky(f"k{n}")) for n in range(60)] == first


class TestAtOnce:
    """Callers at the same time agree."""

    def test_one_new_key_gets_one_binding(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 8)
        got: list[UUID] = []
        sticky = Sticky("a", policy="require")

        def work(_: int) -> None:
            lease = acquired(any_storage, sticky, wait_seconds=30)
            got.append(lease.proxy_id)
            any_storage.return_lease(lease)

        threads(8, work)
        assert len(got) == 8
        assert len(set(got)) == 1
        assert len(bindings(any_storage)) == 1

    def test_new_keys_get_a_proxy_each(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 8, max_concurrency=None)
        got: list[UUID] = []
        threads(8, lambda number: got.append(used(any_storage, Sticky(f"k{number}"))))
        assert len(set(got)) == 8
        assert any_storage.verify() == []


class TestManaging:
    """Sessions are listed, forgotten and inherited."""

    def test_a_binding_is_forgotten(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)
        manager = ProxyManager(any_storage)
        first = used(any_storage, Sticky("a"))
        assert manager.forget_session("pool", "a")
        assert not manager.forget_session("pool", "a")
        assert not manager.forget_session("none", "a")
        assert manager.sessions() == []
        assert used(any_storage, Sticky("b")) == first

    def test_a_binding_is_inherited(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 3)
        manager = ProxyManager(any_storage)
        first = used(any_storage, Sticky("a", seconds=60), target=SHOP)
        clock.advance(10)
        manager.inherit_session("pool", "a", "b")
        (session,) = manager.sessions("pool")
        assert (session.key, session.target, session.remaining_seconds) == ("b", SHOP, 50)
        assert used(any_storage, Sticky("b"), target=SHOP) == first
        assert used(any_storage, Sticky("a"), target=SHOP) != first
        with pytest.raises(ConflictError):
            manager.inherit_session("pool", "a", "b")
        with pytest.raises(SessionNotFoundError):
            manager.inherit_session("pool", "z", "y")
        forgotten = [e for e in any_storage.events() if isinstance(e, SessionForgotten)]
        assert [event.inherited_by for event in forgotten] == ["b"]
        assert bindings(any_storage)[1].inherited_from == "a"
        assert any_storage.verify() == []

    def test_sessions_come_in_pages(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 3)
        manager = ProxyManager(any_storage)
        for key in ("é", "a", "Z"):
            used(any_storage, Sticky(key))
        first = manager.sessions(limit=2)
        assert [each.key for each in first] == ["Z", "a"]
        assert [each.key for each in manager.sessions(after=first[-1])] == ["é"]
        assert manager.sessions("none") == []

    def test_tasks_can_do_it_too(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)

        async def managing() -> None:
            storage = for_tasks(any_storage)
            manager = AsyncProxyManager(storage)
            async with manager.with_lease("pool", "w", sticky=Sticky("a")) as lease:
                assert lease is not None
            assert [each.key for each in await manager.sessions("pool")] == ["a"]
            await manager.inherit_session("pool", "a", "b")
            assert await manager.forget_session("pool", "b")
            if isinstance(storage, AsyncPostgresStorage):
                await storage.close()

        asyncio.run(managing())


class TestBadInput:
    """Bad input gets an error, and nothing is written."""

    @pytest.mark.parametrize(
        "options",
        [
            {"key": ""},
            {"key": "x" * 501},
            {"key": 7},
            {"key": "a", "seconds": 0},
            {"key": "a", "seconds": float("nan")},
            {"key": "a", "policy": "maybe"},
            {"key": "a", "shared": 1},
        ],
    )
    def test_a_session_is_checked(self, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError):
            Sticky(**options)

    def test_what_cannot_be_sticky(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 2)
        manager = ProxyManager(any_storage)
        with pytest.raises(InvalidInputError, match="set"):
            manager.acquire_proxies("pool", 2, "w", sticky=Sticky("a"))
        filters = ProxyFilters(predicate=lambda _: True)
        with pytest.raises(InvalidInputError, match="predicate"):
            AcquireRequest("pool", "w", filters=filters, sticky=Sticky("a"))
        with pytest.raises(InvalidInputError, match="Sticky"):
            AcquireRequest("pool", "w", sticky="a")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="itself"):
            manager.inherit_session("pool", "a", "a")
        assert "SessionBound" not in types_of(any_storage)

    @pytest.mark.parametrize("key", ["/*target*/", "it's", "100%", "{schema}", '"\\', "ключ"])
    def test_any_text_is_a_key(self, any_storage: AnyStorage, key: str) -> None:
        fill(any_storage, 2)
        sticky = Sticky(key)
        first = used(any_storage, sticky, target=SHOP)
        assert used(any_storage, sticky, target=SHOP) == first
        held = acquired(any_storage, sticky)
        required = Sticky(key, policy="require")
        assert miss(any_storage, required, wait_seconds=0.05) is MissReason.SESSION_BUSY
        any_storage.return_lease(held)


def test_in_a_batch_it_has_its_own_commit(any_storage: AnyStorage) -> None:
    """A batch may have requests for sessions among others."""
    fill(any_storage, 4)
    requests: list[AcquireRequest | AcquireSetRequest] = [
        AcquireRequest("pool", "w", sticky=Sticky("a")),
        AcquireRequest("pool", "w"),
        AcquireSetRequest("pool", "w", 1),
        AcquireRequest("pool", "w", sticky=Sticky("a", policy="require")),
    ]
    outcomes = any_storage.run_batch(requests)
    assert outcomes[0].lease is not None  # type: ignore[union-attr]
    assert outcomes[3].miss_reason is MissReason.SESSION_BUSY  # type: ignore[union-attr]
    assert any_storage.verify() == []
