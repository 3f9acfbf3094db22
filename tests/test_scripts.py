"""The scripts that a stranger runs first: they do what they say, and say what they could not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from scripts.lib.check_lock import complaints
from tests.conftest import run_python

ROOT = Path(__file__).parents[1]
PYPROJECT = {
    "build-system": {"requires": ["hatchling>=1.27"]},
    "project": {
        "name": "pharox",
        "dependencies": ["httpx>=0.28"],
        "optional-dependencies": {"cli": ["Typer>=0.20"], "all": ["pharox[cli]"]},
    },
    "dependency-groups": {"dev": ["proxy.py>=2"]},
}
LOCK = """# Written by a script.
hatchling==1.30 \\
    --hash=sha256:00
    # via pharox (pyproject.toml:dev)
httpx==0.28.1 ; python_version < '4' \\
    --hash=sha256:01 \\
    --hash=sha256:02
proxy-py==2.4.10 \\
    --hash=sha256:03
typer==0.29.2 \\
    --hash=sha256:04
"""


def demo(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo in this environment, without installing another."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PHAROX_")}
    return subprocess.run(
        [sys.executable, "-m", "scripts.lib.demo"],
        cwd=ROOT,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_gunicorn_and_the_ledger_count_the_same() -> None:
    """The demo of a web application: a worker is killed, and no lease is missing in the scrape."""
    told = run_python("-m", "scripts.lib.gunicorn_demo", timeout_s=300)
    assert told.returncode == 0, told.stdout + told.stderr
    counts = re.search(
        r"Answered: 30\. Leases in the scrape: (\d+), in the ledger: (\d+)\.", told.stdout
    )
    assert counts is not None, told.stdout
    # The worker that is killed may have leased for a request whose answer it took along.
    assert counts[1] == counts[2]
    assert int(counts[1]) in (30, 31)
    assert 'gunicorn_worker_restarts_total{instance="' in told.stdout


class TestDemo:
    def test_it_holds_without_any_server(self) -> None:
        """With nothing set, the demo makes its own PostgreSQL, and everything it claims holds."""
        done = demo()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Everything held" in done.stdout
        assert "NO  " not in done.stdout

    def test_it_holds_on_a_given_server_and_leaves_nothing(self, empty_database_url: str) -> None:
        """On PHAROX_DATABASE_URL it uses a schema of its own, and drops it."""
        done = demo(PHAROX_DATABASE_URL=empty_database_url)
        assert done.returncode == 0, done.stdout + done.stderr
        url = make_url(empty_database_url).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
            query = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pharox%'"
            assert connection.execute(query).fetchone() == (0,)

    def test_it_says_why_it_cannot_go_on(self) -> None:
        """Without its server the demo ends with 1 and a sentence, not with a traceback."""
        done = demo(PHAROX_DATABASE_URL="postgresql://me:s3cret@127.0.0.1:1/db")
        assert done.returncode == 1
        assert "the demo could not continue: no connection to the database" in done.stdout
        assert "s3cret" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


class TestLock:
    def test_a_lock_that_pins_everything_is_fine(self) -> None:
        """Names are compared as PyPI does, and the project's own extras are no requirement."""
        assert list(complaints(LOCK, PYPROJECT)) == []

    @pytest.mark.parametrize(
        ("old", "new", "complaint"),
        [
            ("typer==0.29.2", "typer==0.19", "Typer>=0.20 is pinned at 0.19"),
            ("proxy-py==", "other==", "proxy.py>=2 is not pinned"),
            ("    --hash=sha256:00\n", "", "hatchling==1.30 has no hash"),
            (
                "# Written",
                "--index-url https://example.org/simple\n# Written",
                "a source of packages",
            ),
            ("# via pharox (", "# via /home/me/(", "a source of packages"),
        ],
    )
    def test_what_is_wrong_is_told(self, old: str, new: str, complaint: str) -> None:
        """A pin that is missing, too old or without a hash is named; so is a registry or a path."""
        assert any(complaint in told for told in complaints(LOCK.replace(old, new), PYPROJECT))


@pytest.mark.parametrize(
    "name", ["bench", "check", "demo", "docs", "lock", "setup-env", "soak", "test"]
)
def test_a_script_can_be_run(name: str) -> None:
    """Every command is executable and is valid bash."""
    file = ROOT / "scripts" / name
    assert os.access(file, os.X_OK)
    subprocess.run(["bash", "-n", str(file)], check=True)
