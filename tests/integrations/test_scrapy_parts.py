"""The parts of the add-on for Scrapy that need no crawl: settings, blame, what is missing."""

from __future__ import annotations

import importlib
from typing import Any

import httpx
import pytest
from scrapy.core.downloader.handlers.http11 import HTTP11DownloadHandler, TunnelError
from scrapy.exceptions import (
    CannotResolveHostError,
    DownloadCancelledError,
    DownloadConnectionRefusedError,
    DownloadFailedError,
    DownloadTimeoutError,
    IgnoreRequest,
    ResponseDataLossError,
    StopDownload,
)
from scrapy.settings import Settings
from twisted.internet import error as twisted_errors
from twisted.web import client

import pharox.integrations.scrapy
from pharox import ProxyFilters, ProxyProtocol, SelectorStrategy
from pharox.errors import InvalidInputError, LeaseEndedError, MissingHostError
from pharox.integrations import _core
from pharox.integrations.scrapy.handlers import protocols_of
from pharox.integrations.scrapy.options import CrawlOptions, job_of
from pharox.integrations.scrapy.outcomes import outcome_of_failure

# Twisted has no annotations.
twisted_error: Any = twisted_errors
ResponseFailed: Any = client.ResponseFailed


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DownloadConnectionRefusedError("111"), "proxy_failed"),
        (CannotResolveHostError("no such name"), "proxy_failed"),
        (twisted_error.ConnectionRefusedError(), "proxy_failed"),
        (twisted_error.NoRouteError(), "proxy_failed"),
        (twisted_error.TCPTimedOutError(), "proxy_failed"),
        (twisted_error.DNSLookupError(), "proxy_failed"),
        (TunnelError("[{'status': 407, 'reason': b'alice'}]"), "proxy_failed"),
        (TunnelError("[{'status': 502, 'reason': b'no'}]"), "unclear"),
        (TunnelError("[b'SSH-2.0']"), "unclear"),
        (DownloadTimeoutError("long"), "unclear"),
        (twisted_error.TimeoutError(), "unclear"),
        (twisted_error.ConnectionLost(), "unclear"),
        (ResponseFailed([]), "unclear"),
        (ResponseDataLossError("half"), "unclear"),
        (caused(DownloadFailedError("cut"), ResponseFailed([])), "unclear"),
        (caused(DownloadConnectionRefusedError("x"), httpx.ConnectError("x")), "proxy_failed"),
        (caused(DownloadTimeoutError("x"), httpx.ReadTimeout("x")), "unclear"),
        (DownloadCancelledError("too large"), None),
        (StopDownload(), None),
        (IgnoreRequest(), None),
        (ValueError("a bug"), None),
        (LeaseEndedError("over"), None),
    ],
)
def test_an_exception_says_whose_fault_it_was(error: Exception, kind: str | None) -> None:
    outcome = outcome_of_failure(error, "shop.example")
    if kind is None:
        assert outcome is None
        return
    assert outcome is not None
    assert (outcome.kind, outcome.target) == (kind, "shop.example")
    assert "alice" not in (outcome.note or "")


def test_a_pool_is_all_that_has_to_be_set() -> None:
    options = CrawlOptions.of(Settings({"PHAROX_POOL": "residential"}))
    assert (options.pool, options.lease_per) == ("residential", "request")
    assert options.lease == {"wait_seconds": 30.0, "keep_alive": True}
    assert (options.report, options.retry, options.targets) == (True, True, True)


def test_settings_may_come_from_the_command_line_as_text() -> None:
    options = CrawlOptions.of(
        Settings(
            {
                "PHAROX_POOL": "residential",
                "PHAROX_WAIT_SECONDS": "0",
                "PHAROX_LEASE_SECONDS": "90",
                "PHAROX_SELECTOR": "least_used",
                "PHAROX_FILTERS": '{"country": "BR"}',
                "PHAROX_PROTOCOLS": "http,socks5",
                "PHAROX_RETRY": "False",
                "PHAROX_KEEP_ALIVE": "0",
                "PHAROX_IS_BLOCKED": "tests.integrations.crawling.is_captcha",
            }
        )
    )
    assert options.lease == {
        "wait_seconds": None,
        "keep_alive": False,
        "duration_seconds": 90,
        "selector": SelectorStrategy.LEAST_USED,
    }
    assert options.filters == ProxyFilters(country="BR")
    assert options.protocols == frozenset({ProxyProtocol.HTTP, ProxyProtocol.SOCKS5})
    assert not options.retry
    assert options.is_blocked is not None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("PHAROX_POOL", None),
        ("PHAROX_LEASE_PER", "page"),
        ("PHAROX_SELECTOR", "best"),
        ("PHAROX_FILTERS", {"planet": "Mars"}),
        ("PHAROX_FILTERS", "no JSON"),
        ("PHAROX_PROTOCOLS", ["gopher"]),
        ("PHAROX_WAIT_SECONDS", -1),
        ("PHAROX_WAIT_SECONDS", "soon"),
        ("PHAROX_LEASE_SECONDS", float("inf")),
        ("PHAROX_IDLE_SECONDS", float("nan")),
        ("PHAROX_STORAGE", "no.such.module.function"),
        ("PHAROX_IS_BLOCKED", "tests.integrations.crawling.HERE"),
    ],
)
def test_a_bad_setting_is_named(setting: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=setting):
        CrawlOptions.of(Settings({"PHAROX_POOL": "residential", setting: value}))


def test_a_job_has_the_name_that_its_scheduler_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spider:
        _job = "from-scrapyd"

    monkeypatch.delenv("SCRAPY_JOB", raising=False)
    monkeypatch.delenv("SHUB_JOBKEY", raising=False)
    assert job_of(Spider()) == "from-scrapyd"
    assert job_of(None) != job_of(None)
    monkeypatch.setenv("SHUB_JOBKEY", "1/2/3")
    assert job_of(None) == "1/2/3"


def test_scrapys_own_handler_goes_through_http_proxies_only() -> None:
    assert protocols_of(HTTP11DownloadHandler) == {ProxyProtocol.HTTP}


def test_too_old_a_scrapy_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "version", lambda _: "2.12.0")
    with pytest.raises(MissingHostError, match=r"scrapy 2\.13 or newer, which is 2\.12\.0 here"):
        importlib.reload(pharox.integrations.scrapy)
