"""Ledgers on the nodes of a Citus cluster, where PHAROX_CITUS_URL names a coordinator's database.

Each test has ledgers of its own names. Do not run it beside others' data: roles and schemas are
made in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import make_url

from pharox import InvalidInputError, ProxyManager
from pharox.errors import DatabaseError
from pharox.ledger.archive import archive
from pharox.ledger.distributing import Placed, distribute, locate
from pharox.ledger.rebuild import rebuild
from pharox.ledger.roles import Roles, grant
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from pharox.testing import StorageContract
from tests.conftest import SECRET_KEY, Clock, clock_of, fill, open_engine, run_sql
from tests.database.sealing import Connection, connected, new_role

CITUS_URL = os.environ.get("PHAROX_CITUS_URL")


class TestElsewhere:
    def test_a_server_that_is_in_no_cluster_is_refused(self, storage: PostgresStorage) -> None:
        """What creates a ledger there is said, and nothing is created."""
        with pytest.raises(DatabaseError, match=r"not part of a Citus cluster.*db upgrade"):
            distribute(storage)


def open_ledger(url: str, schema: str) -> PostgresStorage:
    """Open a ledger by its URL as users write it."""
    engine = open_engine(make_url(url).set(drivername="postgresql+psycopg").render_as_string(False))
    return PostgresStorage(engine, schema=schema, secret_keys=[SECRET_KEY])


@pytest.fixture(scope="module")
def citus_url() -> str:
    """The database of a cluster's coordinator."""
    if CITUS_URL is None:
        pytest.skip("PHAROX_CITUS_URL names no Citus cluster")
    return CITUS_URL


@pytest.fixture
def coordinator(citus_url: str) -> Iterator[PostgresStorage]:
    """A ledger's name at the coordinator; its schema is dropped from all nodes afterwards."""
    schema = f"pharox_{uuid4().hex[:12]}"
    with closing(open_ledger(citus_url, schema)) as storage:
        yield storage
        while (found := locate(storage)) is not None:
            with closing(open_ledger(found.url, schema)) as there:
                run_sql(there.engine, f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def placed(coordinator: PostgresStorage) -> Placed:
    """A new ledger on a worker."""
    return distribute(coordinator)


@pytest.fixture
def on_node(coordinator: PostgresStorage, placed: Placed) -> Iterator[PostgresStorage]:
    """The same, opened as workers open it."""
    with closing(open_ledger(placed.url, coordinator.schema)) as storage:
        yield storage


@pytest.fixture
def clock(on_node: PostgresStorage, placed: Placed) -> Iterator[Clock]:
    """The ledger's clock. A function is put in its place, which Citus is to leave alone."""
    options = {"options": "-c citus.enable_ddl_propagation=off"}
    url = make_url(placed.url).update_query_dict(options).render_as_string(False)
    with closing(open_ledger(url, on_node.schema)) as here_alone:
        yield clock_of(here_alone)


@pytest.mark.citus
class TestTheContractOnANode(StorageContract):
    @pytest.fixture
    def storage(self, on_node: PostgresStorage) -> IStorage:
        return on_node


@pytest.mark.citus
class TestPlacing:
    def test_a_ledger_is_placed_once(self, coordinator: PostgresStorage) -> None:
        """Placing it again finds it, and asking for another node is refused."""
        assert locate(coordinator) is None
        first = distribute(coordinator)
        assert first.is_new
        assert distribute(coordinator) == first._replace(is_new=False)
        assert distribute(coordinator, first.node) == locate(coordinator)
        with pytest.raises(InvalidInputError, match=f"on {first.node} already"):
            distribute(coordinator, "elsewhere:5432")

    def test_ledgers_spread_over_the_workers(self, citus_url: str) -> None:
        """A new one goes to the worker with the fewest, or to the one that is asked for."""
        found: list[Placed] = []
        with ExitStack() as until_the_end:
            for number in range(3):
                name = f"pharox_{uuid4().hex[:12]}"
                storage = until_the_end.enter_context(closing(open_ledger(citus_url, name)))
                found.append(distribute(storage, found[0].node if number == 2 else None))
                there = until_the_end.enter_context(closing(open_ledger(found[-1].url, name)))
                until_the_end.callback(run_sql, there.engine, f"DROP SCHEMA {name} CASCADE")
        assert found[0].node != found[1].node
        assert found[2].node == found[0].node

    def test_a_worker_that_is_not_there_is_refused(self, coordinator: PostgresStorage) -> None:
        """The error lists those that are there; nothing is created."""
        with pytest.raises(InvalidInputError, match=r"no worker elsewhere:1; there are: .+:\d+"):
            distribute(coordinator, "elsewhere:1")
        assert locate(coordinator) is None

    def test_only_a_coordinator_places(self, on_node: PostgresStorage) -> None:
        """A worker does not: two of them could place the same ledger at once."""
        with pytest.raises(DatabaseError, match="connect to the cluster's coordinator"):
            distribute(on_node)

    def test_a_distributed_schema_is_refused(self, coordinator: PostgresStorage) -> None:
        """No ledger is created or upgraded in it, as it could not keep its promises."""
        schema = coordinator.schema
        run_sql(coordinator.engine, f"CREATE SCHEMA {schema}")
        run_sql(coordinator.engine, f"CREATE TABLE {schema}.mine (x int)")
        run_sql(coordinator.engine, f"SELECT citus_schema_distribute('{schema}')")
        try:
            for refused in (lambda: distribute(coordinator), coordinator.upgrade_schema):
                with pytest.raises(DatabaseError, match="citus_schema_undistribute"):
                    refused()
        finally:
            run_sql(coordinator.engine, f"DROP SCHEMA {schema} CASCADE")

    def test_a_coordinator_with_schema_based_sharding_makes_a_ledger_of_its_own(
        self, citus_url: str, coordinator: PostgresStorage
    ) -> None:
        """``db upgrade`` makes one that Citus does not distribute, and it is found there."""
        url = make_url(citus_url).update_query_dict(
            {"options": "-c citus.enable_schema_based_sharding=on"}
        )
        with closing(open_ledger(url.render_as_string(False), coordinator.schema)) as own:
            own.upgrade_schema()
        found = locate(coordinator)
        assert found is not None
        assert found.port == coordinator.engine.url.port


@pytest.mark.citus
class TestOnANode:
    def test_it_is_maintained_as_anywhere(
        self, on_node: PostgresStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """New parts of the log, sealing, rebuild, archive and verify work through the node."""
        pool, _ = fill(on_node, 3)
        schema = on_node.schema
        run_sql(on_node.engine, f"SELECT setval('{schema}.events_position_seq', 9999999)")
        manager = ProxyManager(on_node)
        lease = manager.acquire_proxy(pool.name)
        assert lease is not None
        assert lease.fencing_token is not None
        assert lease.fencing_token >= 10_000_000
        rebuilt = rebuild(on_node)
        assert not rebuilt.findings
        manager.release_proxy(lease)
        clock.advance(3600)
        outcome = archive(on_node, clock.now - timedelta(minutes=30), tmp_path, drop=True)
        assert len(outcome.archived) == 1
        assert on_node.verify() == []

    def test_roles_get_their_rights(self, on_node: PostgresStorage, placed: Placed) -> None:
        """Grants are for the node that has the ledger."""
        with connected(placed.url) as server:
            server.execute("SET citus.enable_ddl_propagation = off")  # a role of this node alone
            self._check_grants(on_node, server)

    def _check_grants(self, on_node: PostgresStorage, server: Connection) -> None:
        with new_role(server) as role:
            grant(on_node, Roles(app=[role]))
            grant(on_node, Roles(app=[role]))

    def test_an_upgrade_stays_on_the_node(self, on_node: PostgresStorage) -> None:
        """The role that leases need not be the coordinator's, and other nodes hear of nothing."""
        on_node.upgrade_schema()
        query = "SELECT count(*) FROM pg_dist_object WHERE classid = 'pg_namespace'::regclass"
        of_ours = f"{query} AND objid = to_regnamespace('{on_node.schema}')"
        assert run_sql(on_node.engine, of_ours) == [(0,)]
