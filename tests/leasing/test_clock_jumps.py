"""The clock of the ledger jumps by an hour: docs/reliability.md says what is promised."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from pharox import (
    AsyncProxyManager,
    LeaseEndedError,
    LeaseLostError,
    LeaseStatus,
    ProxyFilters,
    ProxyManager,
    ProxyUnavailableError,
)
from pharox.cli.event_lines import line_of
from pharox.events import LeaseRenewed
from pharox.history import audit
from pharox.history.describing import describe
from pharox.incident import write_report
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, clock_of, fill, for_tasks
from tests.leasing.test_renewal import held, recorded
from tests.ledger.following import until

HOUR = 3600


def test_forward_keepers_find_out(any_storage: AnyStorage) -> None:
    """All leases have run out; a holder who keeps one is told so, and others get the proxies."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    fill(any_storage, 1)

    def hold() -> None:
        with manager.with_lease("pool", "w", 1, keep_alive=True) as lease:
            assert lease is not None
            clock.advance(HOUR)
            deadline = time.monotonic() + 60
            while not lease.is_lost and time.monotonic() < deadline:
                time.sleep(0.01)

    with pytest.raises(LeaseLostError, match="ran out at"):
        hold()
    assert manager.acquire_proxy("pool") is not None
    assert any_storage.verify() == []


def test_back_a_renewal_ends_a_duration_later(any_storage: AnyStorage) -> None:
    """The end of a kept lease moves back with the clock, and is then what it should be."""
    clock, manager, lease = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    before = lease.expires_at
    clock.advance(-HOUR)
    manager.renew_lease(lease)
    assert lease.expires_at == clock.now + timedelta(seconds=60) < before
    clock.advance(61)
    assert manager.cleanup_expired_leases() == 1
    assert redated(any_storage) == []
    assert any_storage.verify() == []


def redated(storage: AnyStorage) -> list[LeaseRenewed]:
    """Return the events that re-date a lease."""
    events = storage.events()
    return [each for each in events if isinstance(each, LeaseRenewed) and each.is_redated]


def clean_up(storage: AnyStorage) -> None:
    assert ProxyManager(storage).cleanup_expired_leases() == 0


def miss(storage: AnyStorage) -> None:
    assert ProxyManager(storage).acquire_proxy("pool") is None


def miss_with_predicate(storage: AnyStorage) -> None:
    filters = ProxyFilters(predicate=lambda _: True)
    assert ProxyManager(storage).acquire_proxy("pool", filters=filters) is None


def miss_set(storage: AnyStorage) -> None:
    assert ProxyManager(storage).acquire_proxies("pool", 2) == []


def want_that_one(storage: AnyStorage) -> None:
    (proxy,) = storage.list_proxies(str(storage.list_leases()[0].pool_id))
    with pytest.raises(ProxyUnavailableError):
        storage.create_lease(proxy, "other", 60)


def miss_in_a_task(storage: AnyStorage) -> None:
    async def ask() -> None:
        async with for_tasks(storage) as other:
            assert await AsyncProxyManager(other).acquire_proxy("pool") is None

    asyncio.run(ask())


@pytest.mark.parametrize(
    "notice", [clean_up, miss, miss_with_predicate, miss_set, want_that_one, miss_in_a_task]
)
def test_back_a_lease_ends_its_duration_after_somebody_noticed(
    any_storage: AnyStorage, notice: Callable[[AnyStorage], None]
) -> None:
    """Neither earlier nor later, though nobody renews it; and it is noticed once."""
    clock, manager, lease = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    clock.advance(-HOUR)
    notice(any_storage)
    (event,) = redated(any_storage)
    expected = (lease.id, "w", clock.now, clock.now + timedelta(seconds=60))
    assert (event.lease_id, event.consumer, event.recorded_at, event.expires_at) == expected
    found = recorded(any_storage, lease)
    assert (found.renewed_at, found.expires_at) == expected[2:]
    assert found.fencing_token == lease.fencing_token
    clock.advance(59)
    assert manager.cleanup_expired_leases() == 0
    clock.advance(1)
    assert manager.cleanup_expired_leases() == 1
    assert redated(any_storage) == [event]
    assert any_storage.verify() == []


def test_back_a_holder_goes_on(any_storage: AnyStorage) -> None:
    """It renews, releases or loses to an operator what was re-dated, as ever; each jump counts."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    fill(any_storage, 4)
    first, second, third, fourth = leases = manager.acquire_proxies("pool", 4, "w", 60)
    for _ in range(2):
        clock.advance(-HOUR)
        assert manager.cleanup_expired_leases() == 0
    in_order = [lease.id for lease in leases]
    assert [event.lease_id for event in redated(any_storage)] == [*in_order, *in_order]
    manager.release_proxy(first)
    assert manager.revoke_lease(second.id, "the clock jumped").duration_ms == 0
    with pytest.raises(LeaseEndedError, match="was revoked at"):
        manager.renew_lease(second)
    clock.advance(30)
    manager.renew_lease(third)
    clock.advance(30)
    assert manager.cleanup_expired_leases() == 1
    assert recorded(any_storage, third).status is LeaseStatus.ACTIVE
    assert recorded(any_storage, fourth).status is LeaseStatus.EXPIRED
    assert any_storage.verify() == []


def test_back_by_less_than_a_lease_has_lasted(any_storage: AnyStorage) -> None:
    """Its end stays: it is nearer than a duration. The same for a clock that is hardly set back."""
    clock, lease = clock_of(any_storage), held(any_storage)
    for seconds in (-0.5, 30, -20):
        clock.advance(seconds)
        miss(any_storage)
        clean_up(any_storage)
    assert redated(any_storage) == []
    assert recorded(any_storage, lease).expires_at == lease.expires_at


def test_back_who_waits_is_served(any_storage: AnyStorage) -> None:
    """Whoever waits notices, and gets the proxy a duration later."""
    clock, manager, _ = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(manager.acquire_proxy, "pool", "waiter", 60, wait_seconds=60)
        until(lambda: any_storage.queue_stats() != [], 10)
        clock.advance(-HOUR)
        until(lambda: redated(any_storage) != [], 20)
        assert not waiter.done()
        clock.advance(60)
        lease = waiter.result(20)
    assert lease is not None
    assert any_storage.verify() == []


def test_back_what_others_have_locked_is_not_waited_for(postgres: PostgresStorage) -> None:
    """They may be ending it. Whoever looks next re-dates it."""
    clock, manager = clock_of(postgres), ProxyManager(postgres)
    fill(postgres, 2)
    leases = sorted(manager.acquire_proxies("pool", 2), key=lambda lease: lease.id)
    clock.advance(-HOUR)
    with postgres._driver.connection() as connection, connection.transaction():
        connection.execute(
            "SELECT FROM pharox.leases WHERE id = %s FOR UPDATE", [str(leases[0].id)]
        )
        clean_up(postgres)
        assert [event.lease_id for event in redated(postgres)] == [leases[1].id]
    clean_up(postgres)
    assert [event.lease_id for event in redated(postgres)] == [leases[1].id, leases[0].id]
    assert postgres.verify() == []


def test_back_more_than_one_commit_takes(any_storage: AnyStorage) -> None:
    """They are re-dated in several, each once."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    fill(any_storage, 1, max_concurrency=None)
    leases = manager.acquire_proxies("pool", 501, distinct=False)
    clock.advance(-HOUR)
    clean_up(any_storage)
    assert sorted(event.lease_id for event in redated(any_storage)) == sorted(
        lease.id for lease in leases
    )


def test_back_is_told_in_plain_words(any_storage: AnyStorage, tmp_path: Path) -> None:
    """The log, the story of the proxy and the page of the incident; nobody renewed anything."""
    clock, lease = clock_of(any_storage), held(any_storage)
    clock.advance(-HOUR)
    clean_up(any_storage)
    (event,) = redated(any_storage)
    assert " reason=clock_went_back " in line_of(event, "pool")
    assert describe(event, pool="pool", address="there").sentence == (
        "the lease of w on there was re-dated, as the clock went back: 1 min 0 s from now"
    )
    totals = audit.Totals()
    for entry in audit.of_proxy(any_storage, lease.proxy_id).entries:
        totals.add(entry)
    assert (totals.acquired, totals.renewed, totals.redated) == (1, 0, 1)
    start = clock.now
    clock.advance(2 * HOUR)
    assert ProxyManager(any_storage).cleanup_expired_leases() == 1
    page = write_report(any_storage, start, clock.now, tmp_path / "incident").page.read_text()
    assert "re-dated: the clock went back" in page
