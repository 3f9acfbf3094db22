"""Callers' clocks are wrong by hours."""

from __future__ import annotations

import datetime as datetimes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pharox import LeaseStatus, ProxyManager
from pharox.manager import leasing
from pharox.models import validation
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, ledger
from tests.faults.conftest import PROXIES, TIMES, Report
from tests.faults.diary import HELD, RELEASED, Diary

WRONG_BY = [timedelta(hours=hours) for hours in (-30, -5, 5, 30)]


@contextmanager
def clock_wrong_by(wrong: timedelta) -> Iterator[None]:
    """Have this process read another time, wherever pharox or the standard library asks."""
    now, now_ns = time.time, time.time_ns
    right: Callable[[], datetime] = validation.utc_now

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: datetimes.tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + wrong

    with pytest.MonkeyPatch.context() as patch:
        seconds = wrong.total_seconds()
        patch.setattr(time, "time", lambda: now() + seconds)
        patch.setattr(time, "time_ns", lambda: now_ns() + int(seconds) * 10**9)
        patch.setattr(validation, "datetime", Wrong)
        for module in (validation, leasing):
            patch.setattr(module, "utc_now", lambda: right() + wrong)
        yield


@pytest.fixture
def leased_from(postgres: PostgresStorage) -> PostgresStorage:
    """A ledger with a pool of exclusive proxies."""
    fill(postgres, PROXIES)
    return postgres


@pytest.mark.parametrize("wrong", WRONG_BY, ids=lambda wrong: f"{wrong.total_seconds():+.0f}s")
def test_the_servers_clock_is_the_only_one_that_counts(
    leased_from: PostgresStorage,
    database_url: str,
    diaries: Path,
    report: Report,
    wrong: timedelta,
) -> None:
    """No lease ends early or late, or is dated wrongly, because of a caller's clock."""
    diary = Diary(diaries / "caller.diary")
    with ledger(database_url) as storage:
        for _ in range(2 * TIMES):
            before = datetime.now(datetimes.UTC)
            with clock_wrong_by(wrong):
                manager = ProxyManager(storage)
                lasting = manager.acquire_proxy("pool", "w", 300)
                brief = manager.acquire_proxy("pool", "w", 1)
            assert lasting is not None
            assert brief is not None
            diary.note(HELD, lasting.id)
            diary.note(HELD, brief.id)
            assert abs(lasting.acquired_at - before) < timedelta(minutes=1)
            assert lasting.expires_at - lasting.acquired_at == timedelta(seconds=300)
            with clock_wrong_by(wrong):
                manager.cleanup_expired_leases()
            assert _status(storage, str(lasting.id)) is LeaseStatus.ACTIVE
            time.sleep(1.01)
            with clock_wrong_by(wrong):
                manager.release_proxy(brief)
                manager.release_proxy(lasting)
            diary.note(RELEASED, lasting.id)
            assert _status(storage, str(brief.id)) is LeaseStatus.EXPIRED
            assert _status(storage, str(lasting.id)) is LeaseStatus.RELEASED
            report.made(f"clock {wrong.total_seconds() / 3600:+.0f} hours wrong")
        report.close(storage, diaries)


def _status(storage: PostgresStorage, lease_id: str) -> LeaseStatus:
    lease = storage.get_lease(lease_id)
    assert lease is not None
    return lease.status
