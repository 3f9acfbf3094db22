"""``scripts/health_sweep.py``: a sweep in a program of one's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from pharox import ProxyManager, ProxyStatus
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, run_python
from tests.health.zoo import running_zoo

SCRIPT = Path(__file__).parents[1] / "scripts" / "health_sweep.py"


def run(
    database_url: str, *arguments: str, check_url: str = "http://target.example/"
) -> subprocess.CompletedProcess[str]:
    return run_python(
        str(SCRIPT),
        *arguments,
        PHAROX_DATABASE_URL=database_url,
        PHAROX_SECRET_KEY=SECRET_KEY,
        PHAROX_CHECK_URL=check_url,
    )


def test_it_is_short_and_can_be_run() -> None:
    """One would copy it."""
    assert os.access(SCRIPT, os.X_OK)
    assert len(SCRIPT.read_text().splitlines()) < 60


def test_it_tells_whose_proxy_dropped_out(postgres: PostgresStorage, database_url: str) -> None:
    """Each with its leases; then the sums. A second sweep has nothing new to tell."""
    pool, _ = fill(postgres, 0)
    with running_zoo() as zoo:
        good, closing, refusing = (
            zoo.proxy(name, protocol).model_copy(
                update={"id": uuid4(), "pool_id": pool.id, "status": ProxyStatus.ACTIVE}
            )
            for name, protocol in (
                ("pproxy-socks5", "socks5"),
                ("http-closes", "http"),
                ("socks5-error-5", "socks5"),
            )
        )
        postgres.add_proxies_bulk([closing])
        lease = ProxyManager(postgres).acquire_proxy("pool")
        assert lease is not None
        postgres.add_proxies_bulk([good, refusing])
        first, second = (run(database_url, "pool", zoo.target("/ok")) for _ in "12")
    assert (first.returncode, first.stderr) == (0, "")
    *dropped, sums = first.stdout.splitlines()
    assert sorted(dropped) == sorted(
        [
            f"{closing.id} dropped out (disconnected); leases: {lease.id}",
            f"{refusing.id} dropped out (handshake); leases: none",
        ]
    )
    assert sums == "3 checked: 2 inactive, 1 active; 0 came back"
    assert second.stdout == f"{sums}\n"


@pytest.mark.parametrize(("pool", "status"), [("pool", 0), ("nope", 1)])
def test_it_says_what_it_could_not_do(
    postgres: PostgresStorage, database_url: str, pool: str, status: int
) -> None:
    """Nothing due is no failure, an unknown pool is one."""
    fill(postgres, 0)
    done = run(database_url, pool)
    assert done.returncode == status
    told = ("0 checked: none was due; 0 came back\n", "")
    assert (done.stdout, done.stderr) == (
        told if status == 0 else ("", "health_sweep.py: Pool 'nope' not found.\n")
    )


def test_it_asks_no_public_site(postgres: PostgresStorage, database_url: str) -> None:
    """Without a target it says how to give one."""
    fill(postgres)
    done = run(database_url, "pool", check_url="")
    assert (done.returncode, done.stdout) == (1, "")
    assert "TARGET" in done.stderr
    assert "PHAROX_CHECK_URL" in done.stderr
