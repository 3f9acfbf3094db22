"""Rules of the fleet, and a function of the caller, say what answers mean in integrations too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pharox import Lease, Outcome, ProxyManager, TargetRules
from pharox.integrations import curl_cffi, requests
from pharox.integrations.aiohttp import pharox_session
from pharox.integrations.httpx import PharoxTransport
from pharox.integrations.testing import Behaviour, ProxyLab, proxy_lab
from tests.integrations.common import kinds

RULES = TargetRules(target="shop.example", blocked_statuses=(404,), blocked_if_body="captcha")
Fetch = Callable[[ProxyManager, str], Any]


def with_requests(manager: ProxyManager, url: str) -> None:
    with requests.session(manager, "lab") as s:
        s.get(url, timeout=10)


def with_curl_cffi(manager: ProxyManager, url: str) -> None:
    with curl_cffi.session(manager, "lab") as s:
        s.get(url, timeout=10)


def with_httpx(manager: ProxyManager, url: str) -> None:
    with httpx.Client(transport=PharoxTransport(manager, "lab"), timeout=10) as client:
        client.get(url)


every = pytest.mark.parametrize("fetch", [with_requests, with_curl_cffi, with_httpx])


@every
@pytest.mark.parametrize(
    ("path", "kind"), [("/status/404", "blocked"), ("/captcha", "blocked"), ("/page", "ok")]
)
def test_rules_of_the_fleet_hold(fetch: Fetch, path: str, kind: str) -> None:
    """Those for bodies too, where the body is read at once."""
    with proxy_lab({"good": Behaviour()}) as lab:
        lab.storage.set_target_rules(RULES)
        fetch(lab.manager, lab.url(path))
        assert kinds(lab) == [kind]
        assert lab.held == []


@every
def test_a_body_that_breaks_off_is_judged_as_far_as_it_came(fetch: Fetch) -> None:
    with proxy_lab({"dying": Behaviour(dies_after=0)}) as lab:
        lab.storage.set_target_rules(RULES)
        with pytest.raises(OSError if fetch is not with_httpx else httpx.TransportError):
            fetch(lab.manager, lab.url("/page"))
        assert kinds(lab)[-1] == "unclear"


@every
def test_a_function_of_the_caller_says_more(fetch: Fetch) -> None:
    seen: list[int] = []

    def outcome_of(response: Any, _lease: Lease) -> Outcome | None:
        seen.append(response.status_code)
        return Outcome.blocked(note="a soft block")

    with proxy_lab({"good": Behaviour()}) as lab:
        fetch(ProxyManager(lab.storage, outcome_of=outcome_of), lab.url())
        assert (kinds(lab), seen) == (["blocked"], [200])


def test_aiohttp_goes_by_rules_for_statuses() -> None:
    async def main(lab: ProxyLab) -> None:
        manager = lab.async_manager
        async with pharox_session(manager, "lab") as session:
            await session.get(lab.url("/status/404"))
        await manager.flush_reports()

    with proxy_lab({"good": Behaviour()}) as lab:
        lab.storage.set_target_rules(RULES)
        asyncio.run(main(lab))
        assert kinds(lab) == ["blocked"]
