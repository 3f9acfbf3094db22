"""The clock of the ledger jumps by an hour: docs/reliability.md says what is promised."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from pharox import LeaseEndedError, LeaseLostError, LeaseStatus, ProxyManager
from tests.conftest import AnyStorage, clock_of, fill
from tests.leasing.test_renewal import held, recorded

HOUR = 3600


def test_forward_keepers_find_out(any_storage: AnyStorage) -> None:
    """All leases have run out; a holder who keeps one is told so, and others get the proxies."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    fill(any_storage, 1)

    def hold() -> None:
        with manager.with_lease("pool", "w", 1, keep_alive=True) as lease:
            assert lease is not None
            clock.advance(HOUR)
            deadline = time.monotonic() + 10
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
    assert any_storage.verify() == []


def test_back_no_lease_ends_early(any_storage: AnyStorage) -> None:
    """One that is not renewed lasts until its end, and may be released or revoked meanwhile."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    fill(any_storage, 3)
    first, second, third = manager.acquire_proxies("pool", 3, "w", 60)
    clock.advance(-HOUR)
    assert manager.cleanup_expired_leases() == 0
    assert manager.acquire_proxy("pool") is None
    manager.release_proxy(first)
    assert manager.revoke_lease(second.id, "the clock jumped").duration_ms == 0
    clock.advance(HOUR + 59)
    assert recorded(any_storage, third).status is LeaseStatus.ACTIVE
    clock.advance(1)
    assert manager.cleanup_expired_leases() == 1
    with pytest.raises(LeaseEndedError, match="was revoked at"):
        manager.renew_lease(second)
    assert any_storage.verify() == []
