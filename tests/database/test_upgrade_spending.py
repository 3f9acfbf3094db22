"""What was used before an upgrade is in the read model that the upgrade brings."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pharox import Outcome, PoolLimits, ProxyManager, SelectorStrategy
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import PostgresStorage, batch
from pharox.storage.reports import ReportRequest
from pharox.storage.requests import AcquireSetRequest
from tests.conftest import SECRET_KEY, DatabaseClock, fill, ledger, open_engine

from .test_upgrade import _alter, version_before


def test_bytes_that_were_reported_before_are_counted(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each consumer and day, without the days that a prune deleted; today's budget has them."""
    storage = PostgresStorage(open_engine(empty_database_url), secret_keys=[SECRET_KEY])
    with monkeypatch.context() as before:
        version_before(before, "0005")
        storage.upgrade_schema()
        clock = DatabaseClock(storage)
        clock.advance(43_200)
        _alter(storage, "0005", "ADD COLUMN")
        pool, _ = fill(storage, 2)
        fill(storage, 1, name="gone")
        for day in range(3):
            for name, consumer in (("pool", "a"), ("pool", "b"), ("gone", "a")):
                leases = storage.acquire_set(_request(name, consumer)).leases
                storage.report_outcomes(
                    [ReportRequest(lease, Outcome.ok(bytes=10**day)) for lease in leases]
                )
                for lease in leases:
                    storage.release_lease(lease)
            if day == 1:
                storage.prune_leases(clock.now - timedelta(hours=1))
            clock.advance(86_400 if day < 2 else 3600)
        (gone,) = [each for each in storage.list_pools() if each.name == "gone"]
        storage.delete_pool(str(gone.id))
        _alter(storage, "0005", "DROP COLUMN")
    batch.commands_statement.cache_clear()
    batch.acquire_statement.cache_clear()
    with ledger(empty_database_url) as newer:
        newer.upgrade_schema()
        assert newer.verify() == []
        rows = newer.live_states()["spending"].values()
        days = sorted((row.day.day, row.consumer, int(row.bytes)) for row in rows)
        assert days == [
            *[(2, "", 20), (2, "a", 10), (2, "b", 10)],
            *[(3, "", 200), (3, "a", 100), (3, "b", 100)],
        ]
        limits = PoolLimits(bytes_per_day=200)
        newer.save_pool(pool.model_copy(update={"limits": limits}))
        assert ProxyManager(newer).acquire_proxy("pool") is None
        rebuild(newer)
        assert newer.verify() == []
    storage.close()


def _request(name: str, consumer: str) -> AcquireSetRequest:
    first = SelectorStrategy.FIRST_AVAILABLE
    return AcquireSetRequest(name, consumer, 1, 300, selector=first)
