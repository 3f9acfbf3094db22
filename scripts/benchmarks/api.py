"""The API for workers in other languages: 64 clients of one `pharox api`, on a Unix socket.

Each client keeps a connection, acquires, and releases, as fast as it goes. They run in two
processes and write bytes, so that they cost little: server, ledger and clients share the machine's
cores. The same with tasks of one process, without HTTP, stands beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

import pharox
from pharox import ApiToken
from scripts.benchmarks import core_callers, goals
from scripts.benchmarks.health_process import in_new_process
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import new_ledger, processor_s, settled

CLIENTS, PROCESSES, PROXIES = 64, 2, 100
_PATIENCE_S = 60

LINES = (
    Line("cycles over HTTP", "cycles", goal=goals.API_RATE),
    Line("cycles of 64 tasks of one process", "tasks"),
    Line("  over HTTP, of that", "cycles", "times", per="tasks"),
    Line("a cycle, p50", "p50", "ms"),
    Line("a cycle, p99", "p99", "ms"),
    Line("processor time of a cycle: the API's process", "api", "ms"),
    Line("  the ledger's server", "server", "ms"),
    Line("  the clients", "clients", "ms"),
    Line("  64 tasks of one process: theirs", "tasks cpu", "ms"),
    Line("requests that failed", "errors", "", goal=goals.NO_ERRORS),
)


def prepare(bench: Bench) -> list[Part]:
    """Return the part that leases over HTTP, and with tasks."""
    seconds = max(bench.seconds, 3.0)

    def measure() -> Figures:
        url = new_ledger(bench.url, "api", {"pool": PROXIES})
        token, text = ApiToken.draw("worker")
        with closing(pharox.connect(url)) as storage:
            storage.add_api_token(token)
        settled(url)
        found = over_http(url, text, seconds)
        tasks = in_new_process(core_callers.tasks, url, "pool", CLIENTS, seconds)
        return {**found, "tasks": tasks.rate, "tasks cpu": tasks.cpu_ms}

    return [Part("api", {"1. 64 clients of one process": LINES}, measure)]


def over_http(url: str, token: str, seconds: float) -> Figures:
    """Return what clients of a server of its own measure."""
    with tempfile.TemporaryDirectory() as folder, served(url, Path(folder) / "api.sock") as api:
        socket = str(Path(folder) / "api.sock")
        each = str(CLIENTS // PROCESSES)
        command = [sys.executable, "-m", "scripts.benchmarks.api_clients", socket, token, "pool"]
        with ExitStack() as until_the_end:
            clients = [
                until_the_end.enter_context(
                    subprocess.Popen(
                        [*command, each, str(seconds)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for _ in range(PROCESSES)
            ]
            for client in clients:
                assert client.stdout is not None
                assert client.stdout.readline() == "ready\n"
            server_s, api_s, began = processor_s(url), _spent_s(api), time.monotonic()
            for client in clients:
                assert client.stdin is not None
                client.stdin.write("go\n")
                client.stdin.flush()
            told: list[dict[str, Any]] = [json.loads(client.communicate()[0]) for client in clients]
            passed = time.monotonic() - began
            server_s, api_s = processor_s(url) - server_s, _spent_s(api) - api_s
    cycles = sum(each["cycles"] for each in told)
    return {
        "cycles": cycles / min(passed, seconds + 1),
        "errors": sum(each["errors"] for each in told),
        "p50": max(each["p50_ms"] for each in told),
        "p99": max(each["p99_ms"] for each in told),
        "api": 1000 * api_s / cycles,
        "server": 1000 * server_s / cycles,
        "clients": 1000 * sum(each["cpu_s"] for each in told) / cycles,
    }


@contextmanager
def served(url: str, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``pharox api`` for a block."""
    program = Path(sys.executable).with_name("pharox")
    process = subprocess.Popen(
        [str(program), "api", "--uds", str(socket)],
        env={**os.environ, "PHAROX_DATABASE_URL": url},
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + _PATIENCE_S
    while not socket.exists() and time.monotonic() < until:
        time.sleep(0.05)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _spent_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)
