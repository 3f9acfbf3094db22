"""The PostgreSQL servers that the suite runs on: real ones, made for the run.

With PHAROX_DATABASE_URL set, that server and no other. Else the embedded one,
and beside it each version whose binaries the system has: those run what another
version could answer otherwise (:data:`ON_EVERY`), the first one runs everything.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg

from pharox.connecting import embedded

_SERVER_USERS = ("postgres", "pgserver")
SYSTEM_BINARIES = Path("/usr/lib/postgresql")
ON_EVERY = (
    *("database", "properties", "test_contract.py"),
    *(f"leasing/test_{name}.py" for name in ("limits", "sets", "sticky", "targets", "waiting")),
    *(f"ledger/test_{name}.py" for name in ("archive", "rebuild", "subscription")),
)
"""Below ``tests``, what runs on every server, unless it is marked as stress or one_server."""

# What the tests need of a server is its behaviour, not that it survives a power cut.
_SPEED = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_wal_size": "256MB",
}

_MEMORY = Path("/dev/shm")
_ROOM = 6 * 2**30
"""Of four processes, each with a server of two versions."""


def names() -> list[str]:
    """Return the servers to run on, each by a name for the test's id."""
    if os.environ.get("PHAROX_DATABASE_URL"):
        return ["given"]
    system = sorted(p.parents[1].name for p in SYSTEM_BINARIES.glob("*/bin/initdb"))
    return ["embedded", *(f"system-{version}" for version in system if int(version) >= 14)]


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for a server's data, for a block: in memory, if there is room.

    Most tests copy a database of their own. That is some 300 files, which are made and removed
    twenty times faster in memory than on a disk.
    """
    has_room = (
        os.access(_MEMORY, os.W_OK)
        and shutil.disk_usage(_MEMORY).free > _ROOM
        and psutil.virtual_memory().available > _ROOM
    )
    place = _MEMORY if has_room else None
    return tempfile.TemporaryDirectory(prefix="pharox-test-", dir=place, ignore_cleanup_errors=True)


@contextmanager
def running(name: str) -> Iterator[str]:
    """Run a server by one of :func:`names` and yield the URL of its first database."""
    if name == "given":
        yield os.environ["PHAROX_DATABASE_URL"]
        return
    with new_folder() as folder:
        if name == "embedded":
            yield from _embedded(Path(folder))
        else:
            binaries = SYSTEM_BINARIES / name.removeprefix("system-") / "bin"
            yield from _cluster(binaries, Path(folder))


def _embedded(folder: Path) -> Iterator[str]:
    server = embedded.start(folder)
    url = server.url.replace("+psycopg", "")
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            for name, value in _SPEED.items():
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")
        yield server.url
    finally:
        server.close()


def _cluster(binaries: Path, folder: Path) -> Iterator[str]:
    user = _unprivileged_user()
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run(
            command, user=user, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    run(f"{binaries}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8")
    speed = " ".join(f"-c {name}={value}" for name, value in _SPEED.items())
    options = f"-c listen_addresses= -k {folder} -c max_connections=300 {speed}"
    log = str(folder / "log")
    # A daemon that inherits our pipes would keep pg_ctl's caller waiting for their end.
    start = [f"{binaries}/pg_ctl", "-w", "-D", str(data), "-l", log, "-o", options, "start"]
    subprocess.run(
        start,
        user=user,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        run(f"{binaries}/pg_ctl", "-w", "-D", str(data), "-m", "immediate", "stop")


def _unprivileged_user() -> str | None:
    """Return whom to run PostgreSQL as: it refuses root, so somebody else if we are root."""
    if os.geteuid() != 0:
        return None
    return next(entry.pw_name for entry in pwd.getpwall() if entry.pw_name in _SERVER_USERS)
