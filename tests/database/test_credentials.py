"""A proxy's secrets are in one table, encrypted, and nowhere else."""

from __future__ import annotations

import logging
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
    """PHAROX_SECRET_KEY may hold several keys; one that is none is told without showing it."""
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


def test_leasing_needs_no_key(database_url: str) -> None:
    """Leasing and releasing a proxy with a password work without the key."""
    engine = open_engine(database_url)
    proxy_with_password(PostgresStorage(engine, secret_keys=[SECRET_KEY]))
    manager = ProxyManager(PostgresStorage(engine))
    with manager.with_lease("pool", filters=ProxyFilters(none_of=[])) as lease:
        assert lease is not None
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
