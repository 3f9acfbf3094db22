"""Links are called by who gave a proxy back, by who asks for it, or by who sweeps."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from pharox import (
    AsyncProxyManager,
    MissReason,
    ProxyManager,
    RotationAnswer,
    RotationFailure,
    RotationPolicy,
)
from pharox.effects import call, run
from pharox.events import Event, RotationAnswered, RotationCalled
from pharox.manager import links
from pharox.manager.links import address_in, call_links_in_thread
from pharox.manager.rotator import calling_due, fetch_in_thread, rotating
from pharox.storage.requests import AcquireRequest
from tests.conftest import AnyStorage, fill, for_tasks

SECRET = "hunter2"

_LAST_LINES = """
import pharox
from pharox import Proxy, ProxyManager, RotationPolicy
storage = pharox.InMemoryStorage()
pool = pharox.bootstrap_pool(storage, name="pool")
storage.save_pool(pool.model_copy(update={{"rotation": RotationPolicy(on="release")}}))
place = {{"host": "192.0.2.1", "port": 1, "protocol": "http", "status": "active"}}
storage.save_proxy(Proxy(**place, pool_id=pool.id, max_concurrency=1, rotate_url={!r}))
with ProxyManager(storage).with_lease("pool"):
    pass
"""


class Provider(ThreadingHTTPServer):
    """Answers links as a test says: each path with what is registered for it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answers: dict[str, Callable[[], tuple[int, str, dict[str, str]]]] = {}
        self.seen: list[tuple[str, str | None]] = []

    def link(self, name: str, answer: Callable[[], Any] | tuple[int, str]) -> SecretStr:
        """Return a link, and answer it from now on."""

        def give() -> tuple[int, str, dict[str, str]]:
            said = answer() if callable(answer) else answer
            return (*said, {}) if len(said) == 2 else said

        self.answers[f"/{name}"] = give
        return SecretStr(f"http://user:{SECRET}@127.0.0.1:{self.server_port}/{name}?key={SECRET}")


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        provider: Any = self.server
        path = self.path.partition("?")[0]
        provider.seen.append((path, self.headers["Authorization"]))
        status, body, headers = provider.answers[path]()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if isinstance(body, threading.Event):
            self.wfile.flush()
            body.wait()
        else:
            self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider's server on loopback."""
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def mobile(storage: AnyStorage, link: SecretStr, **policy: Any) -> Any:
    """Register a pool with one proxy that has a link, and return the proxy."""
    pool, (proxy,) = fill(storage, 1, rotate_url=link)
    rule = RotationPolicy(on="release", **policy)
    storage.save_pool(pool.model_copy(update={"rotation": rule}))
    return proxy


def answered(storage: AnyStorage) -> list[RotationAnswered]:
    """Return what came of calling links."""
    return _of(storage, RotationAnswered)


def _of(storage: AnyStorage, kind: Any) -> list[Any]:
    events: list[Event] = [*storage.events()]
    return [event for event in events if isinstance(event, kind)]


def test_a_release_calls_the_link(any_storage: AnyStorage, provider: Provider) -> None:
    """The worker does not wait for it, the next one gets the other exit, and nobody in between."""
    during: list[MissReason | None] = []

    def answer() -> tuple[int, str]:
        request = AcquireRequest("pool", "other", 60)
        during.append(any_storage.acquire_lease(request).miss_reason)
        return 200, '{"status": "ok", "new_ip": "203.0.113.7"}'

    proxy = mobile(any_storage, provider.link("ok", answer))
    manager = ProxyManager(any_storage)
    with manager.with_lease("pool"):
        pass
    lease = manager.acquire_proxy("pool", wait_seconds=30)
    assert lease is not None
    assert during == [MissReason.ROTATING]
    assert any_storage.get_proxy(str(proxy.id)).exit_ip == "203.0.113.7"
    assert provider.seen[-1] == ("/ok", "Basic dXNlcjpodW50ZXIy")
    assert list(any_storage.verify()) == []


def test_tasks_call_it_too(any_storage: AnyStorage, provider: Provider) -> None:
    mobile(any_storage, provider.link("async", (200, "203.0.113.8")))

    async def work() -> None:
        storage = for_tasks(any_storage)
        manager = AsyncProxyManager(storage)
        async with manager.with_lease("pool"):
            pass
        lease = await manager.acquire_proxy("pool", wait_seconds=30)
        assert lease is not None
        await manager.release_proxies([lease])
        await storage.close()  # It waits for the call that is under way.

    asyncio.run(work())
    assert [each.exit_ip for each in answered(any_storage)] == ["203.0.113.8"] * 2


def test_a_link_that_fails_is_called_again(
    any_storage: AnyStorage, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer may say when, and neither the log nor an event has the link."""
    caplog.set_level(logging.DEBUG)
    said = iter(((429, "slow down", {"Retry-After": "0"}), (500, SECRET, {"Retry-After": "0"})))
    proxy = mobile(any_storage, provider.link("flaky", lambda: next(said, (204, ""))))
    answer = ProxyManager(any_storage).rotate_proxy(proxy.id)
    assert answer.is_rotated
    outcomes = [(each.failure, each.status) for each in answered(any_storage)]
    refused = RotationFailure.REFUSED
    assert outcomes == [(refused, 429), (refused, 500), (None, 204)]
    assert SECRET not in caplog.text + "".join(e.model_dump_json() for e in any_storage.events())


def test_a_link_that_is_not_answered(
    any_storage: AnyStorage, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, drips, leads elsewhere or nowhere: the proxy is leased again at the bound."""
    monkeypatch.setattr(links, "LINK_S", 0.3)
    ends = threading.Event()
    hangs = provider.link("hangs", lambda: (ends.wait(), (200, ""))[1])
    elsewhere = {"Location": f"http://127.0.0.1:{provider.server_port}/stolen"}
    leads = provider.link("leads", lambda: (302, "", elsewhere))
    nowhere = SecretStr("http://127.0.0.1:1/")
    _, proxies = fill(any_storage, 3)
    manager = ProxyManager(any_storage)
    found = []
    for proxy, link in zip(proxies, (hangs, leads, nowhere), strict=True):
        any_storage.save_proxy(proxy.model_copy(update={"rotate_url": link}))
        answer = manager.rotate_proxy(proxy.id, within_seconds=1)
        found.append((answer.failure, answer.status))
    ends.set()
    assert found == [
        (RotationFailure.TIMEOUT, None),
        (RotationFailure.REFUSED, 302),
        (RotationFailure.UNREACHABLE, None),
    ]
    assert "/stolen" not in [path for path, _ in provider.seen]
    assert len(manager.acquire_proxies("pool", 3)) == 3


def test_a_link_that_cannot_be_called_leaves_the_others(provider: Provider) -> None:
    """Whatever is wrong with it: each has an answer, also one that no validator has seen."""
    bad = [SecretStr(url) for url in ("http://127.0.0.1:99999/x", "http://[", "http://h:tok3n/")]
    good = provider.link("beside", (200, "203.0.113.7"))
    *failed, answer = call_links_in_thread([*bad, good])
    assert not any(each.is_rotated for each in failed)
    assert answer == RotationAnswer(status=200, exit_ip="203.0.113.7")


def test_a_body_without_an_end_is_no_failure(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status says that the modem has another exit: to call again would cut that, too."""
    monkeypatch.setattr(links, "_BODY_S", 0.2)
    ends = threading.Event()
    (answer,) = call_links_in_thread([provider.link("endless", lambda: (200, ends))])
    ends.set()
    assert answer == RotationAnswer(status=200)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_end_of_a_program_waits_for_the_call(provider: Provider, host: str) -> None:
    """Also if the name of the host is looked up then, which takes a thread."""
    link = provider.link(f"at-exit-{host}", (200, "")).get_secret_value()
    program = _LAST_LINES.format(link.replace("127.0.0.1", host))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert f"/at-exit-{host}" in [path for path, _ in provider.seen]


def test_each_due_link_is_called_once(any_storage: AnyStorage, provider: Provider) -> None:
    """Also if it asks to be called again at once; and none is when the end is near."""
    link = provider.link("busy", lambda: (429, "", {"Retry-After": "0"}))
    _, proxies = fill(any_storage, 3, rotate_url=link)
    for proxy in proxies:
        any_storage.begin_rotation(proxy.id)
    assert run(calling_due(any_storage, fetch_in_thread, lambda: True), call) == []
    before = len(provider.seen)
    assert len(ProxyManager(any_storage).rotate_due()) == len(provider.seen) - before == 3


def test_leases_are_waited_for(any_storage: AnyStorage, provider: Provider) -> None:
    """While one holds the proxy its link is not called, by nobody."""
    proxy = mobile(any_storage, provider.link("held", (200, "")))
    manager = ProxyManager(any_storage)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    assert manager.rotate_proxy(proxy.id, within_seconds=0.2).failure is RotationFailure.HELD
    assert not _of(any_storage, RotationCalled)
    assert manager.rotate_due() == []


def test_what_another_process_was_told_is_told(any_storage: AnyStorage, provider: Provider) -> None:
    """Its link was refused while somebody waited for it here: no lease was in the way."""
    proxy = mobile(any_storage, provider.link("elsewhere", (200, "")))
    any_storage.begin_rotation(proxy.id, 60)
    (due,) = any_storage.claim_rotations(seconds=35).due
    refused = RotationAnswer(RotationFailure.REFUSED, 503, retry_after_seconds=600)
    other = iter([due])

    def pause(_: float) -> bool:
        return not any_storage.answer_rotation(next(other), refused)

    answer = run(rotating(any_storage, fetch_in_thread, pause, proxy.id), call)
    assert answer == RotationAnswer(RotationFailure.REFUSED, 503)
    assert list(any_storage.verify()) == []


def test_what_was_left_is_called_by_who_sweeps(any_storage: AnyStorage, provider: Provider) -> None:
    """A process that was killed after the release has not called the link. It is called once."""
    mobile(any_storage, provider.link("left", (200, "")))
    lease = any_storage.acquire_lease(AcquireRequest("pool", "w", 60)).lease
    assert lease is not None
    any_storage.return_lease(lease)
    before = len(provider.seen)
    managers = [ProxyManager(any_storage) for _ in range(4)]
    barrier = threading.Barrier(len(managers))
    found: list[Any] = []

    def sweep(manager: ProxyManager) -> None:
        barrier.wait()
        found.extend(manager.rotate_due())

    threads = [threading.Thread(target=sweep, args=(each,)) for each in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.is_rotated for answer in found] == [True]
    assert len(provider.seen) == before + 1
    assert len(_of(any_storage, RotationCalled)) == 1


@pytest.mark.parametrize(
    ("body", "address"),
    [
        (b"203.0.113.1\n", "203.0.113.1"),
        (b'{"ip": "old", "new_ip": "203.0.113.1"}', "203.0.113.1"),
        (b'{"newIp": "2001:db8::1", "ip": "192.0.2.1"}', "2001:db8::1"),
        (b'["203.0.113.1"]', None),
        (b'{"ip": {"v4": "203.0.113.1"}}', None),
        (b"<html>", None),
        (b"\xff\xfe", None),
        (b"[" * 5000, None),
    ],
)
def test_the_address_in_an_answer(body: bytes, address: str | None) -> None:
    assert address_in(body) == address
