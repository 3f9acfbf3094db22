"""A ledger that is down costs its pools and nothing else."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from pharox import AnswerTimeoutError, DatabaseUnavailableError, DirectoryUnavailableError, Fleet
from tests.fleet.conftest import FarServer, stocked


def test_a_server_that_stops_costs_its_pools(urls: dict[str, str], far_server: FarServer) -> None:
    """Others go on, reads name what is missing, a fallback is taken; it is used again when back."""
    with Fleet.connect({"home": "near", "ledgers": urls, "connect_timeout_s": 2}) as fleet:
        stocked(fleet, "a", "near", 3)
        stocked(fleet, "b", "far")
        kept = fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
        assert kept is not None
        far_server.stop()
        try:
            with Fleet.connect({"home": "near", "ledgers": urls, "connect_timeout_s": 2}) as late:
                lease = late.manager.acquire_proxy("a", "worker")
                assert lease is not None
                late.manager.release_proxy(lease)
                with pytest.raises(DatabaseUnavailableError) as refused:
                    late.manager.acquire_proxy("b", "worker")
                assert refused.value.data["ledger"] == "far"
            # Of a connection that breaks under a request nobody knows what became of it.
            with pytest.raises(DatabaseUnavailableError):
                fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
            instead = fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
            assert instead is not None
            assert instead.pool_name == "a"
            assert {row.ledger for row in fleet.stats()} == {"near"}
            for missing in (fleet.stats().missing, fleet.leases().missing, fleet.log()[1]):
                assert list(missing) == ["far"]
            assert [each.name for each in fleet.status() if not each.is_reachable] == ["far"]
            entries, missing = fleet.audit_consumer("worker")
            assert {entry.ledger for entry in entries} == {"near"}
            assert list(missing) == ["far"]
            with pytest.raises(DatabaseUnavailableError):
                fleet.manager.release_proxies([kept, instead])
            assert fleet.leases("a").rows == []
        finally:
            far_server.start()
        fleet.manager.release_proxy(kept)
        assert fleet.manager.acquire_proxy("b", "worker") is not None


def test_without_home_known_pools_go_on(urls: dict[str, str], far_server: FarServer) -> None:
    """A pool that nobody has asked for yet cannot be found: the error says why."""
    with Fleet.connect({"home": "far", "ledgers": urls, "connect_timeout_s": 2}) as fleet:
        stocked(fleet, "a", "near", 2)
        stocked(fleet, "new", "near")
        fleet.directory.forget("new")
        far_server.stop()
        try:
            lease = fleet.manager.acquire_proxy("a", "worker")
            assert lease is not None
            assert fleet.manager.sessions("a") == []
            with pytest.raises(DirectoryUnavailableError, match="where pool 'new' is"):
                fleet.manager.acquire_proxy("new", "worker")
            fleet.manager.release_proxy(lease)
        finally:
            far_server.start()
        assert fleet.manager.acquire_proxy("new", "worker") is not None


def test_a_server_that_hangs_is_missing_in_time(urls: dict[str, str]) -> None:
    """The directory and merged reads wait as long for an answer as leases do."""
    settings = {"home": "near", "ledgers": urls, "answer_timeout_s": 0.5}
    with Fleet.connect(settings) as fleet:
        stocked(fleet, "a", "near")
        stocked(fleet, "b", "far")
        tables = {"near": "pool_places", "far": "pools, pharox.leases"}
        with ExitStack() as stack:
            for name, table in tables.items():
                engine = fleet.ledgers[name].storage.engine
                engine = engine.execution_options(isolation_level="READ COMMITTED")
                connection = stack.enter_context(engine.begin())
                connection.exec_driver_sql(f"LOCK TABLE pharox.{table} IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(AnswerTimeoutError):
                fleet.places()
            with pytest.raises(DirectoryUnavailableError):
                fleet.locate("b")
            for read in (fleet.stats, fleet.leases):
                assert list(read().missing) == ["far"]
            assert [each.name for each in fleet.status() if not each.is_reachable] == ["far"]
