"""``pharox run``: a command has a proxy in its environment, and its lease while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pharox import LeaseStatus, ProxyCredentials
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, types_of
from tests.ledger.following import until

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


@contextmanager
def running(database_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``pharox run`` as a process of its own."""
    environment = {
        **os.environ,
        "PHAROX_DATABASE_URL": database_url,
        "PHAROX_SECRET_KEY": SECRET_KEY,
    }
    program = "import sys; from pharox.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", program, "run", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(database_url: str, *arguments: str) -> tuple[int, str, str]:
    """Run ``pharox run`` to its end; return its status and what it printed."""
    with running(database_url, *arguments) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def test_the_command_has_the_proxy(storage: PostgresStorage, database_url: str) -> None:
    """Its environment has the URL under the usual names, and the lease; then it is released."""
    _, (proxy,) = fill(
        storage, credentials=ProxyCredentials.model_validate({"user": "ann", "password": "s3"})
    )
    status, out, _ = finished(
        database_url, "pool", "--consumer", "nightly", "--", sys.executable, "-c", SHOW
    )
    found: dict[str, Any] = json.loads(out)
    assert status == 0
    url = storage.get_proxy(str(proxy.id)).url
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        assert found[name] == found[name.lower()] == url
    lease = storage.get_lease(found["PHAROX_LEASE_ID"])
    assert lease is not None
    assert (lease.status, lease.consumer_name) == (LeaseStatus.RELEASED, "nightly")
    assert found["PHAROX_FENCING_TOKEN"] == str(lease.fencing_token)


def test_the_lease_is_kept(storage: PostgresStorage, database_url: str) -> None:
    """A command may take longer than its lease."""
    fill(storage)
    sleep = "import time; time.sleep(3)"
    status, _, _ = finished(
        database_url, "pool", "--duration", "1", "--", sys.executable, "-c", sleep
    )
    types = types_of(storage)
    assert status == 0
    assert types.count("LeaseRenewed") >= 5
    assert types[-1] == "LeaseReleased"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ((sys.executable, "-c", "import sys; sys.exit(7)"), 7),
        ((sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), 137),
        (("no-such-command-of-ours",), 127),
        (("/",), 126),
    ],
)
def test_the_exit_status_is_the_commands(
    storage: PostgresStorage, database_url: str, command: tuple[str, ...], expected: int
) -> None:
    """As a shell tells it, also if it cannot be started; the lease is released in any case."""
    fill(storage)
    status, _, err = finished(database_url, "pool", "--", *command)
    assert status == expected
    assert types_of(storage)[-1] == "LeaseReleased"
    assert "Traceback" not in err


def test_signals_are_passed_on(storage: PostgresStorage, database_url: str, tmp_path: Path) -> None:
    """The command ends as it likes, and then the lease is released."""
    fill(storage)
    ready = tmp_path / "ready"
    command = (
        "import signal, sys, time, pathlib;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5));"
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    with running(database_url, "pool", "--", sys.executable, "-c", command) as process:
        until(ready.exists, 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
    assert types_of(storage)[-1] == "LeaseReleased"


def test_a_lost_lease_ends_the_command(
    storage: PostgresStorage, database_url: str, tmp_path: Path
) -> None:
    """Somebody else may use the proxy: status 75, and a sentence that says why."""
    fill(storage)
    ready = tmp_path / "ready"
    command = f"import time, pathlib; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    arguments = ("pool", "--duration", "2", "--", sys.executable, "-c", command)
    with running(database_url, *arguments) as process:
        until(ready.exists, 30)
        (lease,) = [x for x in storage.list_leases() if x.status is LeaseStatus.ACTIVE]
        storage.release_lease(lease)
        begun = time.monotonic()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 75
        assert time.monotonic() - begun < 20
    assert f"Lease {lease.id} was released at" in err


def test_a_miss_starts_nothing(storage: PostgresStorage, database_url: str) -> None:
    """It says why, and ends with 1; a lease that makes no sense as well."""
    fill(storage, 0)
    command = ("--", sys.executable, "-c", "print('started')")
    assert finished(database_url, "pool", *command)[:2] == (1, "")
    status, out, err = finished(database_url, "nowhere", *command)
    assert (status, out) == (1, "")
    assert "no pool is named 'nowhere'" in err
    assert finished(database_url, "pool", "--duration", "0", *command)[0] == 2
    assert finished(database_url, "pool")[0] == 2
