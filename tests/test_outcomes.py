"""What responses and exceptions of HTTP libraries say, and what of them is not believed."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox import InvalidInputError, LeaseEndedError, Outcome, OutcomeKind, outcome_of_error
from pharox.models.outcome import MAX_NOTE_LENGTH, MAX_RETRY_AFTER_S

URL = "https://user:secret@Shop.Example:8443/page?key=secret"


def like(library: str, status: int, headers: dict[str, str]) -> Any:
    """Return a response as a library has it."""
    if library == "httpx":
        return httpx.Response(status, headers=headers, request=httpx.Request("GET", URL))
    name = "status" if library == "aiohttp" else "status_code"
    names = httpx.Headers(headers) if library != "plain" else headers
    return SimpleNamespace(**{name: status}, headers=names, url=httpx.URL(URL))


@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp", "plain"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (101, "ok"),
        (200, "ok"),
        (304, "ok"),
        (401, "ok"),
        (403, "blocked"),
        (404, "ok"),
        (407, "blocked"),
        (429, "blocked"),
        (499, "ok"),
        (500, "target_failed"),
        (503, "target_failed"),
        (599, "target_failed"),
    ],
)
def test_a_status_says_who_is_to_blame(library: str, status: int, kind: str) -> None:
    headers = {"Retry-After": "20", "Content-Length": "1234"}
    outcome = Outcome.from_response(like(library, status, headers))
    assert (outcome.kind, outcome.status) == (OutcomeKind(kind), status)
    assert (outcome.target, outcome.bytes) == ("shop.example", 1234)
    assert outcome.retry_after_seconds == (None if kind == "ok" else 20)
    assert "secret" not in repr(outcome)


def test_407_is_the_proxy_s_unless_it_came_through_tls() -> None:
    """A target must not make a proxy inactive."""
    assert Outcome.from_response(httpx.Response(407)).kind is OutcomeKind.PROXY_FAILED
    plain = httpx.Response(407, request=httpx.Request("GET", "http://shop.example/"))
    assert Outcome.from_response(plain).kind is OutcomeKind.PROXY_FAILED


def test_a_target_that_is_named_counts() -> None:
    """Else that of the URL, if there is one; else the lease's."""
    assert Outcome.from_response(like("httpx", 200, {}), target="a.example").target == "a.example"
    assert Outcome.from_response(httpx.Response(200)).target is None
    assert Outcome.from_response(SimpleNamespace(status=200, url="http://[")).target is None
    with pytest.raises(InvalidInputError):
        Outcome.from_response(httpx.Response(200), target="no host")


@pytest.mark.parametrize("response", [None, "200", object(), SimpleNamespace(status="200")])
def test_what_is_no_response_is_refused(response: Any) -> None:
    with pytest.raises(InvalidInputError, match="a response is needed"):
        Outcome.from_response(response)


def test_an_odd_status_is_noted() -> None:
    """Such as 999, which some sites send to whom they do not like."""
    outcome = Outcome.from_response(SimpleNamespace(status_code=999))
    assert (outcome.kind, outcome.status, outcome.note) == (OutcomeKind.UNCLEAR, None, "status 999")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("20", 20),
        (" 20.5 ", 20.5),
        ("99999999999", MAX_RETRY_AFTER_S),
        ("Wed, 21 Oct 2099 07:28:00 GMT", MAX_RETRY_AFTER_S),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2099 07:28:00 -0000", MAX_RETRY_AFTER_S),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        ("Wed, 99 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    """Seconds or a date, at most thirty days; nonsense is ignored."""
    response = SimpleNamespace(status_code=429, headers={"retry-after": text})
    assert Outcome.from_response(response).retry_after_seconds == seconds


def test_retry_after_counts_from_now() -> None:
    at = datetime.now(UTC) + timedelta(seconds=100)
    headers = {"Retry-After": format_datetime(at, usegmt=True)}
    seconds = Outcome.from_response(httpx.Response(503, headers=headers)).retry_after_seconds
    assert seconds is not None
    assert 90 < seconds <= 100


@given(
    status=st.integers(-1000, 2000),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Content-Length", "retry-after"]),
        st.one_of(st.text(), st.integers(), st.none(), st.binary(), st.from_regex(r"\d+")),
    ),
    url=st.one_of(st.none(), st.text(), st.integers()),
)
def test_whatever_a_server_sends_is_an_outcome(status: int, headers: Any, url: Any) -> None:
    """It comes from outside: nothing of it raises."""
    response = SimpleNamespace(status=status, headers=headers, url=url)
    assert isinstance(Outcome.from_response(response), Outcome)


def _named(name: str, module: str, *bases: type, **facts: Any) -> Exception:
    """Return an exception of a library that may not be installed."""
    kind = type(name, bases or (Exception,), {"__module__": module})
    error: Exception = kind("http://user:secret@192.0.2.1")
    for key, value in facts.items():
        setattr(error, key, value)
    return error


def _pysocks(name: str) -> Exception:
    general = type("GeneralProxyError", (OSError,), {"__module__": "socks"})
    return _named(name, "socks", general)


def _curl(code: int, words: str) -> Exception:
    of_curl = type("CurlError", (OSError,), {"__module__": "curl_cffi.curl"})
    error: Exception = type("ProxyError", (of_curl,), {"__module__": "curl_cffi"})(words)
    vars(error).update(code=code, response=SimpleNamespace(status_code=0))
    return error


def _broken_off(code: int) -> Exception:
    error = _curl(code, "transfer closed with outstanding read data remaining")
    vars(error).update(response=SimpleNamespace(status_code=200))
    return error


def _because(error: Exception, cause: BaseException) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (httpx.ConnectTimeout("late"), "proxy_failed", None),
        (httpx.ConnectError("no"), "proxy_failed", None),
        (_because(httpx.ConnectError("no"), ssl.SSLError(1, "x")), "unclear", None),
        (httpx.ReadTimeout("late"), "unclear", None),
        (httpx.WriteError("cut"), "unclear", None),
        (httpx.RemoteProtocolError("Server disconnected"), "unclear", None),
        (_because(httpx.ProxyError("407"), httpcore.ProxyError("407 no")), "proxy_failed", 407),
        (_because(httpx.ProxyError("502"), httpcore.ProxyError("502 no")), "unclear", None),
        (httpcore.ProxyError("Proxy Server could not connect: secret"), "unclear", None),
        (ssl.SSLCertVerificationError(1, "x"), "unclear", None),
        (ConnectionRefusedError(111, "Connection refused"), "proxy_failed", None),
        (TimeoutError(), "unclear", None),
        (OSError("Tunnel connection failed: 407 Who are you"), "proxy_failed", 407),
        (OSError("Tunnel connection failed: 503 secret"), "unclear", None),
        (_named("ConnectTimeout", "requests.exceptions", OSError), "proxy_failed", None),
        (_named("ReadTimeout", "requests.exceptions", OSError), "unclear", None),
        (_named("NewConnectionError", "urllib3.exceptions"), "proxy_failed", None),
        (_named("ClientProxyConnectionError", "aiohttp", OSError), "proxy_failed", None),
        (_named("ClientHttpProxyError", "aiohttp", status=407), "proxy_failed", 407),
        (_named("ClientHttpProxyError", "aiohttp", status=502), "unclear", None),
        (_named("ServerDisconnectedError", "aiohttp.client_exceptions"), "unclear", None),
        (_named("SOCKS5AuthError", "socks"), "proxy_failed", None),
        (_named("Timeout", "curl_cffi.requests.errors"), "unclear", None),
        (
            _because(_named("NewConnectionError", "urllib3"), _pysocks("SOCKS5Error")),
            "unclear",
            None,
        ),
        (_because(_named("ConnectTimeoutError", "urllib3"), _pysocks("X")), "unclear", None),
        (_curl(28, "Connection timed out"), "unclear", None),
        (_broken_off(18), "unclear", None),
        (_broken_off(28), "unclear", None),
        (_curl(7, "Failed to connect to shop.example over proxy"), "proxy_failed", None),
        (_curl(7, "CONNECT tunnel failed, response 407. See"), "proxy_failed", 407),
        (_curl(7, "CONNECT tunnel failed, response 503. See"), "unclear", None),
        (_curl(97, "cannot complete SOCKS5 connection to 192.0.2.1. (4)"), "unclear", None),
        (_curl(97, "User was rejected by the SOCKS5 server"), "proxy_failed", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_exception_says_who_is_to_blame(error: Any, kind: str, status: int | None) -> None:
    """The proxy only if certainly nothing came through it."""
    outcome = outcome_of_error(error, target=URL)
    assert outcome is not None
    assert (outcome.kind, outcome.status) == (OutcomeKind(kind), status)
    assert outcome.target == "shop.example"
    assert outcome.note
    assert len(outcome.note) <= MAX_NOTE_LENGTH
    assert "secret" not in outcome.note


def test_the_response_of_an_error_counts() -> None:
    """``raise_for_status`` raises an error that knows it."""
    response = like("httpx", 429, {"Retry-After": "20"})
    with pytest.raises(httpx.HTTPStatusError) as raised:
        response.raise_for_status()
    outcome = outcome_of_error(raised.value)
    assert outcome == Outcome.blocked("shop.example", status=429, retry_after=20)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("mine"),
        FileNotFoundError(2, "No such file"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        LeaseEndedError("ended"),
        httpx.PoolTimeout("own pool"),
        httpx.UnsupportedProtocol("ftp"),
        OSError(24, "Too many open files"),
        _because(httpx.ConnectError("name"), UnicodeError("label too long")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_of_proxy_and_target_is_none(error: BaseException) -> None:
    assert outcome_of_error(error, target="shop.example") is None


@pytest.mark.parametrize(
    "module", ["pharox.manager.proxy_manager", "pharox.models.outcome", "pharox.outcomes"]
)
def test_the_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:DB8:0::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("https://Shop.Example:8443/x", "shop.example"),
    ],
)
def test_an_address_is_a_target_as_a_whole(text: str, target: str) -> None:
    """An IPv6 address without brackets is none with a port."""
    assert Outcome.ok(text).target == target
