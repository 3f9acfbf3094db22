"""``scripts/replay_incident.py``: the whole in one command, and a sentence where it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from pharox import ProxyManager
from pharox.cli import main
from pharox.ledger.archive import archive
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill
from tests.ledger.full_parts import full_parts
from tests.ledger.incident_story import START, Incident

SCRIPT = Path(__file__).parents[2] / "scripts" / "replay_incident.py"


def replay(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PHAROX_")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_can_be_run() -> None:
    """It is executable, and finds its Python by itself."""
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_text().startswith("#!/usr/bin/env python3\n")


def test_it_writes_a_report(postgres: PostgresStorage, database_url: str, tmp_path: Path) -> None:
    """The page's path is the output; what there was is told beside it."""
    Incident(postgres).play(5)
    fill(postgres, 1, name="other")
    end = START + timedelta(minutes=2)
    done = replay(
        *("--from", START.isoformat(), "--to", end.isoformat(), "--pool", "residential-eu"),
        *("--output", tmp_path / "report", "--database-url", database_url),
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/report/index.html\n")
    lines = [
        json.loads(line)
        for line in (tmp_path / "report" / "timeline.jsonl").read_text().splitlines()
    ]
    assert done.stderr.startswith(f"pharox: {len(lines)} events, ")
    assert {line["pool"] for line in lines} == {"residential-eu"}


def test_the_command_writes_the_same(
    postgres: PostgresStorage,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`pharox report` comes with the library; without --out its folder is named after the start."""
    Incident(postgres).play(5)
    end = START + timedelta(minutes=2)
    window = ("--from", START.isoformat(), "--to", end.isoformat())
    replay(*window, "--output", tmp_path / "script", "--database-url", database_url)
    monkeypatch.chdir(tmp_path)
    words = ("report", *window, "--pool", "residential-eu", "--json")
    assert main(["--url", database_url, *words]) == 0
    folder = Path("incident-2026-01-01T100000Z")
    written = json.loads(capsys.readouterr().out)
    assert written["page"] == f"{folder}/index.html"
    assert written["timeline"] == f"{folder}/timeline.jsonl"
    for name in ("index.html", "timeline.jsonl"):
        assert (folder / name).read_text() == (tmp_path / "script" / name).read_text()
    assert main(["--url", database_url, *words]) == 1
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_window_may_be_told_as_how_long_ago(
    postgres: PostgresStorage, database_url: str, tmp_path: Path
) -> None:
    """``--from 10m`` alone goes on to now; the URL may come from the environment."""
    fill(postgres, 1)
    ProxyManager(postgres).acquire_proxy("pool", "worker")
    done = replay(
        *("--from", "10m", "--output", tmp_path / "report"),
        PHAROX_DATABASE_URL=database_url,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "pharox: 4 events, 1 lease, 0 misses\n"


def test_an_archive_is_read_along(
    postgres: PostgresStorage, database_url: str, tmp_path: Path
) -> None:
    """What left the log is refused without its archive, and told with it."""
    end = full_parts(postgres).now
    lines = sum(1 for _ in postgres.events())
    archive(postgres, end, tmp_path / "archive")
    window = ("--from", "2026-01-01T00Z", "--to", (end - timedelta(minutes=1)).isoformat())
    words = (*window, "--output", tmp_path / "report")
    refused = replay(*words, "--database-url", database_url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "are archived in" in refused.stderr
    done = replay(*words, "--database-url", database_url, "--archive", tmp_path / "archive")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"pharox: {lines} events, 30 leases, ")


@pytest.mark.parametrize(
    ("given", "status", "sentence"),
    [
        ({"--from": "noon"}, 2, "'noon' is not a moment"),
        ({"--to": "2026-01-01T00:00"}, 2, "has no time zone"),
        ({"--to": "1h"}, 2, "must begin before it ends"),
        ({"--from": "now"}, 2, "must begin before it ends"),
        ({"--archive": "/nowhere"}, 1, "/nowhere"),
        ({"--from": "2100-01-01T00Z", "--to": "2100-01-02T00Z"}, 2, "is in the future"),
        ({"--from": "2000-01-01T00Z", "--to": "2000-01-02T00Z"}, 1, "nothing was recorded"),
        ({"--pool": "asia"}, 1, "no pool was named 'asia'"),
        ({"--output": "/dev/null"}, 1, "is not an empty folder"),
        ({"--output": "/dev/null/report"}, 1, "cannot be written"),
        ({"--schema": "elsewhere"}, 1, "pharox db upgrade"),
        ({"--database-url": "postgresql://me:s3cret@127.0.0.1:1/db"}, 1, "no connection"),
        ({"--database-url": "mysql://x/y"}, 2, "needs PostgreSQL"),
        ({"--colour": "red"}, 2, "replay_incident.py --help"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(
    postgres: PostgresStorage,
    database_url: str,
    tmp_path: Path,
    given: dict[str, str],
    status: int,
    sentence: str,
) -> None:
    """Exit status 2 for what was asked wrongly, 1 for what cannot be done; never a traceback."""
    fill(postgres, 1)
    words = {
        "--from": "10m",
        "--to": "now",
        "--output": str(tmp_path / "report"),
        "--database-url": database_url,
        **given,
    }
    done = replay(*(part for option in words.items() for part in option))
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr
    assert list(tmp_path.iterdir()) == []
