"""The web application of these tests: it counts, leases, and notes each request in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from threading import Timer
from typing import Any

from prometheus_client import Counter, Gauge

from pharox import InMemoryStorage, ProxyManager, bootstrap_pool, bootstrap_proxy
from pharox.observability import register_prometheus_metrics

HITS = Counter("app_hits", "Requests that the application saw.", ["path"])
ALIVE = Gauge("app_alive", "Processes of the application.", multiprocess_mode="livesum")

_noted = os.open(os.environ["NOTED"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
_storage = InMemoryStorage()
_manager = ProxyManager(_storage)
register_prometheus_metrics(_manager)
bootstrap_proxy(
    _storage,
    pool=bootstrap_pool(_storage, name="shop"),
    host="127.0.0.1",
    port=9,
    max_concurrency=None,
)


_scarce = bootstrap_pool(_storage, name="scarce")
bootstrap_proxy(_storage, pool=_scarce, host="127.0.0.1", port=9, max_concurrency=1)


def take_turns() -> None:
    """Wait for a proxy that is given back meanwhile."""
    held = _manager.acquire_proxy("scarce")
    assert held is not None
    timer = Timer(0.05, _manager.release_proxy, [held])
    timer.start()
    with _manager.with_lease("scarce", wait_seconds=30) as lease:
        assert lease is not None
    timer.join()


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with this worker's pid."""
    path = environ["PATH_INFO"]
    os.write(_noted, f"{path}\n".encode())
    HITS.labels(path).inc()
    ALIVE.set(1)
    if path.startswith("/lease"):
        with _manager.with_lease("shop", environ["QUERY_STRING"] or "web") as lease:
            assert lease is not None
    if path == "/wait":
        take_turns()
    if path == "/error":
        raise ValueError("the application failed")
    start("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
