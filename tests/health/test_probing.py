"""A check tells a good proxy from a bad one, and in which way it is bad."""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from typing import Any

import pytest

from pharox.health import HealthChecker
from pharox.models import (
    CheckFailure,
    HealthCheckOptions,
    HealthCheckResult,
    Proxy,
    ProxyCredentials,
    ProxyStatus,
)
from tests.health.zoo import (
    HOST,
    HOSTILE,
    ONLY_THE_PROXY_KNOWS,
    PASSWORD,
    POOL_ID,
    REAL,
    USER,
    Zoo,
)

PLAIN, TLS = "plain", "tls"
PATIENT_S, IMPATIENT_S = 10.0, 0.4


def check(zoo: Zoo, proxy: Proxy, target: str, **options: Any) -> HealthCheckResult:
    """Check a proxy once, with a checker that trusts the zoo."""
    checker = HealthChecker(ssl_context=zoo.ssl_context())
    chosen = HealthCheckOptions.model_validate(
        {"target_url": target, "timeout": PATIENT_S, **options}
    )
    return asyncio.run(checker.check_proxy(proxy, chosen))


@pytest.mark.parametrize("target", [PLAIN, TLS])
@pytest.mark.parametrize(("name", "protocol", "user"), REAL)
def test_a_working_proxy_is_active(
    zoo: Zoo, name: str, protocol: str, user: str, target: str
) -> None:
    """Whatever it speaks, with and without a password, and whatever the target speaks."""
    url = zoo.target("/ok") if target == PLAIN else zoo.tls_target("/ok")
    proxy = zoo.proxy(name, protocol, user)
    result = check(zoo, proxy, url)
    assert result.status == ProxyStatus.ACTIVE, result
    assert (result.proxy_id, result.protocol) == (proxy.id, proxy.protocol)
    assert (result.status_code, result.attempts) == (200, 1)
    assert (result.failure, result.error_message) == (None, None)


@pytest.mark.parametrize("target", [PLAIN, TLS])
@pytest.mark.parametrize(
    ("name", "protocol", "password"),
    [
        ("pproxy-http-password", "http", None),
        ("pproxy-http-password", "http", "wrong"),
        ("proxy.py-password", "http", None),
        ("proxy.py-password", "http", "wrong"),
        ("socks5-no-method", "socks5", None),
        ("socks5-refuses-password", "socks5", "wrong"),
        ("socks4-refuses-user", "socks4", "wrong"),
        ("http-407", "http", "open sesame"),
    ],
)
def test_wrong_credentials_are_told(
    zoo: Zoo, name: str, protocol: str, password: str | None, target: str
) -> None:
    """As themselves, with 407 where the proxy said so, and never with the password."""
    url = zoo.target("/ok") if target == PLAIN else zoo.tls_target("/ok")
    proxy = zoo.proxy(name, protocol, USER if password else "", password or "")
    result = check(zoo, proxy, url)
    assert result.failure == CheckFailure.PROXY_AUTHENTICATION, result
    assert result.status == ProxyStatus.INACTIVE
    assert result.status_code == (407 if protocol == "http" else None)


def test_a_407_may_be_expected(zoo: Zoo) -> None:
    proxy = zoo.proxy("http-407", "http")
    result = check(zoo, proxy, zoo.target("/ok"), expected_status_codes=[407])
    assert (result.status, result.status_code) == (ProxyStatus.ACTIVE, 407)


FAILING = [
    # the proxy, its protocol, the target, what is to be told, the status code
    ("closes", "http", PLAIN, CheckFailure.DISCONNECTED, None),
    ("closes", "http", TLS, CheckFailure.DISCONNECTED, None),
    ("closes", "https", PLAIN, CheckFailure.DISCONNECTED, None),
    ("closes", "socks4", PLAIN, CheckFailure.DISCONNECTED, None),
    ("closes", "socks5", TLS, CheckFailure.DISCONNECTED, None),
    ("resets", "http", PLAIN, CheckFailure.DISCONNECTED, None),
    ("resets", "https", PLAIN, CheckFailure.DISCONNECTED, None),
    ("resets", "socks4", PLAIN, CheckFailure.DISCONNECTED, None),
    ("resets", "socks5", PLAIN, CheckFailure.DISCONNECTED, None),
    ("http-closes", "http", PLAIN, CheckFailure.DISCONNECTED, None),
    ("http-closes", "http", TLS, CheckFailure.DISCONNECTED, None),
    ("http-closes-in-headers", "http", PLAIN, CheckFailure.DISCONNECTED, None),
    ("http-closes-in-headers", "http", TLS, CheckFailure.DISCONNECTED, None),
    ("http-resets", "http", PLAIN, CheckFailure.DISCONNECTED, None),
    ("http-resets-in-body", "http", PLAIN, CheckFailure.DISCONNECTED, 200),
    ("http-garbage", "http", PLAIN, CheckFailure.PROTOCOL, None),
    ("http-garbage", "http", TLS, CheckFailure.PROTOCOL, None),
    ("http-bad-header", "http", PLAIN, CheckFailure.PROTOCOL, None),
    ("http-giant-header", "http", PLAIN, CheckFailure.PROTOCOL, None),
    ("http-bad-chunk", "http", PLAIN, CheckFailure.PROTOCOL, 200),
    ("http-switches", "http", PLAIN, CheckFailure.PROTOCOL, None),
    ("http-switches", "http", TLS, CheckFailure.PROTOCOL, None),
    ("http-503", "http", PLAIN, CheckFailure.UNEXPECTED_STATUS, 503),
    ("http-503", "http", TLS, CheckFailure.HANDSHAKE, 503),
    ("http-odd-redirect", "http", PLAIN, CheckFailure.REDIRECTS, 302),
    ("http-bad-redirect", "http", PLAIN, CheckFailure.REDIRECTS, 302),
    ("http-bad-name", "http", PLAIN, CheckFailure.REDIRECTS, 302),
    ("speaks-http", "https", PLAIN, CheckFailure.TLS, None),
    ("speaks-http", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    ("tunnel-closes", "http", TLS, CheckFailure.DISCONNECTED, None),
    ("tunnel-closes-in-tls", "http", TLS, CheckFailure.DISCONNECTED, None),
    ("tunnel-garbage", "http", TLS, CheckFailure.TLS, None),
    ("untrusted-https-proxy", "https", PLAIN, CheckFailure.TLS, None),
    ("untrusted-https-proxy", "https", TLS, CheckFailure.TLS, None),
    ("socks5-closes-after-greeting", "socks5", PLAIN, CheckFailure.DISCONNECTED, None),
    ("socks5-closes-in-method", "socks5", PLAIN, CheckFailure.DISCONNECTED, None),
    ("socks5-closes-in-reply", "socks5", PLAIN, CheckFailure.DISCONNECTED, None),
    ("socks5-closes-in-tunnel", "socks5", PLAIN, CheckFailure.DISCONNECTED, None),
    ("socks5-closes-in-tunnel", "socks5", TLS, CheckFailure.DISCONNECTED, None),
    ("socks5-resets", "socks5", PLAIN, CheckFailure.DISCONNECTED, None),
    ("socks5-wrong-version", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks5-wrong-method", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks5-unknown-method", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks5-wrong-reply-version", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks5-wrong-reserved", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks5-wrong-address-type", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks5-garbled-name", "socks5", PLAIN, CheckFailure.HANDSHAKE, None),
    *(
        (f"socks5-error-{code}", "socks5", PLAIN, CheckFailure.HANDSHAKE, None)
        for code in (*range(1, 9), 0x99)
    ),
    ("socks4-closes-after-request", "socks4", PLAIN, CheckFailure.DISCONNECTED, None),
    ("socks4-closes-in-reply", "socks4", PLAIN, CheckFailure.DISCONNECTED, None),
    ("socks4-wrong-version", "socks4", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks4-unknown-code", "socks4", PLAIN, CheckFailure.HANDSHAKE, None),
    ("socks4-refuses", "socks4", PLAIN, CheckFailure.HANDSHAKE, None),
]


@pytest.mark.parametrize(("name", "protocol", "target", "failure", "status_code"), FAILING)
def test_a_failing_proxy_is_told_apart(
    zoo: Zoo, name: str, protocol: str, target: str, failure: CheckFailure, status_code: int | None
) -> None:
    """At once, with a reason, and the answer's status where there was one."""
    url = zoo.target("/ok") if target == PLAIN else zoo.tls_target("/ok")
    result = check(zoo, zoo.proxy(name, protocol), url)
    assert (result.failure, result.status_code) == (failure, status_code), result
    assert result.status == ProxyStatus.INACTIVE
    assert result.error_message
    assert len(result.error_message) <= 200
    assert result.error_message.isprintable()
    assert result.latency_ms < PATIENT_S * 1000


STALLING = [
    ("http-silent-in-headers", "http", PLAIN, None),
    ("silent", "http", PLAIN, None),
    ("silent", "https", PLAIN, None),
    ("silent", "https", TLS, None),
    ("silent", "socks4", PLAIN, None),
    ("silent", "socks5", PLAIN, None),
    ("http-silent", "http", PLAIN, None),
    ("http-silent", "http", TLS, None),
    ("http-silent-in-status", "http", PLAIN, None),
    ("http-silent-in-headers", "http", TLS, None),
    ("http-silent-in-body", "http", PLAIN, 200),
    ("http-drips", "http", PLAIN, None),
    ("http-drips", "http", TLS, None),
    ("http-continues-forever", "http", PLAIN, None),
    ("tunnel-silent", "http", TLS, None),
    ("tls-silent", "https", PLAIN, None),
    ("tls-drips", "https", TLS, None),
    ("socks5-silent-after-greeting", "socks5", PLAIN, None),
    ("socks5-silent-in-method", "socks5", PLAIN, None),
    ("socks5-silent-after-method", "socks5", PLAIN, None),
    ("socks5-silent-after-password", "socks5", PLAIN, None),
    ("socks5-silent-in-reply", "socks5", TLS, None),
    ("socks5-silent-in-tunnel", "socks5", PLAIN, None),
    ("socks5-silent-in-tunnel", "socks5", TLS, None),
    ("socks5-drips", "socks5", PLAIN, None),
    ("socks4-silent-after-request", "socks4", PLAIN, None),
    ("socks4-silent-in-reply", "socks4", PLAIN, None),
    ("socks4-silent-in-tunnel", "socks4", TLS, None),
    ("socks4-drips", "socks4", PLAIN, None),
]


@pytest.mark.parametrize(("name", "protocol", "target", "status_code"), STALLING)
def test_a_proxy_that_stalls_is_given_up_in_time(
    zoo: Zoo, name: str, protocol: str, target: str, status_code: int | None
) -> None:
    """At whatever stage it falls silent, or goes on byte by byte."""
    url = zoo.target("/ok") if target == PLAIN else zoo.tls_target("/ok")
    user = USER if "password" in name else ""
    result = check(zoo, zoo.proxy(name, protocol, user), url, timeout=IMPATIENT_S)
    assert (result.failure, result.status_code) == (CheckFailure.TIMEOUT, status_code), result
    assert IMPATIENT_S * 1000 <= result.latency_ms < PATIENT_S * 1000


def test_a_closed_port_refuses(zoo: Zoo) -> None:
    """And that takes no time."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        for protocol in ("http", "https", "socks4", "socks5"):
            proxy = Proxy.model_validate(
                {
                    "host": HOST,
                    "port": bound.getsockname()[1],
                    "protocol": protocol,
                    "pool_id": POOL_ID,
                }
            )
            result = check(zoo, proxy, zoo.target("/ok"))
            assert result.failure == CheckFailure.REFUSED, result
            assert result.latency_ms < PATIENT_S * 1000


@pytest.mark.parametrize("protocol", ["http", "https", "socks4", "socks5"])
def test_no_way_to_a_proxy(zoo: Zoo, protocol: str) -> None:
    """An address that no connection can be made to: the kernel says so and sends nothing."""
    proxy = zoo.proxy("silent", protocol, host="255.255.255.255")
    result = check(zoo, proxy, zoo.target("/ok"))
    assert result.failure == CheckFailure.UNREACHABLE, result


@pytest.mark.parametrize(("host", "protocol"), [("x" * 64, "http"), ("a..b", "socks5")])
def test_an_impossible_name_is_a_result(zoo: Zoo, host: str, protocol: str) -> None:
    """It is refused now, but ledgers have such names from before."""
    proxy = zoo.proxy("silent", protocol).model_copy(update={"host": host})
    result = check(zoo, proxy, zoo.target("/ok"))
    assert result.status == ProxyStatus.INACTIVE
    assert result.failure in (CheckFailure.OTHER, CheckFailure.UNREACHABLE)


@pytest.mark.parametrize(("name", "protocol", "user"), REAL)
def test_a_target_with_an_unknown_authority(zoo: Zoo, name: str, protocol: str, user: str) -> None:
    """A proxy that puts itself in between looks like this."""
    proxy = zoo.proxy(name, protocol, user)
    result = check(zoo, proxy, zoo.tls_target("/ok", "untrusted-site"))
    assert result.failure == CheckFailure.TLS, result
    assert "certificate" in str(result.error_message)


@pytest.mark.parametrize(("protocol", "user"), [("socks4", USER), ("socks5", "")])
def test_names_are_resolved_by_the_proxy(zoo: Zoo, protocol: str, user: str) -> None:
    """Nobody else knows this one; SOCKS4 sends the user beside it."""
    proxy = zoo.proxy("resolving-socks", protocol, user)
    result = check(zoo, proxy, f"http://{ONLY_THE_PROXY_KNOWS}/")
    assert result.status == ProxyStatus.ACTIVE, result


@pytest.mark.parametrize(
    ("path", "options", "status", "failure", "status_code"),
    [
        ("/status/404", {}, "inactive", "unexpected_status", 404),
        ("/status/404", {"expected_status_codes": [404, 200]}, "active", None, 404),
        ("/status/200", {"expected_status_codes": [204]}, "inactive", "unexpected_status", 200),
        ("/slow", {"slow_threshold_ms": 100}, "slow", None, 200),
        ("/redirect-once", {}, "active", None, 200),
        ("/redirect-once", {"allow_redirects": False}, "inactive", "unexpected_status", 301),
        ("/redirect-once", {"expected_status_codes": [301]}, "active", None, 301),
        ("/redirect-loop", {}, "inactive", "redirects", 302),
        ("/endless", {}, "active", None, 200),
        ("/endless", {"max_body_bytes": 0}, "active", None, 200),
        ("/endless", {"max_body_bytes": 300_000}, "active", None, 200),
        ("/drip", {"timeout": IMPATIENT_S}, "inactive", "timeout", 200),
        ("/drip", {"max_body_bytes": 2}, "active", None, 200),
        ("/close-midway", {}, "inactive", "disconnected", 200),
        ("/close-midway", {"max_body_bytes": 2}, "active", None, 200),
        ("/gzip-bomb", {}, "active", None, 200),
        ("/agent", {}, "active", None, 200),
        ("/agent", {"headers": {"USER-AGENT": "me"}}, "inactive", "unexpected_status", 299),
        ("/known", {"headers": {"authorization": "me"}}, "active", None, 200),
        ("/known", {}, "inactive", "unexpected_status", 401),
        ("/redirect-here", {"headers": {"Authorization": "me"}}, "active", None, 200),
        (
            "/redirect-elsewhere",
            {"headers": {"Authorization": "me", "cookie": "it"}},
            "active",
            None,
            200,
        ),
    ],
)
def test_what_the_answer_says(
    zoo: Zoo,
    path: str,
    options: dict[str, Any],
    status: str,
    failure: str | None,
    status_code: int,
) -> None:
    """Status, redirects and body decide; credentials stay with the origin they are for."""
    result = check(zoo, zoo.proxy("pproxy-http", "http"), zoo.target(path), **options)
    assert (result.status, result.failure, result.status_code) == (status, failure, status_code)


def test_credentials_in_the_target_are_sent(zoo: Zoo) -> None:
    target = zoo.target("/known").replace("://", "://me:secret@")
    result = check(zoo, zoo.proxy("pproxy-http", "http"), target)
    assert result.status == ProxyStatus.ACTIVE, result


def test_redirects_share_a_connection(zoo: Zoo) -> None:
    """The proxy answers the second request of a connection only."""
    result = check(zoo, zoo.proxy("http-keeps", "http"), zoo.target("/ok"))
    assert (result.status, result.status_code) == (ProxyStatus.ACTIVE, 200), result


def test_every_check_has_a_connection_of_its_own(zoo: Zoo) -> None:
    """A proxy that is silent on the third request of a connection hangs no second check."""
    for _ in range(2):
        test_redirects_share_a_connection(zoo)


@pytest.mark.parametrize("name", ["http-503", "http-silent"])
def test_attempts_are_counted(zoo: Zoo, name: str) -> None:
    """Each has the whole timeout, and the latency is the last one's."""
    options = {"attempts": 3, "timeout": IMPATIENT_S}
    result = check(zoo, zoo.proxy(name, "http"), zoo.target("/ok"), **options)
    assert result.attempts == 3
    assert result.latency_ms < 2 * IMPATIENT_S * 1000


@pytest.mark.parametrize("target", [PLAIN, TLS])
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_no_message_shows_credentials_or_what_the_proxy_said(
    zoo: Zoo, name: str, target: str
) -> None:
    """Many of these say the password, in a reason phrase or elsewhere."""
    url = zoo.target("/ok") if target == PLAIN else zoo.tls_target("/ok")
    protocol = name.partition("-")[0] if name.startswith("socks") else "http"
    proxy = zoo.proxy(name, protocol, USER, "open sesame")
    headers = {"Authorization": "Bearer open sesame"}
    result = check(zoo, proxy, url, timeout=0.2, headers=headers)
    message = str(result.error_message)
    for secret in (USER, "sesame", b64encode(f"{USER}:open sesame".encode()).decode()):
        assert secret not in message


@pytest.mark.parametrize(
    ("protocol", "failure"),
    [("socks5", CheckFailure.TIMEOUT), ("socks4", CheckFailure.HANDSHAKE)],
)
def test_credentials_beyond_ascii_reach_the_proxy(
    zoo: Zoo, protocol: str, failure: CheckFailure
) -> None:
    """What comes of the check is what the proxy does then, and no message has them."""
    name = "socks5-silent-after-password" if protocol == "socks5" else "socks4-refuses"
    proxy = zoo.proxy(name, protocol, "älice", PASSWORD)
    result = check(zoo, proxy, zoo.target("/ok"), timeout=0.2)
    assert result.failure == failure, result
    assert "ä" not in str(result.error_message)


def test_credentials_that_cannot_be_sent_are_a_result(zoo: Zoo) -> None:
    """A password that no handshake carries is refused by the model; else it is a result."""
    proxy = zoo.proxy("socks5-silent-after-password", "socks5", USER, PASSWORD)
    long = ProxyCredentials(user=USER, password="x" * 300)
    unchecked = proxy.model_copy(update={"credentials": long})
    result = check(zoo, unchecked, zoo.target("/ok"))
    assert result.failure == CheckFailure.OTHER, result


def test_an_error_of_the_caller_is_no_reason(zoo: Zoo) -> None:
    """What the caller is handling at the moment is part of an exception's chain, too."""
    proxy = zoo.proxy("http-garbage", "http")
    try:
        raise ConnectionRefusedError(111, "unrelated")
    except ConnectionRefusedError:
        result = check(zoo, proxy, zoo.target("/ok"))
    assert result.failure == CheckFailure.PROTOCOL
