"""A rebuild makes read models anew while leasing goes on, and a killed one does no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import projections
from pharox import (
    ConflictError,
    DatabaseError,
    InvalidInputError,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
)
from pharox.ledger.rebuild import fresh_schema, rebuild
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.folding import Folder
from tests.conftest import SECRET_KEY, fill, open_engine, run_sql


def folded(storage: PostgresStorage, batch: int = 10_000) -> dict[str, projections.State]:
    """Return the fold of the log in SQL, so many events at once."""
    last = storage.seal()
    with storage.session(keep=False) as session:
        folder = Folder(session, storage.schema, projections.ALL)
        folder.batch = batch
        folder.create()
        for _ in folder.advance(last):
            pass
        return folder.states()


class TestOneBatch:
    """What came back, or took a name that was free again, folds in one go as well."""

    def test_a_proxy_that_came_back(self, postgres: PostgresStorage) -> None:
        _, (proxy, _) = fill(postgres, 2)
        manager = ProxyManager(postgres)
        for _ in range(3):
            manager.acquire_proxy("pool")
            postgres.delete_proxy(str(proxy.id))
            postgres.save_proxy(proxy)
        assert folded(postgres) == postgres.live_states()

    def test_a_proxy_that_moved_to_another_pool(self, postgres: PostgresStorage) -> None:
        _, (proxy,) = fill(postgres, 1)
        other, _ = fill(postgres, 1, name="other")
        postgres.delete_proxy(str(proxy.id))
        postgres.save_proxy(proxy.model_copy(update={"pool_id": other.id}))
        assert folded(postgres) == postgres.live_states()

    def test_a_name_that_was_used_again(self, postgres: PostgresStorage) -> None:
        for count in (2, 3):
            pool, _ = fill(postgres, count)
            ProxyManager(postgres).acquire_proxy("pool")
            if count == 2:
                postgres.delete_pool(str(pool.id))
        assert folded(postgres) == postgres.live_states()

    def test_what_is_not_sealed_yet(self, postgres: PostgresStorage) -> None:
        """What came back after the last seal is folded with its snapshot all the same."""
        pool, (proxy, _) = fill(postgres, 2)
        postgres.seal()
        postgres.delete_proxy(str(proxy.id))
        postgres.save_proxy(proxy)
        postgres.save_pool(pool.model_copy(update={"name": "renamed"}))
        postgres.save_pool(ProxyPool(name="pool"))
        with postgres.session(keep=False) as session:
            folder = Folder(session, postgres.schema, projections.ALL)
            folder.create()
            folder.fold_visible()
            assert folder.seq == 3
            assert folder.states() == postgres.live_states()

    def test_names_that_were_exchanged(self, postgres: PostgresStorage) -> None:
        one, two = (ProxyPool(name=name) for name in ("one", "two"))
        for pool in (one, two):
            postgres.save_pool(pool)
        for pool, name in ((one, "spare"), (two, "one"), (one, "two")):
            postgres.save_pool(pool.model_copy(update={"name": name}))
        assert folded(postgres) == postgres.live_states()


class TestRebuild:
    def test_what_differed_is_named_and_put_right(self, postgres: PostgresStorage) -> None:
        """The old tables' differences are returned, and gone from the new ones."""
        fill(postgres, 2)
        ProxyManager(postgres).acquire_proxy("pool")
        right = postgres.live_states()
        run_sql(postgres.engine, "UPDATE pharox.leases SET consumer_name = 'forged'")
        run_sql(postgres.engine, "DELETE FROM pharox.proxies WHERE port = 8000")
        done = rebuild(postgres)
        assert {finding.check for finding in done.findings} == {"leases", "proxies"}
        assert postgres.live_states() == right
        assert postgres.verify() == []

    def test_only_those_that_are_named(self, postgres: PostgresStorage) -> None:
        """The others keep their tables as they are."""
        fill(postgres, 2)
        others = "SELECT 'pharox.proxies'::regclass::oid, 'pharox.pools'::regclass::oid"
        before = run_sql(postgres.engine, others)
        assert rebuild(postgres, ["leases", "leases"]).projections == ("leases",)
        assert run_sql(postgres.engine, others) == before

    def test_nothing_is_left_behind(self, postgres: PostgresStorage) -> None:
        """The fresh tables' schema is gone; leasing goes on in the new tables."""
        fill(postgres, 1)
        rebuild(postgres)
        schemas = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pharox%'"
        assert run_sql(postgres.engine, schemas) == [("pharox",)]
        assert ProxyManager(postgres).acquire_proxy("pool") is not None
        assert postgres.verify() == []

    def test_privileges_stay(self, postgres: PostgresStorage) -> None:
        """Whoever could read a table can read it afterwards."""
        fill(postgres, 1)
        run_sql(postgres.engine, "GRANT SELECT ON pharox.leases TO PUBLIC")
        privileges = "SELECT aclexplode(relacl)::text FROM pg_class WHERE relname = 'leases'"
        before = run_sql(postgres.engine, privileges)
        rebuild(postgres)
        assert sorted(run_sql(postgres.engine, privileges)) == sorted(before)

    def test_a_view_on_a_table_is_named_before_anything_is_done(
        self, postgres: PostgresStorage
    ) -> None:
        fill(postgres, 1)
        run_sql(postgres.engine, "CREATE VIEW public.mine AS SELECT * FROM pharox.leases")
        with pytest.raises(DatabaseError, match="depends on the table leases"):
            rebuild(postgres)
        assert rebuild(postgres, ["pools"]).findings == ()

    @pytest.mark.parametrize(
        "of_their_own",
        [
            "CREATE INDEX mine ON pharox.leases (consumer_name)",
            "CREATE POLICY mine ON pharox.leases USING (true)",
            "CREATE PUBLICATION mine FOR TABLE pharox.leases",
            "CREATE TRIGGER mine BEFORE UPDATE ON pharox.leases "
            "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        ],
    )
    def test_nothing_of_theirs_is_lost(self, postgres: PostgresStorage, of_their_own: str) -> None:
        """What else hangs on a table is named, and the table stays."""
        run_sql(postgres.engine, of_their_own)
        with pytest.raises(DatabaseError, match=r"mine.*depends on the table leases"):
            rebuild(postgres)

    def test_a_schema_of_somebody_else_is_left_alone(self, postgres: PostgresStorage) -> None:
        """Only what a rebuild made is dropped, whatever its name is."""
        run_sql(postgres.engine, "CREATE SCHEMA pharox_rebuild")
        run_sql(postgres.engine, "CREATE TABLE pharox_rebuild.theirs ()")
        with pytest.raises(DatabaseError, match="did not create that schema"):
            rebuild(postgres)
        assert run_sql(postgres.engine, "SELECT count(*) FROM pharox_rebuild.theirs") == [(0,)]

    def test_a_name_that_would_be_cut_is_refused(self, empty_database_url: str) -> None:
        """PostgreSQL would cut the fresh schema's name to that of the ledger."""
        storage = PostgresStorage(open_engine(empty_database_url), schema="s" * 63)
        storage.upgrade_schema()
        storage.save_pool(ProxyPool(name="kept"))
        with pytest.raises(InvalidInputError, match="too long a name"):
            rebuild(storage)
        assert [pool.name for pool in storage.list_pools()] == ["kept"]
        storage.close()

    def test_a_forged_event_does_not_get_into_the_read_models(
        self, postgres: PostgresStorage
    ) -> None:
        """If the log was changed, the old tables stay, unless one insists."""
        fill(postgres, 1)
        postgres.seal()
        run_sql(postgres.engine, "ALTER TABLE pharox.events_0 DISABLE TRIGGER USER")
        run_sql(
            postgres.engine,
            """UPDATE pharox.events_0 SET data = jsonb_set(data, '{host}', '"evil.example"') """
            "WHERE type = 'ProxyRegistered'",
        )
        with pytest.raises(DatabaseError, match=r"changed since it was sealed \(events seq=2"):
            rebuild(postgres)
        hosts = "SELECT host FROM pharox.proxies"
        assert run_sql(postgres.engine, hosts) == [("10.0.0.0",)]
        rebuild(postgres, force=True)
        assert run_sql(postgres.engine, hosts) == [("evil.example",)]

    def test_verify_beside_rebuilds_finds_nothing(self, postgres: PostgresStorage) -> None:
        """A table that is exchanged while verify looks does not seem to be empty."""
        fill(postgres, 3)
        done = threading.Event()
        findings: list[projections.Finding] = []

        def check() -> None:
            while not done.is_set():
                findings.extend(postgres.verify())

        checker = threading.Thread(target=check)
        checker.start()
        for _ in range(5):
            rebuild(postgres)
        done.set()
        checker.join()
        assert findings == []

    def test_an_unknown_name_is_refused(self, postgres: PostgresStorage) -> None:
        with pytest.raises(InvalidInputError, match="no projection is named 'lease'; there are"):
            rebuild(postgres, ["lease"])

    def test_one_at_a_time(
        self, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second rebuild says that one is running, and does not touch its tables."""
        monkeypatch.setattr("pharox.ledger.rebuild.PATIENCE_S", 0.1)
        with postgres.own_session() as other:
            other.connection.execute("SELECT pg_advisory_lock(1885890929, hashtext('pharox'))")
            with pytest.raises(ConflictError, match="archiving or rebuilding"):
                rebuild(postgres)

    def test_writers_who_are_never_far_behind_do_not_keep_it_from_ending(
        self, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More is appended in each round than may be left for the locks."""
        monkeypatch.setattr("pharox.ledger.rebuild.NEAR", 2)
        fill(postgres, 1)
        seal, rounds = postgres.seal, 0

        def while_others_append() -> int:
            nonlocal rounds
            rounds += 1
            assert rounds < 20, "the rebuild follows the writers for ever"
            for _ in range(3):
                ProxyManager(postgres).acquire_proxy("pool")
            return seal()

        monkeypatch.setattr(postgres, "seal", while_others_append)
        assert rebuild(postgres).findings == ()
        assert rounds > 1
        assert postgres.verify() == []

    def test_a_table_that_is_in_use_keeps_the_old_ones(
        self, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the locks are not to be had, all is as it was and the error says why."""
        monkeypatch.setattr("pharox.ledger.rebuild.ATTEMPTS", 2)
        fill(postgres, 1)
        before = run_sql(postgres.engine, "SELECT 'pharox.leases'::regclass::oid")
        with postgres.engine.connect().execution_options(isolation_level="READ COMMITTED") as idle:
            idle.exec_driver_sql("SELECT count(*) FROM pharox.leases")
            with pytest.raises(DatabaseError, match="open transactions"):
                rebuild(postgres)
        assert run_sql(postgres.engine, "SELECT 'pharox.leases'::regclass::oid") == before
        assert ProxyManager(postgres).acquire_proxy("pool") is not None


WORKER = """
import os, sys, time
import pharox
os.nice(10)  # eight of them leave little to a rebuild that has yet to import pharox
manager = pharox.ProxyManager(pharox.connect(sys.argv[1]))
print("ready", flush=True)
cycles, worst, end = 0, 0.0, time.monotonic() + 600
while time.monotonic() < end and not __import__("select").select([sys.stdin], [], [], 0)[0]:
    began = time.monotonic()
    lease = manager.acquire_proxy("pool", f"worker-{sys.argv[2]}")
    if lease is not None:
        manager.release_proxy(lease)
    worst = max(worst, time.monotonic() - began)
    cycles += 1
    time.sleep(0.01)
print(cycles, worst, flush=True)
"""

REBUILD = """
import sys
import pharox
from pharox.ledger.rebuild import rebuild
rebuild(pharox.connect(sys.argv[1]))
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PHAROX_SECRET_KEY": SECRET_KEY},
    )


@pytest.mark.stress
def test_ten_rebuilds_under_eight_workers(postgres: PostgresStorage, database_url: str) -> None:
    """Ten in a row, three of them killed: no worker sees an error, and the ledger verifies."""
    fill(postgres, 6)
    manager = ProxyManager(postgres)
    for _ in range(300):
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        manager.release_proxy(lease)
    workers = [start(WORKER, database_url, str(n)) for n in range(8)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for number in range(10):
        run = start(REBUILD, database_url)
        if number % 3 == 1:
            wait_for_fresh_tables(postgres, run)
            run.send_signal(signal.SIGKILL)
            run.communicate()
        else:
            _, errors = run.communicate(timeout=120)
            assert run.returncode == 0, errors
    for worker in workers:
        out, errors = worker.communicate("end\n", timeout=60)
        assert worker.returncode == 0, errors
        assert int(out.split()[0]) > 0
    assert rebuild(postgres).findings == ()
    assert postgres.verify() == []


def wait_for_fresh_tables(storage: PostgresStorage, run: subprocess.Popen[str]) -> None:
    """Wait until a rebuild is in the middle of its work, or has been quicker than this."""
    tables = f"SELECT count(*) FROM pg_tables WHERE schemaname = '{fresh_schema('pharox')}'"
    while run.poll() is None and run_sql(storage.engine, tables) == [(0,)]:
        time.sleep(0.005)


MINE = '''
    """first_leases: when each consumer got its first lease."""

    from dataclasses import dataclass
    from datetime import datetime

    from sqlalchemy import Column, DateTime, Table, Text, select
    from sqlalchemy.dialects.postgresql import insert

    from pharox.events import LeaseAcquired
    from projections.base import Fold, Projection, metadata, of_type


    @dataclass
    class FirstLease:
        consumer: str
        at: datetime


    table = Table(
        "first_leases",
        metadata,
        Column("consumer", Text, primary_key=True),
        Column("at", DateTime(timezone=True), nullable=False),
    )


    def insert_first(events):
        ours = of_type(events, "LeaseAcquired")
        firsts = select(events.c.consumer, events.c.recorded_at).where(
            events.is_earliest(ours, events.c.consumer)
        )
        return insert(table).from_select(["consumer", "at"], firsts).on_conflict_do_nothing()


    class FirstLeases(Projection):
        name, table, row, key = "first_leases", table, FirstLease, ("consumer",)

        def apply(self, state, event):
            if isinstance(event, LeaseAcquired):
                state.setdefault((event.consumer,), FirstLease(event.consumer, event.recorded_at))

        def folds(self):
            return (Fold(frozenset({"LeaseAcquired"}), insert_first),)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder on the path with an installed package that offers a projection."""
    (tmp_path / "first_leases.py").write_text(textwrap.dedent(MINE))
    about = tmp_path / "first_leases-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: first_leases\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[pharox.projections]\nfirst_leases = first_leases:FirstLeases\n"
    )
    return tmp_path


def run_with(plugin: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has the package on its path."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(plugin), "PHAROX_SECRET_KEY": SECRET_KEY},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_projection_of_ones_own(
    postgres: PostgresStorage, database_url: str, plugin: Path
) -> None:
    """It is rebuilt by its name, kept up to date from then on, and verified with the others."""
    fill(postgres, 2)
    ProxyManager(postgres).acquire_proxy("pool", "before")
    script = """
        import sys
        import pharox
        storage = pharox.connect(sys.argv[1])
        from pharox.ledger.rebuild import rebuild
        assert rebuild(storage, ["first_leases"]).findings == ()
        pharox.ProxyManager(storage).acquire_proxy("pool", "after")
        assert storage.verify() == [], storage.verify()
        print(*(row.consumer for row in storage.live_states()["first_leases"].values()))
    """
    done = run_with(plugin, textwrap.dedent(script), database_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["before", "after"]


def test_a_projection_that_came_after_a_snapshot(
    postgres: PostgresStorage, database_url: str, plugin: Path
) -> None:
    """A stored state that knows nothing of it is not taken for its past."""
    fill(postgres, 2)
    ProxyManager(postgres).acquire_proxy("pool", "before")
    postgres.take_snapshot(postgres.seal())
    script = """
        import sys
        import pharox
        from pharox.ledger.rebuild import rebuild
        storage = pharox.connect(sys.argv[1])
        try:
            storage.verify()
        except pharox.SchemaError as error:
            print(error)
        rebuild(storage, ["first_leases"])
        assert storage.verify() == [], storage.verify()
        assert storage.state_at(storage.seal()) == {
            **storage.live_states(),
            "leases": storage.state_at(storage.seal())["leases"],
        }
    """
    done = run_with(plugin, textwrap.dedent(script), database_url)
    assert done.returncode == 0, done.stderr
    assert 'relation "pharox.first_leases" does not exist' in done.stdout
    assert "`pharox rebuild NAME`" in done.stdout


RUN_PHAROX = "import sys; from pharox.cli import main; sys.exit(main())"


def test_a_projection_that_cannot_be_loaded(database_url: str, plugin: Path) -> None:
    """A package's mistake is told in a sentence that names it."""
    (plugin / "first_leases.py").write_text("raise RuntimeError('half done')")
    done = run_with(plugin, RUN_PHAROX, "--url", database_url, "verify")
    assert done.returncode == 1
    assert done.stderr == (
        "pharox: the projection 'first_leases' (first_leases:FirstLeases) can't be loaded: "
        "half done\n"
    )


def test_another_schema_of_any_name(empty_database_url: str) -> None:
    """A schema whose name has to be quoted is rebuilt and verified like any other."""
    engine = open_engine(empty_database_url)
    storage = PostgresStorage(engine, schema='a "b" %s', secret_keys=[SECRET_KEY])
    storage.upgrade_schema()
    pool = ProxyPool(name="p")
    storage.save_pool(pool)
    storage.save_proxy(
        Proxy(host="h.example", port=1, protocol=ProxyProtocol.HTTP, pool_id=pool.id)
    )
    assert rebuild(storage).findings == ()
    assert storage.verify() == []
    assert storage.state_at(2) == storage.live_states()
    engine.dispose()
