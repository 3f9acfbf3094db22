"""``pharox api`` as a process, on a Unix socket and on a port, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from pharox import InvalidInputError, bootstrap_proxy
from pharox.api.http_protocol import MAX_HEADER_BYTES
from pharox.api.serving import unix_socket, unix_socket_for_a_time
from pharox.storage.postgres import PostgresStorage
from tests.api.conftest import BASE, ROOT, Headers, token_of
from tests.conftest import fill
from tests.ledger.following import until

URL = f"{BASE}{ROOT}"
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "api"


@contextmanager
def served(
    postgres: PostgresStorage, *options: str, command: str = "api"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``pharox api``, or another command, for a block.

    Yields the process, and the line that it says when it is ready.
    """
    url = postgres.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("pharox")), command, *options],
        env={**os.environ, "PHAROX_DATABASE_URL": url},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "serving" in line:
                break
        else:
            raise AssertionError(f"it ended with {process.wait()}")
        yield process, line
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def over(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=30)


def sent(path: Path, headers: Headers, body: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Send an acquisition from a process of its own, which then waits for the answer."""
    content = json.dumps(body)
    lines = (f"POST {ROOT}/acquire HTTP/1.1", "Host: x", f"Content-Length: {len(content)}")
    text = "\r\n".join([*lines, *(f"{key}: {each}" for key, each in headers.items()), "", content])
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.argv[2].encode()); print(s.recv(100000), flush=True); s.recv(1)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path), text], stdout=subprocess.PIPE
    )


def test_on_a_unix_socket(postgres: PostgresStorage, tmp_path: Path) -> None:
    """Clients and the server are killed, and each lease is somebody's or nobody's."""
    fill(postgres, 1, name="a", max_concurrency=1)
    headers, path = token_of(postgres), tmp_path / "api.sock"
    asked = {"pool": "a", "lease_id": str(uuid4())}

    def held() -> int:
        stats = postgres.get_pool_stats("a")
        assert stats is not None
        return stats.total_leases

    def waiting() -> int:
        return sum(each.waiting for each in postgres.queue_stats())

    with served(postgres, "--uds", str(path), "--uds-mode", "600") as (server, _):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(InvalidInputError, match="listens"):
            unix_socket(path, 0o600)
        with over(path) as client:
            assert client.post(f"{URL}/acquire", json=asked).status_code == 401
            # A client that is killed after the answer lets its lease run out.
            holder = sent(path, headers, {"pool": "a", "lease_seconds": 2})
            assert holder.stdout is not None
            assert b"201 Created" in holder.stdout.readline()
            holder.kill()
            # One that is killed while it waits gives up its place.
            waiter = sent(path, headers, {"pool": "a", "wait_seconds": 60})
            until(lambda: waiting() == 1)
            waiter.kill()
            until(lambda: waiting() == 0)
            patient = {**asked, "wait_seconds": 30}
            granted = client.post(f"{URL}/acquire", json=patient, headers=headers)
            assert granted.status_code == 201
            assert held() == 1
            for process in (holder, waiter):
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
        server.kill()
        server.wait()
    with served(postgres, "--uds", str(path)) as (server, _):  # In place of what the other left.
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with over(path) as client:
            again = client.post(f"{URL}/acquire", json=asked, headers=headers)
            assert (again.status_code, again.json()) == (200, granted.json())
            waiter = sent(path, headers, {"pool": "a", "wait_seconds": 60})
            until(lambda: waiting() == 1)
            server.send_signal(signal.SIGTERM)
            assert waiter.stdout is not None
            assert b"503 Service" in waiter.stdout.readline()
            assert server.wait(30) == 0
            waiter.kill()
            waiter.wait()
            waiter.stdout.close()
    assert not path.exists()
    assert (held(), waiting()) == (1, 0)


def test_on_a_port(postgres: PostgresStorage) -> None:
    """With its metrics beside it; what is no HTTP, or too large, is refused."""
    fill(postgres, 1, name="a")
    pool, _ = fill(postgres, 0, name="residential")
    bootstrap_proxy(postgres, pool=pool, host="127.0.0.1", port=1)  # nothing listens there
    headers = token_of(postgres)
    with served(postgres, "--port", "0", "--metrics-port", "0") as (_, line):
        url = re.search(r"http://127\.0\.0\.1:(\d+)/api/v1", line)
        assert url is not None
        curl = shutil.which("curl")
        if curl is not None:
            header = f"Authorization: {headers['Authorization']}"
            command = [curl, "-s", "-H", header, "-d", '{"pool": "a"}', f"{url[0]}/acquire"]
            answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            assert answer["status"] == "active"
        for request, status in (
            (b"nonsense\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\nx: " + b"y" * 2 * MAX_HEADER_BYTES, b"431"),
            (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * MAX_HEADER_BYTES, b"431"),
            (b"POST /api/v1/acquire HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"400"),
        ):
            with socket.create_connection(("127.0.0.1", int(url[1])), timeout=30) as connection:
                connection.sendall(request)
                assert connection.recv(100).split()[1] == status
        assert httpx.get(f"{url[0]}/openapi.json").json()["openapi"] == "3.1.0"
        bearer = headers["Authorization"].removeprefix("Bearer ")
        environment = {**os.environ, "PHAROX_API": url[0], "PHAROX_TOKEN": bearer}
        for program, example in (("curl", "lease.sh"), ("node", "lease.mjs"), ("go", "lease.go")):
            if shutil.which(program) is not None:
                run_example(program, EXAMPLES / example, environment)


def test_the_console_serves_it_too(postgres: PostgresStorage) -> None:
    """Below itself, and under the prefix of a reverse proxy, which takes the prefix off."""
    options = ("--api", "--port", "0", "--prefix", "/ops")
    with served(postgres, *options, command="console") as (server, line):
        found = re.search(r"(http://127\.0\.0\.1:\d+)/ops/", line)
        assert found is not None
        assert 'href="/ops/' in httpx.get(f"{found[1]}/").text
        described = httpx.get(f"{found[1]}{ROOT}/openapi.json").json()
        assert described["servers"] == [{"url": "/ops"}]
        assert httpx.post(f"{found[1]}{ROOT}/acquire", json={"pool": "a"}).status_code == 401
        assert httpx.get(found[1], headers={"x": "y" * 40_000}).status_code == 431
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def run_example(program: str, example: Path, environment: dict[str, str]) -> None:
    """Run an example of the page: it leases, and gives the lease back."""
    command = {"curl": ["bash"], "node": ["node"], "go": ["go", "run"]}[program]
    done = subprocess.run(
        [*command, str(example), "http://shop.example/"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["released"], done.stdout + done.stderr


def test_a_path_that_is_taken_is_refused(tmp_path: Path) -> None:
    """A file stays as it is, and a folder that is not there is told of."""
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InvalidInputError, match="no socket"):
        unix_socket(file, 0o600)
    with pytest.raises(InvalidInputError, match="cannot be listened at"):
        unix_socket(tmp_path / "nowhere" / "x", 0o600)
    assert file.read_text() == "x"


def test_a_successor_keeps_its_socket(tmp_path: Path) -> None:
    """A server that ends removes its own socket, and not the one that replaced it meanwhile."""
    path = tmp_path / "x"
    with unix_socket_for_a_time(path, 0o600):
        assert path.is_socket()
    assert not path.exists()
    with unix_socket_for_a_time(path, 0o600) as old:
        old.close()  # As uvicorn does before its requests have ended.
        with unix_socket(path, 0o600):
            os.utime(path, ns=(1, 1))  # Another moment than the first one's.
    assert path.is_socket()
