"""The web application of ``scripts/gunicorn_demo``: each request leases a proxy for a moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pharox

storage = pharox.connect(os.environ["PHAROX_DATABASE_URL"])
manager = pharox.ProxyManager(storage)
pharox.register_prometheus_metrics(manager)


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the proxy that was leased and the worker's pid."""
    with manager.with_lease("demo", "web", duration_seconds=30, wait_seconds=5) as lease:
        start("200 OK" if lease else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [f"{lease and lease.proxy_id} {os.getpid()}\n".encode()]
