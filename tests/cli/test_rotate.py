"""``pharox rotate PROXY``, ``pools set --rotate``, links in lists, and ``pharox sweep``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pharox import RotationPolicy
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest

from .conftest import Pharox

SECRET = "hunter2"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/ok") else 500)
        self.end_headers()
        self.wfile.write(b'{"ip": "203.0.113.7"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """A provider on loopback, whose path /ok gives another exit."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def mobile(pharox: Pharox, storage: PostgresStorage, provider: str) -> Pharox:
    """The command, with a mobile proxy in the ledger."""
    record = {"proxy": "http://192.0.2.1:8000", "rotation_link": f"{provider}/ok?k={SECRET}"}
    assert pharox("import", "-", "--pool", "mobile", stdin=json.dumps([record])).status == 0
    return pharox


def test_a_proxy_takes_another_exit(mobile: Pharox, tmp_path: Path, provider: str) -> None:
    """It is imported from a list, and its link is shown nowhere."""
    (listed,) = mobile("proxies", "mobile", "--json").objects
    assert (listed["rotates"], listed["rotate_url"]) == (True, None)
    rotated = mobile("rotate", "192.0.2.1:8000")
    assert (rotated.status, "has another exit, 203.0.113.7" in rotated.out) == (0, True)
    assert mobile("rotate", listed["id"], "--json").objects[0]["rotated"] is True
    link = tmp_path / "link"
    link.write_text(f"{provider}/down?k={SECRET}\n")
    assert mobile("proxies", "set", listed["id"], "--rotate-url-file", link).status == 0
    failed = mobile("rotate", listed["id"], "--within", "1s")
    assert (failed.status, "its link answered 500" in failed.out) == (1, True)
    story = mobile("audit", "proxy", "192.0.2.1:8000").out + mobile("log").out
    assert "gave no other exit (refused with 500): it keeps the one that it has" in story
    assert SECRET not in story + failed.out + failed.err + rotated.out
    link.write_text("\n")
    assert mobile("proxies", "set", listed["id"], "--rotate-url-file", link).status == 0
    without = mobile("rotate", listed["id"])
    assert (without.status, "has no rotate_url" in without.err) == (2, True)


def test_a_pool_says_when(mobile: Pharox, storage: PostgresStorage) -> None:
    """What a sweep finds due is called; without a policy nothing is."""
    assert mobile("pools", "set", "mobile", "--rotate", "within=60s").status == 2
    assert mobile("pools", "set", "mobile", "--rotate", "on=release,settle=0s").status == 0
    assert mobile("pools", "set", "mobile", "--rotate", "every=4m").status == 0
    (pool,) = storage.list_pools()
    assert pool.rotation == RotationPolicy(on="release", every_seconds=240)
    assert "on=release,within=60s,every=240s" in mobile("pools").out
    lease = storage.acquire_lease(AcquireRequest("mobile", "w", 60)).lease
    assert lease is not None
    storage.return_lease(lease)
    missed = mobile("acquire", "mobile")
    assert (missed.status, "rests until it has another exit" in missed.err) == (75, True)
    swept = mobile("sweep", "mobile", "--target", "http://127.0.0.1:1/", "--timeout", "1s")
    assert "1 of 1 link gave another exit" in swept.err
    again = mobile("rotate", "192.0.2.1:8000")
    assert (again.status, "may be called again in" in again.err) == (1, True)
    assert mobile("pools", "set", "mobile", "--no-rotate").status == 0
    assert storage.list_pools()[0].rotation is None
    both = mobile("pools", "set", "mobile", "--no-rotate", "--rotate", "on=release")
    assert both.status == 2


def test_what_is_no_lease_and_no_proxy(pharox: Pharox, storage: PostgresStorage) -> None:
    unknown = pharox("rotate", "6f1c7a52-5b0e-4c39-9d2e-0a6f2f6f2b11")
    assert (unknown.status, "no lease and no proxy" in unknown.err) == (1, True)
    assert pharox("rotate", "192.0.2.9:1").status == 1
