"""A ledger that was dumped and restored goes on: leasing, sealing, and in one chain."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString
from uuid import uuid4

import pytest

from pharox import ProxyManager
from pharox.storage.postgres import PostgresStorage
from tests import servers
from tests.conftest import fill, ledger, new_database

from .sealing import (
    Connection,
    Row,
    append,
    check_order,
    check_seal,
    connected,
    seal,
    sealed_rows,
    ticks,
)

SEALED, WHOLE = 9, 11
"""How many events of the dumped log are sealed, and how many there are."""


@dataclass
class Cluster:
    """A cluster of its own, with the programs that belong to it."""

    url: str
    programs: Path

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database for a block."""
        with new_database(self.url, f"pharox_{uuid4().hex[:12]}") as url:
            yield url

    def dump(self, url: str) -> str:
        """Return a database as SQL."""
        return self._run("pg_dump", "--no-owner", plain(url))

    def restore(self, dump: str, url: str) -> None:
        """Run a dump in an empty database."""
        self._run("psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", plain(url), dump=dump)

    def _run(self, program: str, *arguments: str, dump: str | None = None) -> str:
        done = subprocess.run(
            [self.programs / program, *arguments],
            input=dump,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def plain(url: str) -> str:
    """Return a URL as PostgreSQL's programs read it."""
    return url.replace("+psycopg", "")


@pytest.fixture(scope="module", params=servers.names())
def both(request: pytest.FixtureRequest) -> Iterator[list[Cluster]]:
    """Two clusters of one version."""
    if request.param == "given":
        pytest.skip("a restore needs a second cluster, and only one server is given")
    with ExitStack() as until_the_end:
        urls = [until_the_end.enter_context(servers.running(request.param)) for _ in range(2)]
        yield [Cluster(url, programs(url)) for url in urls]


def programs(url: str) -> Path:
    """Return the folder of the programs that came with a server."""
    with connected(url) as connection:
        query = "SELECT setting FROM pg_config WHERE name = 'BINDIR'"
        return Path(one(connection, query)["setting"])


def one(connection: Connection, query: LiteralString) -> Row:
    """Return the one row of an answer."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


@pytest.fixture
def old(both: list[Cluster]) -> Cluster:
    """The cluster that a ledger is dumped from."""
    return both[0]


@pytest.fixture
def new(both: list[Cluster]) -> Cluster:
    """A cluster to restore it into, whose transaction ids are behind those of the old one."""
    with connected(both[0].url) as ahead, connected(both[1].url) as behind:
        burn(ahead, next_xid(behind) + 1000 - next_xid(ahead))
    return both[1]


@pytest.fixture
def dump(old: Cluster, new: Cluster) -> Iterator[str]:
    """The dump of a ledger in use, with events that nobody had sealed.

    Of two transactions that were open at the last tick one has committed since,
    the other one had not at the time of the dump and is lost.
    """
    with old.database() as url, ledger(url) as storage:
        storage.upgrade_schema()
        use(storage)
        with (
            connected(url) as sealer,
            connected(url, autocommit=False) as slow,
            connected(url, autocommit=False) as lost,
        ):
            append(slow, "slow")
            append(lost, "lost")
            append(sealer, "quick")
            assert seal(sealer) == SEALED
            slow.commit()
            append(sealer, "last")
            yield old.dump(url)


def use(storage: PostgresStorage) -> None:
    """Lease and release, with a seal between."""
    if storage.get_pool_by_name("pool") is None:
        fill(storage, 4)
    with ProxyManager(storage).with_lease("pool") as lease:
        assert lease is not None
        storage.seal()


def burn(connection: Connection, count: int) -> None:
    """Use up transaction ids."""
    connection.execute(
        f"DO $$ BEGIN FOR i IN 1..{count:d} LOOP PERFORM pg_current_xact_id(); COMMIT; "
        "END LOOP; END $$"
    )


def next_xid(connection: Connection) -> int:
    """Return the transaction id that comes next, or soon."""
    return int(one(connection, "SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xid")["xid"])


def missed(connection: Connection) -> list[str]:
    """Return the consumers of the appended misses, by ``seq``."""
    rows = check_order(sealed_rows(connection))
    return [row["consumer"] for row in rows if row["type"] == "AcquireMissed"]


def test_a_new_cluster_goes_on(dump: str, new: Cluster) -> None:
    """In a new cluster nothing is lost, nothing comes twice, and the chain goes on."""
    with new.database() as url:
        new.restore(dump, url)
        with connected(url) as connection, ledger(url) as storage:
            before = [row["position"] for row in sealed_rows(connection) if row["seq"]]
            assert len(before) == SEALED
            assert storage.seal() == WHOLE
            assert seal(connection) == WHOLE
            for _ in range(3):
                use(storage)
            seal(connection)
            rows = check_seal(connection)
            assert [row["position"] for row in rows[:SEALED]] == before
            assert len(rows) == WHOLE + 6
            assert len({tick["system_identifier"] for tick in ticks(connection)}) == 2
            assert missed(connection) == ["quick", "slow", "last"]
            assert storage.verify() == []


def test_new_events_may_come_before_the_first_sealing(dump: str, new: Cluster) -> None:
    """What is appended to a restored log before anybody seals is sealed with the rest, once."""
    with new.database() as url:
        new.restore(dump, url)
        with connected(url) as connection, connected(url, autocommit=False) as slow:
            append(slow, "slow here")
            append(connection, "new")
            append(connection, "newer")
            assert seal(connection) == WHOLE + 2
            slow.commit()
            append(connection, "newest")
            assert seal(connection) == WHOLE + 4
            check_seal(connection)
            new_ones = ["new", "newer", "slow here", "newest"]
            assert missed(connection) == ["quick", "slow", "last", *new_ones]


@pytest.mark.parametrize("sealed_first", [True, False])
def test_transaction_ids_may_pass_those_of_restored_events(
    dump: str, new: Cluster, sealed_first: bool
) -> None:
    """While the new cluster hands out the ids of restored events, nothing comes twice."""
    with new.database() as url:
        new.restore(dump, url)
        with connected(url) as connection, ledger(url) as storage:
            if sealed_first:
                assert seal(connection) == WHOLE
            taken = [int(row["tx"]) for row in sealed_rows(connection)]
            burn(connection, min(taken) - 10 - next_xid(connection))
            assert next_xid(connection) < min(taken)
            with connected(url, autocommit=False) as slow:
                while next_xid(connection) < min(taken):
                    burn(connection, 1)
                append(slow, "slow here")
                while next_xid(connection) <= max(taken):
                    use(storage)
            seal(connection)
            rows = check_seal(connection)
            assert {int(row["tx"]) for row in rows[WHOLE:]} & set(taken)
            assert len({row["tx"] for row in rows}) < len(rows)
            assert missed(connection)[-1] == "slow here"
            assert storage.verify() == []


def test_restored_events_of_the_future_do_not_wait(old: Cluster, new: Cluster) -> None:
    """What has a higher transaction id than the new cluster has reached is sealed all the same."""
    with old.database() as there, new.database() as here:
        with ledger(there) as storage, connected(there) as connection:
            storage.upgrade_schema()
            append(connection, "sealed")
            assert seal(connection) == 1
            sealed_until = next_xid(connection)
            burn(connection, 1000)
            append(connection, "unsealed")
        new.restore(old.dump(there), here)
        with connected(here) as connection:
            burn(connection, sealed_until + 10 - next_xid(connection))
            unsealed = int(sealed_rows(connection)[-1]["tx"])
            assert sealed_until < next_xid(connection) < unsealed
            append(connection, "new")
            assert seal(connection) == 3
            check_seal(connection)


def test_another_database_of_the_same_cluster_goes_on(dump: str, old: Cluster) -> None:
    """In the same cluster transaction ids still mean the same, and the chain goes on."""
    with old.database() as url:
        old.restore(dump, url)
        with connected(url) as connection, ledger(url) as storage:
            assert storage.seal() == WHOLE
            use(storage)
            seal(connection)
            check_seal(connection)
            assert storage.verify() == []
            assert len({tick["system_identifier"] for tick in ticks(connection)}) == 1
            assert missed(connection) == ["quick", "slow", "last"]


def test_a_log_comes_back_to_its_first_cluster(dump: str, old: Cluster, new: Cluster) -> None:
    """Restored twice, here and back, a log is still sealed once and in one chain."""
    with new.database() as there, old.database() as back:
        new.restore(dump, there)
        with connected(there) as connection:
            append(connection, "there")
            assert seal(connection) == WHOLE + 1
            append(connection, "there, unsealed")
        old.restore(new.dump(there), back)
        with connected(back) as connection:
            append(connection, "back")
            assert seal(connection) == WHOLE + 3
            append(connection, "back again")
            assert seal(connection) == WHOLE + 4
            check_seal(connection)
            assert missed(connection)[-3:] == ["there, unsealed", "back", "back again"]


def test_a_copy_of_the_cluster_that_is_behind_goes_on(dump: str, new: Cluster) -> None:
    """Where a copy of the cluster has the same identity but fewer transactions, no event waits."""
    with new.database() as url:
        new.restore(dump, url)
        with connected(url) as connection:
            theirs = ticks(connection)[-1]["system_identifier"]
            ours = one(connection, "SELECT system_identifier FROM pg_control_system()")
    with new.database() as url:
        new.restore(dump.replace(str(theirs), str(ours["system_identifier"])), url)
        with connected(url) as connection:
            assert next_xid(connection) < int(ticks(connection)[-1]["snapshot"].split(":")[1])
            append(connection, "new")
            assert seal(connection) == WHOLE + 1
            append(connection, "newer")
            assert seal(connection) == WHOLE + 2
            assert missed(connection) == ["quick", "slow", "last", "new", "newer"]
