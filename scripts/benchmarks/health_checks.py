"""Check proxies as fast as possible, with the pharox of this environment, or with none.

    health_checks.py kept|fresh|stream <<< '{"target": URL, "proxies": [URL, ...], ...}'

``kept`` is httpx with a client for each proxy that keeps its connections,
``fresh`` is httpx with a client for each check, ``stream`` is pharox. A pharox without a bound gets
``at_once`` proxies at a time. All stops after ``patience_s``. Prints one JSON object: seconds, and
the number of checks by result.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

TIMEOUT_S = 5

Found = Counter[str]
Run = Callable[[Found], Coroutine[Any, Any, None]]
"""Checks all that there is, and counts what it finds as it finds it."""


def kept(target: str, proxies: Sequence[str], at_once: int) -> Run:
    open_client = _opening()
    clients = {proxy: open_client(proxy) for proxy in dict.fromkeys(proxies)}

    async def check(proxy: str) -> httpx.Response:
        return await clients[proxy].get(target)

    return lambda found: _working(check, proxies, at_once, found)


def fresh(target: str, proxies: Sequence[str], at_once: int) -> Run:
    open_client = _opening()

    async def check(proxy: str) -> httpx.Response:
        async with open_client(proxy) as client:
            return await client.get(target)

    return lambda found: _working(check, proxies, at_once, found)


def _opening() -> Callable[[str], httpx.AsyncClient]:
    trusted = httpx.create_ssl_context()
    return lambda proxy: httpx.AsyncClient(
        proxy=proxy, verify=trusted, timeout=TIMEOUT_S, trust_env=False
    )


async def _working(
    check: Callable[[str], Awaitable[httpx.Response]],
    proxies: Sequence[str],
    at_once: int,
    found: Found,
) -> None:
    waiting = iter(proxies)

    async def work() -> None:
        for proxy in waiting:
            answer = await check(proxy)
            found["active" if answer.is_success else "inactive"] += 1

    await asyncio.gather(*(work() for _ in range(at_once)))


def stream(target: str, proxies: Sequence[str], at_once: int) -> Run:
    from pharox import HealthChecker, HealthCheckOptions

    pool_id = uuid4()
    models = {url: _proxy(url, pool_id) for url in dict.fromkeys(proxies)}
    asked = [models[url] for url in proxies]
    options = HealthCheckOptions.model_validate({"target_url": target, "timeout": TIMEOUT_S})
    checker = HealthChecker()

    async def run(found: Found) -> None:
        async for result in _results(checker, asked, options, at_once):
            found[result.status.value] += 1

    return run


def _proxy(url: str, pool_id: Any) -> Any:
    from pharox import Proxy

    parts = urlsplit(url)
    facts = {"host": parts.hostname, "port": parts.port, "protocol": parts.scheme}
    return Proxy.model_validate({**facts, "pool_id": pool_id})


async def _results(
    checker: Any, proxies: Sequence[Any], options: Any, at_once: int
) -> AsyncIterator[Any]:
    check = checker.stream_health_checks
    if "concurrency" in inspect.signature(check).parameters:
        async for result in check(proxies, options, concurrency=at_once):
            yield result
    else:
        for first in range(0, len(proxies), at_once):
            async for result in check(proxies[first : first + at_once], options):
                yield result


def main() -> None:
    prepare = {"kept": kept, "fresh": fresh, "stream": stream}[sys.argv[1]]
    task = json.load(sys.stdin)
    patience_s = task.pop("patience_s")
    run = prepare(**task)
    found: Found = Counter()
    began = time.perf_counter()

    def tell(*_: object) -> None:
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "found": found}), flush=True)
        os._exit(0)  # what is still at work may not let go

    # Not a timeout of the loop's: it would wait for its turn.
    signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    asyncio.run(run(found))
    tell()


if __name__ == "__main__":
    main()
