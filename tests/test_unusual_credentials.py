"""Unusual credentials, such as a user alone: kept as they are, and sent as proxies expect it."""

from __future__ import annotations

import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import httpx
import pytest

from pharox import (
    HealthCheckOptions,
    InMemoryStorage,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
)
from pharox.health import HTTPHealthCheckStrategy
from pharox.models import ProxyCredentials
from tests.conftest import AnyStorage

KEY = ProxyCredentials(user="0123456789abcdef", password="")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BASIC = b"Basic " + b64encode(b"0123456789abcdef:")
IDENT = b"0123456789abcdef"


@contextmanager
def recording_proxy(protocol: ProxyProtocol) -> Iterator[tuple[int, list[bytes]]]:
    """Serve as a proxy that answers everything itself; yields its port and what it was sent."""
    sent: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            if protocol is ProxyProtocol.SOCKS4:
                sent.append(connection.recv(4096))
                connection.sendall(b"\x00\x5a" + bytes(6))
            elif protocol is ProxyProtocol.SOCKS5:
                sent.append(connection.recv(4096))
                connection.sendall(b"\x05\x02")
                sent.append(connection.recv(4096))
                connection.sendall(b"\x01\x00")
                sent.append(connection.recv(4096))
                connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
            sent.append(connection.recv(65536))
            connection.sendall(ANSWER)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            try:
                serve(listener.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1], sent
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def is_sent(protocol: ProxyProtocol, sent: list[bytes]) -> bool:
    """Return whether the key was sent in the form of this protocol."""
    if protocol is ProxyProtocol.SOCKS4:
        return sent[0][8:].startswith(IDENT + b"\x00")
    if protocol is ProxyProtocol.SOCKS5:
        return sent[1] == b"\x01" + bytes([len(IDENT)]) + IDENT + b"\x00"
    return b"Proxy-Authorization: " + BASIC in sent[0]


PLAIN = (ProxyProtocol.HTTP, ProxyProtocol.SOCKS4, ProxyProtocol.SOCKS5)


def with_key(port: int, protocol: ProxyProtocol, pool: ProxyPool) -> Proxy:
    return Proxy(
        host="127.0.0.1",
        port=port,
        protocol=protocol,
        pool_id=pool.id,
        status=ProxyStatus.ACTIVE,
        credentials=KEY,
    )


@pytest.mark.parametrize("protocol", PLAIN)
def test_a_client_sends_the_user_alone(any_storage: AnyStorage, protocol: ProxyProtocol) -> None:
    """Basic has ``KEY:``, SOCKS4 the user's id, SOCKS5 a password of no bytes."""
    pool = ProxyPool(name="pool")
    any_storage.save_pool(pool)
    with recording_proxy(protocol) as (port, sent):
        any_storage.save_proxy(with_key(port, protocol, pool))
        with ProxyManager(any_storage).client("pool") as client:
            assert client.get("http://target.example/").text == "ok"
    assert is_sent(protocol, sent)


@pytest.mark.parametrize("protocol", PLAIN)
def test_a_check_sends_the_user_alone(protocol: ProxyProtocol) -> None:
    """A health check logs in as a client does."""
    with recording_proxy(protocol) as (port, sent):
        options = HealthCheckOptions(target_url="http://target.example/")
        proxy = with_key(port, protocol, ProxyPool(name="pool"))
        result = anyio.run(HTTPHealthCheckStrategy().check, proxy, options)
    assert result.healthy
    assert is_sent(protocol, sent)


ODD = ProxyCredentials(user="jürgen", password="pä ss€" + "x" * 240)


@pytest.mark.parametrize("protocol", [ProxyProtocol.SOCKS4, ProxyProtocol.SOCKS5])
@pytest.mark.parametrize("way", ["client", "check"])
def test_credentials_are_sent_in_utf8(way: str, protocol: ProxyProtocol) -> None:
    """Letters beyond ASCII, and as many bytes as a SOCKS5 handshake carries, reach the proxy."""
    pool = ProxyPool(name="pool")
    with recording_proxy(protocol) as (port, sent):
        proxy = with_key(port, protocol, pool).model_copy(update={"credentials": ODD})
        if way == "client":
            storage = InMemoryStorage()
            storage.save_pool(pool)
            storage.save_proxy(proxy)
            with ProxyManager(storage).client("pool") as client:
                assert client.get("http://target.example/").text == "ok"
        else:
            options = HealthCheckOptions(target_url="http://target.example/")
            assert anyio.run(HTTPHealthCheckStrategy().check, proxy, options).healthy
    user, password = ODD.user.encode(), ODD.password.get_secret_value().encode()
    assert len(password) > 245
    if protocol is ProxyProtocol.SOCKS4:
        assert sent[0][8:].startswith(user + b"\x00")
    else:
        lengths = (bytes([len(part)]) for part in (user, password))
        assert sent[1] == b"\x01" + b"".join(
            length + part for length, part in zip(lengths, (user, password), strict=True)
        )


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b"])
def test_a_target_that_is_no_name_is_an_error_of_httpx(host: str) -> None:
    """No bare UnicodeError comes out of a client, whatever it is asked for."""
    pool = ProxyPool(name="pool")
    storage = InMemoryStorage()
    storage.save_pool(pool)
    storage.save_proxy(with_key(9, ProxyProtocol.SOCKS5, pool))
    with ProxyManager(storage).client("pool") as client, pytest.raises(httpx.ConnectError):
        client.get(f"http://{host}/")


def test_it_is_kept(any_storage: AnyStorage) -> None:
    """Every storage gives back the user with an empty password, and a URL that says so."""
    pool = ProxyPool(name="pool")
    any_storage.save_pool(pool)
    proxy = with_key(80, ProxyProtocol.HTTP, pool)
    any_storage.save_proxy(proxy)
    (kept,) = any_storage.list_proxies(str(pool.id))
    assert kept.credentials == ProxyCredentials(user=KEY.user)
    assert kept.url == "http://0123456789abcdef:@127.0.0.1:80"
    assert httpx.URL(kept.url).password == ""


def test_a_password_needs_a_user() -> None:
    """A user cannot be empty, whatever the password is."""
    with pytest.raises(ValueError, match="cannot be empty"):
        ProxyCredentials(user="", password="s3cret")
