"""Managers go by the rules of the fleet, or by a function of the caller's, blocking and awaited."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    DatabaseUnavailableError,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeaseStatus,
    Outcome,
    OutcomeKind,
    ProxyManager,
    TargetRules,
)
from pharox.manager import ruling
from pharox.manager.ruling import rules_of
from tests.aio.test_clients import Ours, both
from tests.conftest import AnyStorage, fill
from tests.health.zoo import HOST, Zoo
from tests.leasing.test_reporting import leased, reports
from tests.ledger.following import until

OK, BLOCKED, UNCLEAR = OutcomeKind.OK, OutcomeKind.BLOCKED, OutcomeKind.UNCLEAR


def get(ours: Ours, url: str, *, is_async: bool, **manager: Any) -> httpx.Response:
    """Fetch a page with a client of a manager with these options."""
    if not is_async:
        with ProxyManager(ours.blocking, **manager).client("pool") as client:
            return client.get(url, timeout=5)

    async def main() -> httpx.Response:
        async with AsyncProxyManager(ours.storage, **manager).client("pool") as client:
            return await client.get(url, timeout=5)

    return asyncio.run(main())


@pytest.fixture
def ours(zoo: Zoo) -> Ours:
    """Return a storage with one proxy that works."""
    return Ours(zoo.proxy("pproxy-http", "http"))


@both
def test_a_client_goes_by_the_fleets_rules(zoo: Zoo, ours: Ours, *, is_async: bool) -> None:
    """For a status and for a body, which the caller gets whole."""
    rules = TargetRules(target=HOST, blocked_statuses=(404,), blocked_if_body="^ok$")
    ours.blocking.set_target_rules(rules)
    assert get(ours, zoo.target("/ok"), is_async=is_async).text == "ok"
    get(ours, zoo.target("/status/404"), is_async=is_async)
    found = [(each.outcome, each.status, each.bytes) for each in reports(ours.blocking)]
    assert [each[:2] for each in found] == [(BLOCKED, 200), (BLOCKED, 404)]
    assert found[0][2] == 2
    assert reports(ours.blocking)[0].note == "its body is that of a refusal, by the rules"


@both
def test_a_body_that_is_not_read_does_not_count(zoo: Zoo, ours: Ours, *, is_async: bool) -> None:
    """The response is reported when it is closed."""
    ours.blocking.set_target_rules(TargetRules(target=HOST, blocked_if_body="ok"))
    url = zoo.target("/ok")
    if is_async:

        async def main() -> None:
            manager = AsyncProxyManager(ours.storage)
            async with manager.client("pool") as client, client.stream("GET", url):
                pass

        asyncio.run(main())
    else:
        with ProxyManager(ours.blocking).client("pool") as client, client.stream("GET", url):
            pass
    assert [each.outcome for each in reports(ours.blocking)] == [OK]


@both
def test_a_body_that_breaks_off_is_reported_once(zoo: Zoo, ours: Ours, *, is_async: bool) -> None:
    """First what there was of it, then that it broke off."""
    ours.blocking.set_target_rules(TargetRules(target=HOST, blocked_if_body="nothing of this"))
    with pytest.raises(httpx.RemoteProtocolError):
        get(ours, zoo.target("/close-midway"), is_async=is_async)
    assert [each.outcome for each in reports(ours.blocking)] == [OK, UNCLEAR]


@both
def test_a_function_says_what_an_answer_means(zoo: Zoo, ours: Ours, *, is_async: bool) -> None:
    """It has the beginning of the body; if it says None, the rules of the fleet hold."""
    seen: list[tuple[int, str, Lease]] = []

    def outcome_of(response: Any, lease: Lease) -> Outcome | None:
        seen.append((response.status_code, response.text, lease))
        return Outcome.unclear(note="mine") if response.status_code == 200 else None

    ours.blocking.set_target_rules(TargetRules(target=HOST, blocked_statuses=(404,)))
    assert get(ours, zoo.target("/ok"), is_async=is_async, outcome_of=outcome_of).text == "ok"
    get(ours, zoo.target("/status/404"), is_async=is_async, outcome_of=outcome_of)
    assert [each[0] for each in seen] == [200, 404]
    assert seen[0][1] == "ok"
    assert isinstance(seen[0][2], Lease)
    found = [(each.outcome, each.target, each.note) for each in reports(ours.blocking)]
    assert found == [(UNCLEAR, HOST, "mine"), (BLOCKED, HOST, None)]


@both
@pytest.mark.parametrize("answer", ["raises", "blocked"])
def test_a_function_that_fails_is_logged(
    zoo: Zoo, ours: Ours, caplog: pytest.LogCaptureFixture, answer: str, *, is_async: bool
) -> None:
    """The request goes on, and the default rules hold."""

    def outcome_of(response: Any, lease: Lease) -> Any:
        if answer == "raises":
            raise KeyError("mine")
        return "blocked"

    with caplog.at_level(logging.ERROR, "pharox"):
        page = get(ours, zoo.target("/ok"), is_async=is_async, outcome_of=outcome_of)
    assert page.text == "ok"
    assert [each.outcome for each in reports(ours.blocking)] == [OK]
    assert "outcome_of" in caplog.text


def test_a_function_is_checked() -> None:
    """It is called in the caller's thread, so it cannot be awaited."""

    async def awaited(response: Any, lease: Lease) -> Outcome | None:
        return None

    for wrong in (awaited, "no function"):
        with pytest.raises(InvalidInputError, match="outcome_of"):
            ProxyManager(InMemoryStorage(), outcome_of=wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="outcome_of"):
            AsyncProxyManager(AsyncInMemoryStorage(), outcome_of=wrong)  # type: ignore[arg-type]


def response(status: int, text: str = "", host: str = "shop.example") -> httpx.Response:
    request = httpx.Request("GET", f"https://{host}/cart")
    return httpx.Response(status, text=text, request=request)


def test_a_response_is_reported_as_it_is(any_storage: AnyStorage) -> None:
    """With report, with report_outcomes and with a release, by the rules of its host."""
    fill(any_storage, 2)
    any_storage.set_target_rules(
        TargetRules(target="shop.example", blocked_statuses=(404,), blocked_if_body="captcha")
    )
    manager = ProxyManager(any_storage)
    lease, other = leased(manager), leased(manager)
    manager.report(lease, response(404))
    manager.report_outcomes([(lease, response(200, "Captcha")), (lease, Outcome.unclear("a.b"))])
    manager.release_proxy(lease, response(200, "welcome"))
    manager.release_proxies([other], [response(404, host="other.example")])
    found = [(each.outcome, each.target) for each in reports(any_storage)]
    shop = "shop.example"
    assert found == [
        (BLOCKED, shop),
        (BLOCKED, shop),
        (UNCLEAR, "a.b"),
        (OK, shop),
        (OK, "other.example"),
    ]


def test_the_target_of_a_lease_has_rules_too(any_storage: AnyStorage) -> None:
    """If the response does not know where it came from."""
    fill(any_storage, 1)
    any_storage.set_target_rules(TargetRules(target="shop.example", blocked_statuses=(404,)))
    manager = ProxyManager(any_storage)
    reported = manager.report(leased(manager, target="shop.example"), httpx.Response(404))
    assert reported is not None
    assert (reported.target, reported.streak) == ("shop.example", -1)


def test_what_is_neither_outcome_nor_response_is_refused(any_storage: AnyStorage) -> None:
    """The lease is given back nonetheless, also if the caller's function fails."""
    fill(any_storage, 1)

    def outcome_of(answer: Any, lease: Lease) -> Outcome | None:
        raise KeyError("mine")

    manager = ProxyManager(any_storage, outcome_of=outcome_of)
    lease = leased(manager)
    wrong: Any = "blocked"
    with pytest.raises(InvalidInputError, match="an Outcome is needed"):
        manager.report(lease, wrong)
    with pytest.raises(KeyError, match="mine"):
        manager.report(lease, response(200))
    with pytest.raises(KeyError, match="mine"):
        manager.release_proxy(lease, response(200))
    assert lease.status is LeaseStatus.RELEASED
    assert reports(any_storage) == []


def test_rules_are_read_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each response; a ledger that cannot be asked changes nothing."""
    storage = InMemoryStorage()
    fill(storage, 1)
    asked: list[float] = []
    listing = storage.list_target_rules

    def counted() -> Any:
        asked.append(clock[0])
        if clock[0] == 2000.0:
            raise DatabaseUnavailableError("down")
        return listing()

    clock = [1000.0]
    monkeypatch.setattr(storage, "list_target_rules", counted)
    monkeypatch.setattr("pharox.manager.ruling.time.monotonic", lambda: clock[0])
    manager = ProxyManager(storage)
    lease = leased(manager)
    manager.report(lease, response(404))
    storage.set_target_rules(TargetRules(target="shop.example", blocked_statuses=(404,)))
    clock[0] += 29
    manager.report(lease, response(404))
    manager.report(lease, Outcome.unclear("a.example"))
    clock[0] += 2
    manager.report(lease, response(404))
    manager.flush_reports()
    clock[0] = 2000.0
    manager.report(lease, response(404))
    assert asked == [1000.0, 1031.0, 2000.0]
    found = [each for each in reports(storage) if each.target == "shop.example"]
    assert sum(each.count for each in found if each.outcome is OK) == 2
    assert [each.outcome for each in found][-2:] == [BLOCKED, BLOCKED]


@both
def test_a_client_that_goes_on_hears_of_new_rules(
    zoo: Zoo, ours: Ours, monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """In the background, soon after the rules that it knows have become old."""
    monkeypatch.setattr(ruling, "PERIOD_S", 0.2)
    rules, url = TargetRules(target=HOST, blocked_statuses=(404,)), zoo.target("/status/404")

    def is_heard() -> bool:
        return rules_of(ours.storage if is_async else ours.blocking).of(HOST) is not None

    if is_async:

        async def main() -> None:
            async with AsyncProxyManager(ours.storage).client("pool") as client:
                await client.get(url)
                ours.blocking.set_target_rules(rules)
                while not is_heard():
                    await asyncio.sleep(0.05)
                    await client.get(url)
                await client.get(url)

        asyncio.run(main())
    else:
        with ProxyManager(ours.blocking).client("pool") as client:
            client.get(url)
            ours.blocking.set_target_rules(rules)
            until(lambda: bool(client.get(url)) or is_heard())
            until(is_heard)
            client.get(url)
    kinds = [each.outcome for each in reports(ours.blocking)]
    assert (kinds[0], kinds[-1]) == (OK, BLOCKED)
