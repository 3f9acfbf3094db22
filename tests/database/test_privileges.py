"""An app can lease, a reader can look, and neither can do anything else to a ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import make_url

from pharox import (
    DatabaseError,
    IAsyncStorage,
    InMemoryStorage,
    InvalidInputError,
    MoveStage,
    Outcome,
    ProxyCredentials,
    ProxyManager,
    ProxyPool,
    ProxySource,
    Subscription,
)
from pharox.fleet import LedgerEnd, move_pool
from pharox.history import audit
from pharox.history.replay import pool_at
from pharox.incident.report import write_report
from pharox.ledger.rebuild import rebuild
from pharox.ledger.roles import Roles, grant, statements
from pharox.ledger.subscriptions import parked, remove, retry, subscriptions
from pharox.models import utc_now
from pharox.observability.counting import NAME, FleetCounter
from pharox.storage.interface import IStorage
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage, snapshots
from pharox.storage.reports import CoolDownRequest, ReportRequest
from pharox.storage.sources import RefreshResult
from pharox.testing import AsyncStorageContract, Awaited, StorageContract
from tests.conftest import (
    SECRET_KEY,
    fill,
    ledger,
    new_database,
    open_async_engine,
    run_sql,
    types_of,
)
from tests.ledger.following import BOTH, following, is_level, until

from .sealing import Connection, check_seal, connected, new_role

LOGIN = ProxyCredentials(user="customer", password="s3cret")


class Parties(NamedTuple):
    """A ledger's URL for a superuser and for each of its roles, and the roles."""

    url: str
    owner: str
    app: str
    reader: str
    roles: Roles


def as_role(url: str, name: str) -> str:
    return make_url(url).set(username=name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def granted(server_url: str, template: str) -> Iterator[tuple[str, Roles]]:
    """A database to copy, whose ledger belongs to an ordinary role, and the roles."""
    with ExitStack() as until_the_end:
        server = until_the_end.enter_context(connected(server_url))
        owner, app, reader = (until_the_end.enter_context(new_role(server)) for _ in range(3))
        roles = Roles(app=[app], reader=[reader], owner=owner)
        name = f"pharox_{uuid4().hex[:12]}"
        url = until_the_end.enter_context(new_database(server_url, name, template))
        with ledger(url) as storage:
            grant(storage, roles)
        yield name, roles


@pytest.fixture
def parties(server_url: str, granted: tuple[str, Roles]) -> Iterator[Parties]:
    """A ledger that belongs to an ordinary role, with an app and a reader."""
    granted_template, roles = granted
    with new_database(server_url, f"pharox_{uuid4().hex[:12]}", granted_template) as url:
        with connected(url) as server:  # A copy has no rights on the database itself.
            server.execute(
                sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                    *map(sql.Identifier, (server.info.dbname, str(roles.owner)))
                )
            )
        names = (str(roles.owner), *roles.app, *roles.reader)
        owns, leases, reads = (as_role(url, name) for name in names)
        yield Parties(url, owns, leases, reads, roles)


@pytest.fixture
def app(parties: Parties) -> Iterator[PostgresStorage]:
    """The ledger as an app sees it."""
    with ledger(parties.app) as storage:
        yield storage


@pytest.fixture
def reader(parties: Parties) -> Iterator[PostgresStorage]:
    """The ledger as a reader sees it."""
    with ledger(parties.reader) as storage:
        yield storage


@pytest.fixture
def owner(parties: Parties) -> Iterator[PostgresStorage]:
    """The ledger as its owner sees it."""
    with ledger(parties.owner) as storage:
        yield storage


class TestAppDoesAllThatAStorageMust(StorageContract):
    @pytest.fixture
    def storage(self, app: PostgresStorage) -> IStorage:
        return app


class TestAppDoesSoInCoroutines(AsyncStorageContract):
    @pytest.fixture
    def async_storage(self, parties: Parties) -> IAsyncStorage:
        return AsyncPostgresStorage(open_async_engine(parties.app), secret_keys=[SECRET_KEY])


class TestApp:
    def test_it_keeps_credentials_and_prunes(self, app: PostgresStorage) -> None:
        """What comes beyond the interface is an app's work as well, and leaves the ledger whole."""
        pool, (proxy,) = fill(app, credentials=LOGIN)
        app.upgrade_schema()  # there is nothing to do, which takes no right
        app.import_proxies(pool.id, [proxy.model_copy(update={"port": 9000})])
        assert app.get_proxy(str(proxy.id)).credentials == LOGIN
        app.save_proxy(proxy.model_copy(update={"credentials": None}))
        with ProxyManager(app).with_lease("pool") as lease:
            assert lease is not None
        assert app.prune_leases(utc_now()) == 0  # the last minute stays
        assert app.seal() == len(types_of(app)) == app.seal()
        assert app.verify() == []

    def test_it_forgets_credentials_that_are_out_of_use(self, app: PostgresStorage) -> None:
        """It cannot delete any itself; what was replaced or removed goes all the same."""
        pool, (changed, removed) = fill(app, 2, credentials=LOGIN)
        other = ProxyCredentials(user="bob", password="another")
        app.save_proxy(changed.model_copy(update={"credentials": other}))
        app.delete_proxy(str(removed.id))
        refused(app, "DELETE FROM pharox.proxy_credentials")
        refused(app, "UPDATE pharox.proxy_credentials SET secret = ''")
        in_use = f"SELECT pharox.forget_credentials('{pool.id}')"
        for _ in range(2):
            run_sql(app.engine, in_use)
            kept = run_sql(app.engine, "SELECT proxy_id FROM pharox.proxy_credentials")
            assert kept == [(changed.id,)]
        assert app.get_proxy(str(changed.id)).credentials == other
        assert app.verify() == []
        app.delete_pool(str(pool.id))
        assert run_sql(app.engine, "SELECT 1 FROM pharox.proxy_credentials") == []

    def test_it_keeps_sources(self, app: PostgresStorage) -> None:
        """It saves, claims and removes them; their secrets it can neither change nor delete."""
        app.save_pool(ProxyPool(name="pool"))
        source = ProxySource(name="shop", pool_name="pool", url="http://provider.example/list")
        for url in ("http://provider.example/list", "http://provider.example/other"):
            app.save_source(source.model_copy(update={"url": SecretStr(url)}))
        refused(app, "DELETE FROM pharox.source_secrets")
        refused(app, "UPDATE pharox.source_secrets SET secret = ''")
        assert len(run_sql(app.engine, "SELECT 1 FROM pharox.source_secrets")) == 1
        claim = app.claim_source("shop")
        assert claim is not None
        assert app.finish_refresh(claim, RefreshResult(failure="busy"))
        assert app.verify() == []
        assert app.remove_source("shop")
        assert run_sql(app.engine, "SELECT 1 FROM pharox.source_secrets") == []

    @pytest.mark.parametrize("driver", BOTH)
    def test_it_follows_the_log(self, app: PostgresStorage, driver: str) -> None:
        """It reads subscriptions, parks what fails, retries it, and counts the fleet's metrics."""
        fill(app, 3)
        failing = [True]

        def handle(_: object) -> None:
            if failing:
                raise ValueError("not today")

        told = Subscription("told", handle, attempts=1)
        with following(told, app, driver):
            until(lambda: is_level(app, "told"))
            assert len(parked(app, "told")) == 4
            failing.clear()
            retry(app, "told")
            until(lambda: not parked(app, "told"))
        counter = FleetCounter(app)
        with following(counter.subscription(), app):
            until(lambda: is_level(app, NAME))
        assert sum(counter.counts().values()) > 0
        remove(app, "told")
        assert "told" not in {status.name for status in subscriptions(app)}

    def test_it_crosses_a_border_of_the_log(
        self, app: PostgresStorage, owner: PostgresStorage
    ) -> None:
        """A part that an app has made is its owner's: the app appends to it, and no more."""
        small = (
            "CREATE OR REPLACE FUNCTION pharox.partition_rows() RETURNS bigint "
            "LANGUAGE sql STABLE AS 'SELECT 20::bigint'",
            "DROP TABLE pharox.events_0, pharox.seals_0",
            "DELETE FROM pharox.partitions",
        )
        for statement in small:
            run_sql(owner.engine, statement)
        fill(app, 15)
        fill(app, 15, name="beyond")
        assert app.verify() == []
        parts = [name for (name,) in run_sql(owner.engine, PARTS)]
        assert len(parts) >= 4
        for part in parts:
            for change in CHANGES:
                refused(app, change.format(part))
            refused(app, f"SELECT * FROM {part}")


PARTS = (
    "SELECT inhrelid::regclass::text FROM pg_inherits "
    "WHERE inhparent IN ('pharox.events'::regclass, 'pharox.seals'::regclass)"
)
CHANGES = (
    "UPDATE {} SET position = 0",
    "DELETE FROM {}",
    "TRUNCATE {}",
    "ALTER TABLE {} DISABLE TRIGGER ALL",
    "ALTER TABLE {} ADD COLUMN x int",
    "DROP TABLE {}",
    "CREATE TRIGGER mine BEFORE INSERT ON {} EXECUTE FUNCTION pharox.refuse_change()",
)

FOR_NOBODY = [
    *(change.format("pharox.events") for change in CHANGES),
    *(change.format("pharox.seals") for change in CHANGES),
    "UPDATE pharox.ticks SET root = ''",
    "DELETE FROM pharox.ticks",
    "INSERT INTO pharox.seals (seq, position, digest) VALUES (99, 99, '')",
    "INSERT INTO pharox.events (pool_id, data, recorded_at, type, schema_version) "
    "VALUES (gen_random_uuid(), '{}', now(), 'PoolRemoved', 1)",
    "SELECT nextval('pharox.events_position_seq')",
    "SELECT setval('pharox.events_position_seq', 1)",
    "UPDATE pharox.partitions SET archive = '/elsewhere'",
    "INSERT INTO pharox.snapshots VALUES (1, now(), '{}')",
    "INSERT INTO pharox.snapshot_rows VALUES (1, 'pools', '{}')",
    "DELETE FROM pharox.alembic_version",
    "TRUNCATE pharox.leases",
    "CREATE TABLE pharox.mine (x int)",
    "CREATE FUNCTION pharox.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION pharox.clock() RETURNS timestamptz LANGUAGE sql STABLE "
    "AS 'SELECT now()'",
    "CREATE VIEW pharox.mine AS SELECT 1",
    "CREATE INDEX mine ON pharox.leases (id)",
    "ALTER TABLE pharox.leases DROP CONSTRAINT pk_leases",
    "ALTER SCHEMA pharox RENAME TO mine",
    "DROP SCHEMA pharox CASCADE",
    "SET session_replication_role = replica",
    "SELECT pharox.protect('pharox.events')",
    "SELECT pharox.advance_positions_v1(987654321)",
    "SELECT * FROM pg_authid",
    "SELECT * FROM other.proxy_credentials",
    "SELECT * FROM other.events",
]
FOR_NO_READER = [
    "SELECT * FROM pharox.proxy_credentials",
    "SELECT secret FROM pharox.proxy_credentials",
    "SELECT secret FROM pharox.source_secrets",
    *(f"DELETE FROM pharox.{table}" for table in ("leases", "pools", "subscriptions")),
    "UPDATE pharox.available_proxies SET current_leases = 0",
    "INSERT INTO pharox.consumers VALUES ('me', gen_random_uuid())",
    "SELECT * FROM pharox.leases FOR UPDATE",
    "SELECT pharox.add_partition()",
]


def refused(storage: PostgresStorage, statement: str) -> None:
    """Make sure that the database says that this role may not."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run_sql(storage.engine, statement)


def test_neither_can_do_more(
    parties: Parties, app: PostgresStorage, reader: PostgresStorage
) -> None:
    """No change of the log, no forged place in it, no DDL, no secrets but proxies' own."""
    with ledger(parties.url) as storage:
        PostgresStorage(storage.engine, schema="other").upgrade_schema()
        fill(storage, 2, credentials=LOGIN)
        before = types_of(storage)
        for statement in FOR_NOBODY:
            refused(app, statement)
        for statement in (*FOR_NOBODY, *FOR_NO_READER):
            refused(reader, statement)
        run_sql(storage.engine, "DROP SCHEMA other CASCADE")
        assert types_of(storage) == before
        assert storage.verify() == []
    with connected(parties.url) as server:
        check_seal(server)


def test_only_the_owner_moves_pools(
    owner: PostgresStorage, app: PostgresStorage, reader: PostgresStorage
) -> None:
    """Others are refused before anything is begun, and told which right in which ledger it takes.

    No position is beyond 2^53.
    """
    pool, _ = fill(owner, 1)
    elsewhere = LedgerEnd("b", InMemoryStorage())

    def refused(source: LedgerEnd, target: LedgerEnd) -> None:
        with pytest.raises(DatabaseError, match="this role may not move pools") as told:
            move_pool(pool.name, source, target)
        assert "permission denied for function advance_positions_v1" in str(told.value)
        assert "pharox db grant --owner" in str(told.value)
        assert told.value.data["ledger"] == "a"

    for less in (app, reader):
        refused(LedgerEnd("a", less), elsewhere)
    assert owner.list_pool_moves() == []
    assert move_pool(pool.name, LedgerEnd("a", owner), elsewhere).stage is MoveStage.MOVED
    refused(elsewhere, LedgerEnd("a", app))
    assert move_pool(pool.name, elsewhere, LedgerEnd("a", owner)).stage is MoveStage.MOVED
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="2\\^53"):
        run_sql(owner.engine, f"SELECT pharox.advance_positions_v1({2**53 + 1})")


class TestReader:
    def test_it_reads_all_but_credentials(
        self,
        app: PostgresStorage,
        reader: PostgresStorage,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Reports, audit, replay, statistics and verify give it what they give the app."""
        pool, (proxy, *_) = fill(app, 3, credentials=LOGIN)
        with ProxyManager(app).with_lease("pool", consumer_name="w") as lease:
            assert lease is not None
        assert types_of(reader) == types_of(app)
        assert reader.verify() == []
        stories = [list(audit.of_consumer(storage, "w").entries) for storage in (reader, app)]
        assert stories[0] == stories[1] != []
        assert pool_at(reader, "pool", 5) == pool_at(app, "pool", 5)
        assert reader.list_pool_stats()[0].total_proxies == 3
        assert reader.queue_stats() == []
        assert reader.list_held_leases() == []
        refused = [ReportRequest(lease, Outcome.blocked("shop.example", status=429))]
        assert not isinstance(app.report_outcomes(refused)[0], Exception)
        app.set_cool_down(CoolDownRequest(lease.proxy_id, "shop.example", 60))
        assert [pair.target for pair in reader.list_target_outcomes()] == ["shop.example"]
        assert reader.summarize_targets()[0].cooling == 1
        with pytest.raises(DatabaseError, match="permission denied"):
            reader.report_outcomes(refused)
        monkeypatch.setattr(snapshots, "BATCH", 2)
        monkeypatch.setattr(snapshots, "EVENTS_PER_ROW", 0)
        assert reader.state_at(5) == app.state_at(5)
        shown = list(reader.iter_proxies(pool.id, with_credentials=False))
        assert {x.credentials for x in shown} == {None}
        assert len(shown) == 3
        window = timedelta(minutes=1)
        report = write_report(reader, utc_now() - window, utc_now(), tmp_path / "report")
        text = report.page.read_text()
        assert "10.0.0.0" in text
        assert LOGIN.user not in text
        with pytest.raises(DatabaseError, match=r"proxy_credentials; .*pharox db grant"):
            reader.get_proxy(str(proxy.id))
        with pytest.raises(DatabaseError, match="permission denied"):
            reader.ensure_consumer("new")
        with pytest.raises(DatabaseError, match="permission denied"):
            rebuild(reader)

    def test_it_awaits_the_log(self, app: PostgresStorage, parties: Parties) -> None:
        """In coroutines as well, it reads the log and writes nothing."""
        pool, (proxy,) = fill(app, credentials=LOGIN)
        storage = AsyncPostgresStorage(open_async_engine(parties.reader), secret_keys=[])
        with Awaited(storage) as reader:
            assert [event.type for event in reader.events()] == types_of(app)
            (shown,) = reader.iter_proxies(pool.id, with_credentials=False)
            assert shown == proxy.model_copy(update={"credentials": None})
            with pytest.raises(DatabaseError, match="pharox db grant"):
                reader.get_proxy(str(proxy.id))
            with pytest.raises(DatabaseError, match="pharox db grant"):
                reader.save_pool(pool.model_copy(update={"name": "mine"}))
            with pytest.raises(DatabaseError, match="pharox db grant"):
                reader.delete_pool(str(pool.id))
        assert [known.name for known in app.list_pools()] == ["pool"]


def acls(server: Connection) -> list[dict[str, Any]]:
    """Return who may do what in the ledger, as the catalogue has it."""
    query = (
        "SELECT relname AS name, relowner::regrole::text, relacl::text[] FROM pg_class "
        "WHERE relnamespace = 'pharox'::regnamespace UNION ALL "
        "SELECT proname, proowner::regrole::text, proacl::text[] FROM pg_proc "
        "WHERE pronamespace = 'pharox'::regnamespace UNION ALL "
        "SELECT attrelid::regclass || '.' || attname, '', attacl::text[] FROM pg_attribute "
        "WHERE attacl IS NOT NULL AND attrelid::regclass::text LIKE 'pharox.%' "
        "ORDER BY name"
    )
    return server.execute(query).fetchall()


@contextmanager
def unchanged(url: str) -> Iterator[None]:
    """Make sure that a block leaves all privileges as they were."""
    with connected(url) as server:
        before = acls(server)
        yield
        assert acls(server) == before


class TestGranting:
    def test_twice_is_once(self, parties: Parties, owner: PostgresStorage) -> None:
        """The owner may grant as well, and what is granted already is no different then."""
        with unchanged(parties.url):
            grant(owner, Roles(app=parties.roles.app, reader=parties.roles.reader))

    def test_too_much_is_taken_away(self, parties: Parties) -> None:
        """What a role or PUBLIC got before, on tables, columns, functions and to come, is gone."""
        with unchanged(parties.url):
            (app,), (reader,) = parties.roles.app, parties.roles.reader
            with connected(parties.url) as server:
                for excess in (
                    "GRANT ALL ON SCHEMA pharox TO {0}, {1}",
                    "GRANT ALL ON ALL TABLES IN SCHEMA pharox TO {0} WITH GRANT OPTION",
                    "GRANT ALL ON ALL TABLES IN SCHEMA pharox TO PUBLIC",
                    "GRANT ALL ON ALL SEQUENCES IN SCHEMA pharox TO {1}",
                    "GRANT ALL ON ALL FUNCTIONS IN SCHEMA pharox TO PUBLIC",
                    "GRANT SELECT (secret) ON pharox.proxy_credentials TO {1}",
                    "GRANT UPDATE (data) ON pharox.events TO {0}",
                    "ALTER DEFAULT PRIVILEGES FOR ROLE {2} IN SCHEMA pharox "
                    "GRANT ALL ON TABLES TO {0}",
                ):
                    names = map(sql.Identifier, (app, reader, str(parties.roles.owner)))
                    server.execute(sql.SQL(excess).format(*names))
                with ledger(parties.url) as storage:
                    grant(storage, parties.roles)
                assert server.execute("SELECT * FROM pg_default_acl").fetchall() == []

    @pytest.mark.parametrize(
        ("excess", "undo", "why"),
        [
            ("ALTER ROLE {app} SUPERUSER", "ALTER ROLE {app} NOSUPERUSER", "is a superuser"),
            ("ALTER ROLE {app} CREATEROLE", "ALTER ROLE {app} NOCREATEROLE", "CREATEROLE"),
            ("GRANT {owner} TO {app}", "REVOKE {owner} FROM {app}", "act as its owner"),
            ("GRANT {app} TO {reader}", "REVOKE {app} FROM {reader}", "would still have"),
            ("GRANT pg_write_all_data TO {app}", "REVOKE pg_write_all_data FROM {app}", "DELETE"),
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT TRIGGER ON TABLES TO {app}",
                "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE TRIGGER ON TABLES FROM {app}",
                "ALTER DEFAULT PRIVILEGES FOR ROLE",
            ),
        ],
    )
    def test_what_cannot_be_kept_from_a_role_is_an_error(
        self, parties: Parties, excess: str, undo: str, why: str
    ) -> None:
        """Rights that come from elsewhere are named, and then nothing is granted."""
        names = {
            name: sql.Identifier(role)
            for name, role in zip(("app", "reader", "owner"), parties.roles.names(), strict=True)
        }
        with connected(parties.url) as server, ledger(parties.url) as storage:
            server.execute(sql.SQL(excess).format(**names))
            try:
                with unchanged(parties.url), pytest.raises(DatabaseError, match=why):
                    grant(storage, parties.roles)
            finally:
                server.execute(sql.SQL(undo).format(**names))

    def test_whoever_does_not_own_the_ledger_is_told(
        self, parties: Parties, app: PostgresStorage
    ) -> None:
        """An app cannot grant itself more rights, and the error says who can."""
        with unchanged(parties.url), pytest.raises(DatabaseError, match="belongs to") as caught:
            grant(app, Roles(app=parties.roles.reader))
        assert caught.value.owner == parties.roles.owner  # type: ignore[attr-defined]

    def test_rights_survive_a_rebuild(
        self, parties: Parties, owner: PostgresStorage, app: PostgresStorage
    ) -> None:
        """The tables that a rebuild puts in place are as open and as closed as the old ones."""
        fill(app, 2)
        with unchanged(parties.url):
            rebuild(owner)
        with ProxyManager(app).with_lease("pool") as lease:
            assert lease is not None

    def test_what_is_printed_is_what_is_applied(self, parties: Parties) -> None:
        """Run as a script, the statements do the same, in a schema whose name is awkward too."""
        awkward = 'a "quoted" Name; %s \x1b[31m'
        with connected(parties.url) as server, ledger(parties.url) as storage:
            elsewhere = PostgresStorage(storage.engine, schema=awkward, secret_keys=[SECRET_KEY])
            elsewhere.upgrade_schema()
            script = "BEGIN;" + ";".join(statements(elsewhere, parties.roles)) + ";COMMIT"
            assert script.isprintable()
            server.execute(script.encode())
            grant(elsewhere, parties.roles)
            with ledger(parties.app) as app:
                fill(PostgresStorage(app.engine, schema=awkward, secret_keys=[SECRET_KEY]))


HOSTILE = [
    'x"; DROP SCHEMA pharox CASCADE; --',
    "x\n; DROP SCHEMA pharox CASCADE; --",
    "\x1b[31mred\x1b[0m",
    "\u202egnorw",
    "back\\slash\x07",
    "PUBLIC",
    "current_user",
    "%s {} $1 :name",
    "naïve role",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_role_may_have_any_name(database_url: str, name: str) -> None:
    """A name is quoted, whatever is in it, and prints without effect on a terminal."""
    roles = Roles(app=[name])
    with connected(database_url) as server, ledger(database_url) as storage:
        with pytest.raises(DatabaseError, match="create it with") as caught:
            statements(storage, roles)
        create = str(caught.value).partition("`")[2].rstrip("`")
        assert create.isprintable()
        server.execute(create.encode())
        try:
            assert server.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).rowcount == 1
            assert all(statement.isprintable() for statement in statements(storage, roles))
            grant(storage, roles)
            with ledger(as_role(database_url, name)) as app:
                fill(app)
                refused(app, "DELETE FROM pharox.events")
        finally:
            storage.close()
            for undo in ("DROP OWNED BY {}", "DROP ROLE {}"):
                server.execute(sql.SQL(undo).format(sql.Identifier(name)))


@pytest.mark.parametrize(
    "roles",
    [
        {},
        {"app": [""]},
        {"app": ["a\x00b"]},
        {"reader": ["\udcff"]},
        {"app": ["one"], "reader": ["one"]},
        {"owner": "one", "reader": ["one"]},
    ],
)
def test_roles_that_make_no_sense_are_refused(roles: dict[str, Any]) -> None:
    """Nobody, a name that is none, and one role for two things."""
    with pytest.raises(InvalidInputError):
        Roles(**roles)


def test_a_right_of_the_database_is_said_to_be_missing(
    parties: Parties, owner: PostgresStorage
) -> None:
    """Verifying needs temporary tables, which ``db grant`` cannot allow."""
    with connected(parties.url) as server:
        name = sql.Identifier(str(make_url(parties.url).database))
        server.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(name))
    with pytest.raises(DatabaseError, match="GRANT TEMPORARY ON DATABASE"):
        owner.verify()


def test_an_upgrade_without_rights_is_our_error(parties: Parties, owner: PostgresStorage) -> None:
    """A role without the right to create the schema gets an error, and nothing is created."""
    with ledger(parties.app) as app:
        elsewhere = PostgresStorage(app.engine, schema="elsewhere")
        with pytest.raises(DatabaseError, match=r"refused the upgrade.*permission denied"):
            elsewhere.upgrade_schema()
    assert run_sql(owner.engine, "SELECT FROM pg_namespace WHERE nspname = 'elsewhere'") == []
