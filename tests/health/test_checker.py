"""A checker gives every proxy one result, and a sweep of them leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest

from pharox.errors import InvalidInputError, OutOfResourcesError
from pharox.health import HealthChecker, HealthCheckStrategy
from pharox.models import (
    CheckFailure,
    HealthCheckOptions,
    HealthCheckResult,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
)
from tests.health.zoo import HOSTILE, POOL_ID, USER, Zoo

QUICK = HealthCheckOptions(timeout=0.05)


def some_proxy(host: str = "127.0.0.1", protocol: str = "http") -> Proxy:
    return Proxy(host=host, port=1, protocol=ProxyProtocol(protocol), pool_id=POOL_ID)


def result_of(proxy: Proxy) -> HealthCheckResult:
    return HealthCheckResult(
        proxy_id=proxy.id, status=ProxyStatus.ACTIVE, latency_ms=1, protocol=proxy.protocol
    )


class Strategy(HealthCheckStrategy):
    """Does what a test says; remembers with which options it was asked."""

    def __init__(self, behaviour: Callable[[Proxy], Any] = result_of) -> None:
        self._behaviour = behaviour
        self.asked: list[HealthCheckOptions] = []

    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        self.asked.append(options)
        found = self._behaviour(proxy)
        return await found if asyncio.iscoroutine(found) else found  # type: ignore[no-any-return]


def checker_of(strategy: HealthCheckStrategy, **arguments: Any) -> HealthChecker:
    return HealthChecker(strategies=dict.fromkeys(ProxyProtocol, strategy), **arguments)


def test_options_of_the_call_before_those_of_the_protocol_before_the_default() -> None:
    strategy = Strategy()
    default, of_socks5, given = (HealthCheckOptions(timeout=t) for t in (1, 2, 3))
    checker = checker_of(strategy, default_options=default)
    checker.set_protocol_options(ProxyProtocol.SOCKS5, of_socks5)

    async def run() -> None:
        await checker.check_proxy(some_proxy())
        await checker.check_proxy(some_proxy(protocol="socks5"))
        await checker.check_proxy(some_proxy(protocol="socks5"), given)

    asyncio.run(run())
    assert [options.timeout for options in strategy.asked] == [1, 2, 3]


def test_a_strategy_is_for_its_protocol() -> None:
    """That of HTTP stands in for those that are not given."""
    of_http, of_socks4, registered = Strategy(), Strategy(), Strategy()
    checker = HealthChecker(
        strategies={ProxyProtocol.HTTP: of_http, ProxyProtocol.SOCKS4: of_socks4}
    )
    checker.register_strategy(ProxyProtocol.HTTPS, registered)

    async def run() -> None:
        for protocol in ProxyProtocol:
            await checker.check_proxy(some_proxy(protocol=protocol))

    asyncio.run(run())
    assert [len(s.asked) for s in (of_http, of_socks4, registered)] == [2, 1, 1]


def test_the_caller_keeps_its_tables() -> None:
    options: dict[ProxyProtocol, HealthCheckOptions] = {}
    HealthChecker(protocol_options=options).set_protocol_options(ProxyProtocol.HTTP, QUICK)
    assert options == {}


async def _forever() -> None:
    await asyncio.Event().wait()


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("behaviour", "failure"),
    [
        (lambda _: _forever(), CheckFailure.TIMEOUT),
        (lambda _: _raise(ZeroDivisionError("open sesame")), CheckFailure.OTHER),
        (lambda _: _raise(TimeoutError()), CheckFailure.OTHER),
        (lambda _: _raise(asyncio.CancelledError()), CheckFailure.OTHER),
        (lambda _: None, CheckFailure.OTHER),
        (lambda _: result_of(some_proxy()), CheckFailure.OTHER),
        (lambda proxy: result_of(proxy).model_copy(update={"latency_ms": -5}), CheckFailure.OTHER),
        (
            lambda proxy: result_of(proxy).model_copy(update={"error_message": "\0"}),
            CheckFailure.OTHER,
        ),
    ],
)
def test_a_strange_strategy_is_a_result(
    behaviour: Callable[[Proxy], Any], failure: CheckFailure, caplog: pytest.LogCaptureFixture
) -> None:
    """For the proxy in question; a time-out aside, the log says more."""
    proxy = some_proxy()
    with caplog.at_level(logging.ERROR, "pharox"):
        result = asyncio.run(checker_of(Strategy(behaviour)).check_proxy(proxy, QUICK))
    assert (result.proxy_id, result.protocol) == (proxy.id, proxy.protocol)
    assert (result.status, result.failure) == (ProxyStatus.INACTIVE, failure)
    assert "sesame" not in str(result.error_message)
    logged = [record.message for record in caplog.records]
    expected = [f"pharox.health.strategy_failed: proxy {proxy.id}"]
    assert logged == (expected if failure == CheckFailure.OTHER else [])


def test_a_cancelled_check_is_cancelled() -> None:
    async def run() -> None:
        checking = asyncio.create_task(
            checker_of(Strategy(lambda _: _forever())).check_proxy(some_proxy())
        )
        await asyncio.sleep(0.01)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking

    asyncio.run(run())


@pytest.mark.parametrize(
    "arguments",
    [
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"concurrency": True},
        {"per_host": 0},
        {"per_host": "1"},
    ],
)
@pytest.mark.parametrize("method", ["stream_health_checks", "stream_chunks"])
def test_bad_bounds_are_refused_at_the_call(method: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        getattr(HealthChecker(), method)([], **arguments)


def test_what_is_no_list_is_refused_at_the_call() -> None:
    with pytest.raises(InvalidInputError):
        HealthChecker().stream_health_checks(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("proxies", [[None], "http://127.0.0.1:1", some_proxy()])
@pytest.mark.parametrize("per_host", [None, 1])
def test_what_is_no_proxy_is_refused(proxies: Any, per_host: int | None) -> None:
    async def run() -> None:
        async for _ in HealthChecker().stream_health_checks(proxies, per_host=per_host):
            pass

    with pytest.raises(InvalidInputError):
        asyncio.run(run())
    with pytest.raises(InvalidInputError):
        asyncio.run(HealthChecker().check_proxy("http://127.0.0.1:1"))  # type: ignore[arg-type]


def test_so_many_of_a_host_at_once() -> None:
    """And all of them in the end, from an asynchronous source as well."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def check(proxy: Proxy) -> HealthCheckResult:
        host = str(proxy.host)
        now[host] += 1
        most[host] = max(most[host], now[host])
        await asyncio.sleep(0.001)
        now[host] -= 1
        return result_of(proxy)

    proxies = [some_proxy(f"127.0.0.{number % 3 or number % 2}") for number in range(200)]

    async def source() -> AsyncIterator[Proxy]:
        for proxy in proxies:
            yield proxy

    async def run() -> list[Any]:
        checker = checker_of(Strategy(check))
        stream = checker.stream_health_checks(source(), concurrency=20, per_host=3)
        return [result.proxy_id async for result in stream]

    assert Counter(asyncio.run(run())) == Counter(proxy.id for proxy in proxies)
    assert set(most.values()) == {3}


def test_proxies_are_taken_as_they_are_needed() -> None:
    taken = 0

    def source() -> Iterator[Proxy]:
        nonlocal taken
        while True:
            taken += 1
            yield some_proxy()

    async def run() -> None:
        done = 0
        stream = checker_of(Strategy()).stream_health_checks(source(), concurrency=4)
        async with aclosing(stream):
            async for _ in stream:
                done += 1
                assert taken <= done + 3 * 4
                if done == 100:
                    return

    asyncio.run(run())


SILENT = [name for name in HOSTILE if "silent" in name or "drips" in name]


def crowd(zoo: Zoo, size: int, share_of_silent: float, seed: int) -> list[Proxy]:
    """Return proxies that answer, some among them silent at any stage."""
    chance = random.Random(seed)

    def one() -> Proxy:
        if chance.random() >= share_of_silent:
            return zoo.proxy("http-answers", "http")
        name = chance.choice(SILENT)
        kind = name.partition("-")[0]
        spoken = {"tls": "https", "tunnel": "http", "silent": chance.choice(list(ProxyProtocol))}
        return zoo.proxy(name, spoken.get(kind, kind), USER if "password" in name else "")

    return [one() for _ in range(size)]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def is_as_before(files: int) -> bool:
    """Return whether no task and no file is left, once the loop has closed them."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if asyncio.all_tasks() == {asyncio.current_task()} and open_files() == files:
            return True
        await asyncio.sleep(0.001)
    return False


async def warmed_up(zoo: Zoo) -> HealthChecker:
    """Return a checker that has opened what it opens once, with nothing of earlier tests around."""
    gc.collect()
    checker = HealthChecker(ssl_context=zoo.ssl_context())
    await checker.check_proxy(zoo.proxy("http-answers", "http"), QUICK)
    return checker


def options_of(zoo: Zoo, timeout: float) -> HealthCheckOptions:
    target = zoo.target("/ok")
    return HealthCheckOptions.model_validate({"target_url": target, "timeout": timeout})


def test_a_sweep_with_silent_proxies_ends(zoo: Zoo) -> None:
    """Each of 2,000 proxies has one result, and nothing is left."""
    proxies = crowd(zoo, 2000, 0.05, seed=1)

    async def run() -> list[HealthCheckResult]:
        checker = await warmed_up(zoo)
        files = open_files()
        stream = checker.stream_health_checks(proxies, options_of(zoo, 1.0), concurrency=200)
        results = [result async for result in stream]
        assert await is_as_before(files)
        return results

    results = asyncio.run(run())
    assert Counter(r.proxy_id for r in results) == Counter(proxy.id for proxy in proxies)
    failures = Counter(result.failure for result in results)
    assert failures[None] + failures[CheckFailure.TIMEOUT] == 2000, failures
    assert failures[CheckFailure.TIMEOUT] >= 50


async def leaving_nothing(
    zoo: Zoo, sweep: Callable[[HealthChecker], Coroutine[Any, Any, None]]
) -> None:
    """Begin a sweep that ends early. Afterwards no more files are open than before."""
    checker = await warmed_up(zoo)
    files = open_files()
    await sweep(checker)
    assert await is_as_before(files)


@pytest.mark.parametrize("seed", range(8))
def test_leaving_a_sweep_leaves_nothing(zoo: Zoo, seed: int) -> None:
    """After any result, with or without closing the iterator."""
    chance = random.Random(seed)
    proxies = crowd(zoo, 300, 0.5, seed)

    async def leave(checker: HealthChecker) -> None:
        stream = checker.stream_health_checks(proxies, options_of(zoo, 2.0), concurrency=40)
        left = chance.randrange(1, 40)
        async for _ in stream:
            left -= 1
            if not left:
                break
        if seed % 2:
            await stream.aclose()

    asyncio.run(leaving_nothing(zoo, leave))


@pytest.mark.parametrize("seed", range(20))
def test_cancelling_a_sweep_leaves_nothing(zoo: Zoo, seed: int) -> None:
    """At any moment, whatever stage the checks are in."""
    chance = random.Random(seed)
    proxies = crowd(zoo, 300, 0.7, seed)

    async def cancel(checker: HealthChecker) -> None:
        async def sweep() -> None:
            async for _ in checker.stream_health_checks(
                proxies, options_of(zoo, chance.uniform(0.02, 1)), concurrency=60
            ):
                pass

        sweeping = asyncio.create_task(sweep())
        await asyncio.sleep(chance.uniform(0, 0.3))
        sweeping.cancel()
        await asyncio.wait([sweeping])

    asyncio.run(leaving_nothing(zoo, cancel))


@pytest.mark.parametrize("protocol", list(ProxyProtocol))
@pytest.mark.parametrize("target", ["plain", "tls"])
def test_a_check_that_times_out_leaves_nothing(zoo: Zoo, protocol: str, target: str) -> None:
    """No socket waits for the garbage collector, or for the proxy to close it."""

    async def run() -> None:
        checker = await warmed_up(zoo)
        files = open_files()
        for name in SILENT:
            url = zoo.target("/ok") if target == "plain" else zoo.tls_target("/ok")
            options = HealthCheckOptions.model_validate({"target_url": url, "timeout": 0.05})
            await checker.check_proxy(zoo.proxy(name, protocol), options)
            assert open_files() == files, name

    asyncio.run(run())


def test_results_of_a_sweep_come_in_lists(zoo: Zoo) -> None:
    proxies = crowd(zoo, 100, 0, seed=3)

    async def run() -> list[int]:
        sizes = []
        checker = await warmed_up(zoo)
        async for chunk in checker.stream_chunks(proxies, options_of(zoo, 5.0), concurrency=50):
            sizes.append(len(chunk))
            await asyncio.sleep(0.05)
        return sizes

    sizes = asyncio.run(run())
    assert sum(sizes) == 100
    assert len(sizes) < 100


def test_a_result_for_nobody_is_not_passed_on() -> None:
    """Not even within a sweep: the proxy has its own."""
    proxy = some_proxy()

    def forge(asked: Proxy) -> HealthCheckResult:
        return result_of(asked).model_copy(update={"proxy_id": uuid4()})

    async def run() -> list[HealthCheckResult]:
        stream = checker_of(Strategy(forge)).stream_health_checks([proxy])
        return [result async for result in stream]

    (result,) = asyncio.run(run())
    assert (result.proxy_id, result.failure) == (proxy.id, CheckFailure.OTHER)


def test_tiny_pieces_do_not_take_the_time_of_others(zoo: Zoo) -> None:
    """A body in pieces of a byte is waited for up to a number of them, not of bytes."""
    options = options_of(zoo, 30).model_copy(update={"max_body_bytes": 10**9})
    proxy = zoo.proxy("http-tiny-pieces", "http")
    result = asyncio.run(HealthChecker().check_proxy(proxy, options))
    assert (result.status, result.failure) == (ProxyStatus.ACTIVE, None)


def test_names_that_do_not_resolve_keep_no_others_waiting(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver takes seconds over a dead name; the event loop has a handful of threads for it."""
    look_up, over = socket.getaddrinfo, threading.Event()

    def slow_for_dead_names(host: Any, *args: Any, **options: Any) -> Any:
        if str(host).endswith(".dead"):
            over.wait(20)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow_for_dead_names)
    good = zoo.proxy("http-answers", "http")
    dead = [good.model_copy(update={"id": uuid4(), "host": f"p{n}.dead"}) for n in range(60)]
    living = [good.model_copy(update={"id": uuid4(), "host": "localhost"}) for _ in range(60)]

    async def sweep() -> Counter[tuple[bool, CheckFailure | None]]:
        stream = HealthChecker().stream_health_checks([*dead, *living], options_of(zoo, 3))
        names = {proxy.id for proxy in living}
        return Counter([(r.proxy_id in names, r.failure) async for r in stream])

    found = asyncio.run(sweep())
    over.set()
    assert found == {(False, CheckFailure.TIMEOUT): 60, (True, None): 60}


def test_too_few_sockets_end_a_sweep_and_blame_no_proxy(zoo: Zoo) -> None:
    """A result would make proxies inactive that nobody has tried."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 20, hard))
    try:

        async def sweep() -> None:
            proxies = [zoo.proxy("silent", protocol) for protocol in ("http", "socks5") * 50]
            async for _ in HealthChecker().stream_health_checks(proxies, options_of(zoo, 30)):
                pytest.fail("a silent proxy has no result before its time is up")

        with pytest.raises(OutOfResourcesError):
            asyncio.run(sweep())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
