"""A proxy's secrets are in one table, encrypted, and nowhere else."""

from __future__ import annotations

import logging
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pharox import (
    InMemoryStorage,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyProtocol,
    SecretKeyError,
)
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.vault import Place, Vault
from tests.conftest import SECRET_KEY, AnyStorage, fill, open_engine, run_sql, types_of

USER, PASSWORD = "s3cret-user", "s3cret pass/word:%+"


def proxy_with_password(storage: AnyStorage) -> Proxy:
    """Register a proxy that asks for credentials, and return it."""
    pool, _ = fill(storage, 0)
    credentials = ProxyCredentials(user=USER, password=PASSWORD)
    proxy = Proxy(
        host="proxy.example",
        port=3128,
        protocol=ProxyProtocol.HTTP,
        pool_id=pool.id,
        status="active",
        credentials=credentials,
    )
    storage.save_proxy(proxy)
    return proxy


def test_credentials_come_back_as_they_went(any_storage: AnyStorage) -> None:
    """A stored proxy has its credentials, and a change of them is an event without them."""
    proxy = proxy_with_password(any_storage)
    assert any_storage.get_proxy(str(proxy.id)) == proxy
    any_storage.save_proxy(proxy)
    assert types_of(any_storage).count("ProxyChanged") == 0
    other = ProxyCredentials(user=USER, password="another")
    any_storage.save_proxy(proxy.model_copy(update={"credentials": other}))
    assert any_storage.get_proxy(str(proxy.id)).credentials == other
    any_storage.save_proxy(proxy.model_copy(update={"credentials": None}))
    assert any_storage.get_proxy(str(proxy.id)).credentials is None
    assert types_of(any_storage).count("ProxyChanged") == 2
    assert any_storage.verify() == []


def test_no_dump_shows_them(postgres: PostgresStorage) -> None:
    """No column of any table holds them in plain, and one row of one table holds them at all."""
    proxy = proxy_with_password(postgres)
    ProxyManager(postgres).acquire_proxy("pool")
    tables = run_sql(postgres.engine, "SELECT tablename FROM pg_tables WHERE schemaname = 'pharox'")
    dump = {
        str(name): str(run_sql(postgres.engine, f'SELECT t::text FROM pharox."{name}" t'))
        for (name,) in tables
    }
    assert len(dump) > 8
    for text in dump.values():
        assert "s3cret" not in text
        assert PASSWORD.encode().hex() not in text
    assert run_sql(postgres.engine, "SELECT count(*) FROM pharox.proxy_credentials") == [(1,)]
    postgres.delete_proxy(str(proxy.id))
    assert run_sql(postgres.engine, "SELECT count(*) FROM pharox.proxy_credentials") == [(0,)]


def test_neither_repr_nor_events_nor_logs_show_them(
    any_storage: AnyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that is printed, dumped or logged has the password or the user."""
    caplog.set_level(logging.DEBUG)
    proxy = proxy_with_password(any_storage)
    manager = ProxyManager(any_storage)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    manager.release_proxy(lease)
    manager.release_proxy(lease)
    shown = [repr(proxy), str(proxy), repr(any_storage), repr(lease), caplog.text]
    shown += [event.model_dump_json() for event in any_storage.events()]
    assert "s3cret" not in "".join(shown)
    assert PASSWORD not in proxy.model_dump_json()


def test_no_error_shows_them() -> None:
    """A refused proxy is refused without its password."""
    with pytest.raises(ValidationError) as refused:
        ProxyCredentials(user="  ", password=PASSWORD)
    assert "s3cret" not in str(refused.value)


def test_without_a_key_nothing_is_written(database_url: str) -> None:
    """A proxy with a password and no key is a clear error, and nothing is half-written."""
    storage = PostgresStorage(open_engine(database_url))
    with pytest.raises(SecretKeyError, match="PHAROX_SECRET_KEY"):
        proxy_with_password(storage)
    assert types_of(storage) == ["PoolRegistered"]
    storage.close()


def test_keys_rotate(database_url: str) -> None:
    """With a new key first and the old one behind it, old secrets can be read; without, not."""
    engine, new = open_engine(database_url), Fernet.generate_key().decode()
    proxy = proxy_with_password(PostgresStorage(engine, secret_keys=[SECRET_KEY]))
    both = PostgresStorage(engine, secret_keys=[new, SECRET_KEY])
    only_new = PostgresStorage(engine, secret_keys=[new])
    assert both.get_proxy(str(proxy.id)) == proxy
    with pytest.raises(SecretKeyError, match="none of the keys"):
        only_new.get_proxy(str(proxy.id))
    assert both.rotate_secrets() == 1
    assert only_new.get_proxy(str(proxy.id)) == proxy
    engine.dispose()


def test_the_environment_names_the_keys(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PHAROX_SECRET_KEY may hold several keys; the error for an invalid one hides it."""
    engine = open_engine(database_url)
    new = Fernet.generate_key().decode()
    proxy = proxy_with_password(PostgresStorage(engine, secret_keys=[SECRET_KEY]))
    monkeypatch.setenv("PHAROX_SECRET_KEY", f"{new}, {SECRET_KEY}")
    assert PostgresStorage(engine).get_proxy(str(proxy.id)) == proxy
    monkeypatch.setenv("PHAROX_SECRET_KEY", "not-a-key")
    with pytest.raises(SecretKeyError) as refused:
        PostgresStorage(engine)
    assert "not-a-key" not in str(refused.value)
    engine.dispose()


def test_a_file_holds_the_keys(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PHAROX_SECRET_KEY_FILE counts if there is no key in the environment, and must be readable."""
    engine = open_engine(database_url)
    proxy = proxy_with_password(PostgresStorage(engine, secret_keys=[SECRET_KEY]))
    file = tmp_path / "secret-key"
    file.write_text(f"{Fernet.generate_key().decode()}\n{SECRET_KEY}\n")
    monkeypatch.setenv("PHAROX_SECRET_KEY_FILE", str(file))
    assert PostgresStorage(engine).get_proxy(str(proxy.id)) == proxy
    monkeypatch.setenv("PHAROX_SECRET_KEY", Fernet.generate_key().decode())
    with pytest.raises(SecretKeyError, match="none of the keys"):
        PostgresStorage(engine).get_proxy(str(proxy.id))
    monkeypatch.delenv("PHAROX_SECRET_KEY")
    file.write_bytes(b"\xff hidden")
    with pytest.raises(SecretKeyError, match="it is not a text") as refused:
        PostgresStorage(engine)
    assert "hidden" not in repr(refused.value)
    file.unlink()
    with pytest.raises(SecretKeyError, match="No such file"):
        PostgresStorage(engine)
    engine.dispose()


def test_leasing_needs_no_key(database_url: str) -> None:
    """Leasing and releasing a proxy with a password work without the key."""
    engine = open_engine(database_url)
    proxy_with_password(PostgresStorage(engine, secret_keys=[SECRET_KEY]))
    manager = ProxyManager(PostgresStorage(engine))
    with manager.with_lease("pool", filters=ProxyFilters(none_of=[])) as lease:
        assert lease is not None
    engine.dispose()


class TestBinding:
    """Credentials belong to one proxy, whatever somebody does to the table."""

    @pytest.fixture
    def two(self, postgres: PostgresStorage) -> list[Proxy]:
        """Two proxies with passwords, and one without."""
        pool, (bare,) = fill(postgres, 1)
        proxies = [
            Proxy(
                host=host,
                port=80,
                protocol=ProxyProtocol.HTTP,
                pool_id=pool.id,
                status="active",
                credentials=ProxyCredentials(user=USER, password=f"{PASSWORD} of {host}"),
            )
            for host in ("one.example", "two.example")
        ]
        postgres.add_proxies_bulk(proxies)
        return [*proxies, bare]

    EXCHANGE = """
        UPDATE pharox.proxy_credentials AS mine SET secret = other.secret
        FROM pharox.proxy_credentials AS other WHERE mine.id <> other.id
    """

    def test_exchanged_secrets_are_not_read(
        self, postgres: PostgresStorage, two: list[Proxy]
    ) -> None:
        """A secret that was moved to another proxy is an error that names the proxy."""
        run_sql(postgres.engine, self.EXCHANGE)
        for proxy in two[:2]:
            with pytest.raises(SecretKeyError, match=str(proxy.id)) as refused:
                postgres.get_proxy(str(proxy.id))
            assert refused.value.data["proxy_id"] == proxy.id
        found = [f for f in postgres.verify() if f.check == "credentials"]
        assert {f.key["proxy_id"] for f in found} == {str(proxy.id) for proxy in two[:2]}
        assert all(f.found is not None and f.found["readable"] is False for f in found)

    def test_an_exchanged_proxy_is_none(self, postgres: PostgresStorage, two: list[Proxy]) -> None:
        """Rows that change places altogether are missing where they were, and nothing is read."""
        run_sql(
            postgres.engine,
            """
            UPDATE pharox.proxy_credentials AS mine SET proxy_id = other.proxy_id
            FROM pharox.proxy_credentials AS other WHERE mine.id <> other.id
            """,
        )
        for proxy in two[:2]:
            with pytest.raises(SecretKeyError, match=str(proxy.id)):
                postgres.get_proxy(str(proxy.id))
        assert len([f for f in postgres.verify() if f.check == "credentials"]) == 4

    def test_a_missing_row_names_its_proxy(
        self, postgres: PostgresStorage, two: list[Proxy]
    ) -> None:
        """The list of the pool says which; verify names it; saving it again mends it."""
        gone = two[0]
        run_sql(
            postgres.engine,
            f"DELETE FROM pharox.proxy_credentials WHERE proxy_id = '{gone.id}'",
        )
        with pytest.raises(SecretKeyError, match=f"proxy {gone.id}: .*missing"):
            postgres.list_proxies(str(gone.pool_id))
        (finding,) = postgres.verify()
        assert (finding.check, finding.key["proxy_id"], finding.found) == (
            "credentials",
            str(gone.id),
            None,
        )
        postgres.save_proxy(gone)
        assert postgres.get_proxy(str(gone.id)) == gone
        assert postgres.verify() == []

    def test_others_are_leased_and_checked(
        self, postgres: PostgresStorage, two: list[Proxy], caplog: pytest.LogCaptureFixture
    ) -> None:
        """What looks through the pool passes a damaged one by, and says so in the log."""
        gone = two[0]
        run_sql(
            postgres.engine,
            f"DELETE FROM pharox.proxy_credentials WHERE proxy_id = '{gone.id}'",
        )
        due = {proxy.id for proxy in postgres.load_proxies_for_healthchecks()}
        assert due == {proxy.id for proxy in two[1:]}
        manager = ProxyManager(postgres)
        filters = ProxyFilters(predicate=lambda proxy: proxy.credentials is not None)
        lease = manager.acquire_proxy("pool", filters=filters)
        assert lease is not None
        assert lease.proxy_id == two[1].id
        assert "pharox.credentials.unreadable" in caplog.text
        assert str(gone.id) in caplog.text

    def test_an_orphan_is_named(self, postgres: PostgresStorage, two: list[Proxy]) -> None:
        """Credentials that no proxy refers to are found."""
        run_sql(
            postgres.engine,
            "INSERT INTO pharox.proxy_credentials "
            "SELECT gen_random_uuid(), pool_id, proxy_id, secret, account, identity "
            f"FROM pharox.proxy_credentials WHERE proxy_id = '{two[0].id}'",
        )
        (finding,) = postgres.verify()
        assert (finding.check, finding.expected) == ("credentials", None)

    def test_an_earlier_secret_does_not_come_back(
        self, postgres: PostgresStorage, two: list[Proxy]
    ) -> None:
        """A secret is bound to its row too: one that was replaced fits no later row."""
        query = "SELECT secret FROM pharox.proxy_credentials WHERE proxy_id = '{}'"
        ((old,),) = run_sql(postgres.engine, query.format(two[0].id))
        changed = ProxyCredentials(user=USER, password="another")
        postgres.save_proxy(two[0].model_copy(update={"credentials": changed}))
        run_sql(
            postgres.engine,
            f"UPDATE pharox.proxy_credentials SET secret = '\\x{bytes(old).hex()}' "  # type: ignore[call-overload]
            f"WHERE proxy_id = '{two[0].id}'",
        )
        with pytest.raises(SecretKeyError):
            postgres.get_proxy(str(two[0].id))

    def test_a_changed_address_takes_them_along(
        self, postgres: PostgresStorage, two: list[Proxy]
    ) -> None:
        """A proxy that moves keeps its credentials, and a list with its new address knows it."""
        moved = two[0].model_copy(update={"host": "three.example"})
        postgres.save_proxy(moved)
        assert postgres.get_proxy(str(moved.id)) == moved
        assert postgres.import_list(moved.pool_id, [[moved], [two[0]]]).known == 1
        count = "SELECT count(*) FROM pharox.proxy_credentials"
        assert run_sql(postgres.engine, count) == [(3,)]


class TestFingerprints:
    """What is stored to recognise credentials tells nobody else anything."""

    def test_a_guess_needs_the_key(self) -> None:
        """Under another key the same credentials look different, also in an id."""
        pool_id = uuid4()
        proxy = Proxy(
            host="gw.example",
            port=80,
            protocol=ProxyProtocol.HTTP,
            pool_id=pool_id,
            credentials=ProxyCredentials(user=USER, password=PASSWORD),
        )
        one, other = (Vault([key]) for key in (SECRET_KEY, Fernet.generate_key().decode()))
        assert one.fingerprints(pool_id, proxy) == one.fingerprints(pool_id, proxy)
        pairs = zip(
            one.fingerprints(pool_id, proxy), other.fingerprints(pool_id, proxy), strict=True
        )
        assert all(mine != theirs for mine, theirs in pairs)
        assert one.fingerprints(pool_id, proxy) != one.fingerprints(uuid4(), proxy)

    def test_ids_of_imported_proxies_are_keyed(self, database_url: str) -> None:
        """The same list gets other ids under another key, so an id confirms no guess."""
        engine = open_engine(database_url)
        ids = []
        for name, key in (("a", SECRET_KEY), ("b", Fernet.generate_key().decode())):
            storage = PostgresStorage(engine, secret_keys=[key])
            pool, _ = fill(storage, 0, name=name)
            line = Proxy(
                host="gw.example",
                port=80,
                protocol=ProxyProtocol.HTTP,
                pool_id=pool.id,
                credentials=ProxyCredentials(user=USER, password=PASSWORD),
            )
            storage.import_proxies(pool.id, [line])
            again = storage._commands._named(pool.id, line)[0]
            elsewhere = PostgresStorage(engine, secret_keys=[Fernet.generate_key().decode()])
            ids.append((again.id, elsewhere._commands._named(pool.id, line)[0].id))
            assert storage.get_proxy_by_id(again.id) is not None
        assert all(mine != theirs for mine, theirs in ids)
        engine.dispose()

    def test_a_wrong_key_imports_nothing(self, database_url: str) -> None:
        """Under another key all would seem to be new, and be registered once more."""
        engine = open_engine(database_url)
        proxy = proxy_with_password(PostgresStorage(engine, secret_keys=[SECRET_KEY]))
        wrong = PostgresStorage(engine, secret_keys=[Fernet.generate_key().decode()])
        with pytest.raises(SecretKeyError, match="none of the keys"):
            wrong.import_list(proxy.pool_id, [[proxy]])
        assert len(list(wrong.iter_proxies(proxy.pool_id, with_credentials=False))) == 1
        engine.dispose()

    def test_a_rotation_passes_damaged_ones_by(self, postgres: PostgresStorage) -> None:
        """The others are encrypted with the new key; the error names what could not be read."""
        new = Fernet.generate_key().decode()
        credentials = ProxyCredentials(user=USER, password=PASSWORD)
        _, proxies = fill(postgres, 3, credentials=credentials)
        damaged = min(proxies, key=lambda proxy: proxy.id)
        run_sql(
            postgres.engine,
            f"UPDATE pharox.proxy_credentials SET secret = '' WHERE proxy_id = '{damaged.id}'",
        )
        both = PostgresStorage(postgres.engine, secret_keys=[new, SECRET_KEY])
        with pytest.raises(SecretKeyError, match=str(damaged.id)):
            both.rotate_secrets()
        only_new = PostgresStorage(postgres.engine, secret_keys=[new])
        for proxy in proxies:
            if proxy != damaged:
                assert only_new.get_proxy(str(proxy.id)).credentials == credentials

    def test_known_stays_known_through_a_rotation(self, database_url: str) -> None:
        """Before, between and after a rotation of keys the same list has nothing new."""
        engine, new = open_engine(database_url), Fernet.generate_key().decode()
        old_only = PostgresStorage(engine, secret_keys=[SECRET_KEY])
        proxy = proxy_with_password(old_only)
        both = PostgresStorage(engine, secret_keys=[new, SECRET_KEY])
        new_only = PostgresStorage(engine, secret_keys=[new])
        assert both.import_list(proxy.pool_id, [[proxy]]).known == 1
        assert both.rotate_secrets() == 1
        for storage in (both, new_only):
            assert storage.import_list(proxy.pool_id, [[proxy]]).known == 1
            assert storage.verify() == []
        engine.dispose()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(
    str.strip
)


@given(user=TEXT, password=TEXT)
def test_httpx_sends_exactly_what_was_given(user: str, password: str) -> None:
    """The URL quotes user and password so that httpx decodes them to the same text."""
    proxy = Proxy(
        host="2001:db8::1",
        port=1080,
        protocol=ProxyProtocol.HTTP,
        pool_id=uuid4(),
        credentials=ProxyCredentials(user=user, password=password),
    )
    assert httpx.Proxy(proxy.url).raw_auth == (user.encode(), password.encode())


@given(user=TEXT, password=TEXT)
def test_a_vault_opens_what_it_sealed(user: str, password: str) -> None:
    """Sealing and opening give the same credentials back."""
    vault = Vault([SECRET_KEY])
    credentials = ProxyCredentials(user=user, password=password)
    place = Place(uuid4(), uuid4(), uuid4())
    assert vault.open(vault.seal(credentials, place), place) == credentials


def test_memory_keeps_no_secret_in_its_log() -> None:
    """The in-memory log refers to credentials and does not hold them."""
    storage = InMemoryStorage()
    proxy_with_password(storage)
    (_, registered) = storage.events()
    assert registered.model_dump()["credential_id"] is not None
    assert "s3cret" not in repr(registered)
