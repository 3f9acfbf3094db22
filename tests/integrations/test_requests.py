"""Sessions of requests through leased proxies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from pharox import (
    InvalidInputError,
    LeaseEndedError,
    LeaseLostError,
    LeaseStatus,
    ProxyManager,
    ProxyProtocol,
    ProxyUnavailableError,
)
from pharox.integrations.requests import LeasedSession, session
from pharox.integrations.testing import Behaviour, ProxyLab, proxy_lab
from tests.aio.test_clients import Ours
from tests.conftest import AnyStorage, types_of
from tests.health.zoo import Zoo
from tests.integrations.common import in_thread, kinds, only, told, until
from tests.integrations.conftest import GOOD

pytestmark = pytest.mark.usefixtures("trusted")


def opened(lab: ProxyLab, *names: str, **options: Any) -> LeasedSession:
    """Return a session through one of the proxies of these names."""
    return session(lab.manager, "lab", **only(lab, *names, **options))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", GOOD)
def test_requests_go_through_the_proxy(lab: ProxyLab, name: str, *, tls: bool) -> None:
    """With and without a password, over HTTP and SOCKS, to a host that only the proxy knows."""
    with opened(lab, name) as s:
        for path in ("/1", "/2"):
            answer = s.get(lab.url(path, tls=tls), timeout=10)
            assert answer.text.startswith(f"{name} ")
        assert len(lab.held) == 1
    assert len({each.connection for each in lab.seen}) == 1
    assert lab.held == []
    assert set(told(lab)) == {(name, "ok", "shop.example")}


@pytest.mark.parametrize("tls", [False, True])
def test_a_refusal_has_the_proxy_rest_for_the_host(lab: ProxyLab, *, tls: bool) -> None:
    with opened(lab, "refusing") as s:
        assert s.get(lab.url(tls=tls), timeout=10).status_code == 403
    assert told(lab) == [("refusing", "blocked", "shop.example")]
    with pytest.raises(ProxyUnavailableError) as missed:
        opened(lab, "refusing", target="shop.example", wait_seconds=None)
    assert missed.value.reason == "cooling_down"
    assert lab.held == []


@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_that_breaks_off_is_unclear(lab: ProxyLab, *, tls: bool) -> None:
    with opened(lab, "dying") as s, pytest.raises(requests.RequestException):
        s.get(lab.url(tls=tls), timeout=10)
    assert kinds(lab) == ["ok", "unclear"]
    assert lab.held == []


def test_a_stream_that_breaks_off_is_unclear(lab: ProxyLab) -> None:
    with opened(lab, "dying") as s:
        answer = s.get(lab.url(), stream=True, timeout=10)
        assert kinds(lab) == ["ok"]
        with pytest.raises(requests.RequestException):
            list(answer.iter_lines())
    assert kinds(lab) == ["ok", "unclear"]


def test_a_proxy_that_is_not_there_has_failed(lab: ProxyLab) -> None:
    with opened(lab, "down") as s, pytest.raises(requests.ConnectionError):
        s.get(lab.url(), timeout=10)
    assert told(lab) == [("down", "proxy_failed", "shop.example")]


def test_a_slow_one_is_unclear(lab: ProxyLab) -> None:
    with opened(lab, "slow") as s, pytest.raises(requests.Timeout):
        s.get(lab.url(), timeout=0.2)
    assert kinds(lab) == ["unclear"]


def test_each_hop_counts(lab: ProxyLab) -> None:
    with opened(lab, "good") as s:
        assert s.get(lab.url("/redirect/status/404"), timeout=10).status_code == 404
    assert [each.status for each in lab.outcomes] == [302, 404]


def test_an_exception_of_the_caller_gives_the_lease_back(lab: ProxyLab) -> None:
    s = opened(lab, "good")

    def work() -> None:
        with s:
            s.get(lab.url(), timeout=10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert lab.held == []
    with pytest.raises(LeaseEndedError, match="was released"):
        s.get(lab.url(), timeout=10)


def test_it_is_given_back_once(lab: ProxyLab) -> None:
    s = opened(lab, "good")
    s.close()
    s.close()
    assert s.lease.status is LeaseStatus.RELEASED
    assert types_of(lab.storage).count("LeaseReleased") == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", [False, True])
def test_a_lost_lease_ends_what_is_in_flight(
    lab: ProxyLab, caplog: pytest.LogCaptureFixture, *, tls: bool
) -> None:
    """The reason is in the log, and nothing is said of the proxy."""
    with opened(lab, "slow") as s:
        with in_thread(lambda: s.get(lab.url(tls=tls), timeout=25)) as answer:
            until(lambda: lab.seen)
            lab.manager.revoke_lease(s.lease.id, "it hung")
        assert isinstance(answer[0], LeaseLostError), answer
        with pytest.raises(LeaseLostError):
            s.get(lab.url(), timeout=10)
    assert len(lab.seen) == 1
    assert (kinds(lab), lab.held) == ([], [])
    assert "pharox.lease.lost" in caplog.text


def test_a_lost_lease_ends_a_stream(lab: ProxyLab) -> None:
    """In the middle of a body, and between two parts of one."""
    with opened(lab, "stalling") as s:
        answer = s.get(lab.url(), stream=True, timeout=25)
        with in_thread(lambda: answer.content) as ended:
            lab.manager.revoke_lease(s.lease.id, "it hung")
        assert isinstance(ended[0], LeaseLostError)
    with opened(lab, "good") as s:
        answer = s.get(lab.url(), stream=True, timeout=10)
        lab.manager.revoke_lease(s.lease.id, "it hung")
        with pytest.raises(LeaseLostError):
            list(answer.iter_content(1))
    assert (kinds(lab), lab.held) == (["ok", "ok"], [])


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "NO_PROXY"])
def test_the_environment_does_not_choose_the_way(
    lab: ProxyLab, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Neither does it log in at the leased proxy."""
    value = "*" if variable == "NO_PROXY" else "http://bob:secret@127.0.0.1:1"
    monkeypatch.setenv(variable, value)
    with opened(lab, "password") as s:
        assert s.get(lab.url("/redirect/a"), timeout=10).text.startswith("password ")
        with pytest.raises(InvalidInputError, match="leave proxies out"):
            s.get(lab.url(), proxies={"http": "http://127.0.0.1:1"}, timeout=10)
    assert kinds(lab) == ["ok", "ok"]


def test_adapters_of_the_caller_go_through_the_proxy(lab: ProxyLab) -> None:
    with opened(lab, "password") as s:
        s.mount("http://", HTTPAdapter(max_retries=Retry(1)))
        assert s.get(lab.url(), timeout=10).text.startswith("password ")
    assert kinds(lab) == ["ok"]


def test_reporting_can_be_switched_off(lab: ProxyLab) -> None:
    with session(lab.manager, "lab", report=False, **only(lab, "refusing")) as s:
        assert s.get(lab.url(), timeout=10).status_code == 403
    assert kinds(lab) == []


def test_mistakes_of_the_caller_are_not_reported(lab: ProxyLab) -> None:
    with opened(lab, "good") as s:
        for url in ("ftp://shop.example/", "http://*.example/", "http://"):
            with pytest.raises(ValueError):  # noqa: PT011 - requests has many
                s.get(url, timeout=10)
    assert kinds(lab) == []


def test_a_key_without_a_password_is_refused_for_socks() -> None:
    """PySocks would not offer it."""
    behaviours = {"key": Behaviour(protocol="socks5", user="0123")}
    with proxy_lab(behaviours) as lab:
        with pytest.raises(InvalidInputError, match="empty password"):
            opened(lab, "key")
        assert lab.held == []


def test_any_ledger_will_do(any_storage: AnyStorage) -> None:
    with proxy_lab({"good": Behaviour(user="a", password="ü€")}, storage=any_storage) as lab:
        with session(lab.manager, "lab", consumer="crawler-7", target="shop.example") as s:
            assert s.get(lab.url(), timeout=10).ok
        assert (kinds(lab), lab.held) == (["ok"], [])


@pytest.mark.parametrize("tls", [False, True])
def test_the_way_to_the_proxy_may_be_tls(zoo: Zoo, trusted: str, *, tls: bool) -> None:
    Path(trusted).write_text(zoo.authority)
    ours = Ours(zoo.proxy("https-proxy", ProxyProtocol.HTTPS))
    with session(ProxyManager(ours.blocking), "pool") as s:
        url = zoo.tls_target("/ok") if tls else zoo.target("/ok")
        assert s.get(url, timeout=10).text == "ok"
    assert ours.active == 0


def test_the_certificate_of_a_proxy_is_verified(zoo: Zoo) -> None:
    """Also where the target has none: requests itself would give it the password unverified."""
    ours = Ours(zoo.proxy("untrusted-https-proxy", ProxyProtocol.HTTPS))
    with (
        session(ProxyManager(ours.blocking), "pool") as s,
        pytest.raises(requests.RequestException),
    ):
        s.get(zoo.target("/ok"), timeout=10)
    assert types_of(ours.blocking)[-2:] == ["OutcomeReported", "LeaseReleased"]
