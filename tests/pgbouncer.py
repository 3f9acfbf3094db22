"""PgBouncer in transaction mode before one of the run's servers: no session lasts behind it.

Debian's 1.18 also knows no prepared statements, so what works through it does
without them. The fixture ``pooled_url`` skips its test where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import Engine, create_engine, make_url

_PORT = 6432  # a socket's name in its own folder
BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def pooled_engine(url: str) -> Engine:
    """Return an engine as one makes it for such a URL: without prepared statements."""
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        connect_args={"prepare_threshold": None},
        hide_parameters=True,
    )


@contextmanager
def in_front_of(url: str, mode: str = "transaction", **settings: object) -> Iterator[str]:
    """Run PgBouncer before a database for a block and yield the URL through it.

    ``settings`` are further lines of its configuration.
    """
    parsed = make_url(url)
    host = str(parsed.query.get("host") or parsed.host)
    target = {
        "host": host,
        "port": parsed.port or 5432,
        "dbname": parsed.database,
        "user": parsed.username,
        "password": parsed.password,
    }
    entry = " ".join(f"{name}={value}" for name, value in target.items() if value is not None)
    with tempfile.TemporaryDirectory(prefix="pharox-test-") as name:
        folder = Path(name)
        known = {
            "pool_mode": mode,
            "auth_type": "any",
            "max_client_conn": 200,
            "default_pool_size": 20,
            "listen_addr": "",
            "listen_port": _PORT,
            "unix_socket_dir": folder,
            **settings,
        }
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n{parsed.database} = {entry}\n"
            "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in known.items())
        )
        owner = _owner_of_socket(host)
        if owner is not None:
            shutil.chown(folder, owner)
        with (folder / "log").open("wb") as log:
            bouncer = subprocess.Popen(
                [str(BINARY), str(folder / "pgbouncer.ini")],
                user=owner,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            query = {"host": str(folder), "port": str(_PORT)}
            pooled = parsed.set(host=None, port=None, password=None, query=query)
            _wait_until_it_answers(pooled.render_as_string(hide_password=False), folder / "log")
            yield pooled.render_as_string(hide_password=False)
        finally:
            bouncer.terminate()
            bouncer.wait(timeout=10)


def _owner_of_socket(host: str) -> int | None:
    """Return whom to run PgBouncer as: it refuses root, and must reach the server's socket."""
    if os.geteuid() != 0:
        return None
    return os.stat(host).st_uid or 65534 if host.startswith("/") else 65534


def _wait_until_it_answers(url: str, log: Path) -> None:
    plain = url.replace("+psycopg", "")
    deadline = time.monotonic() + 10
    while True:
        try:
            psycopg.connect(plain).close()
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise AssertionError(log.read_text()) from error
            time.sleep(0.05)
        else:
            return
