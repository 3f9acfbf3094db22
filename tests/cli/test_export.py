"""``pharox export``: the log as CloudEvents, through crashes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pharox import ProxyManager
from pharox.cli import main
from pharox.cli.lasting import TellOnce
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill
from tests.ledger.following import until

from .conftest import Pharox

RUN = "import sys; from pharox.cli import main; sys.exit(main())"


def lease_often(storage: PostgresStorage, times: int = 20) -> None:
    """Make two events each time."""
    manager = ProxyManager(storage)
    for _ in range(times):
        with manager.with_lease("pool") as lease:
            assert lease is not None


def ids(path: Path) -> list[int]:
    content = path.read_bytes()
    return [
        int(json.loads(line)["id"]) for line in content[: content.rfind(b"\n") + 1].splitlines()
    ]


def test_the_data_is_what_the_log_says(
    pharox: Pharox, storage: PostgresStorage, tmp_path: Path
) -> None:
    """Each line has the object of ``pharox log --json``, and options say which and whence."""
    fill(storage, 2)
    lease_often(storage, 2)
    logged = pharox("log", "--json").objects
    known: set[object] = set()

    def exported(*options: object) -> list[dict[str, Any]]:
        file = tmp_path / "events.jsonl"
        file.unlink(missing_ok=True)
        status, out, told = pharox("export", "-o", file, *options)
        assert (status, out) == (0, "")
        # A known name and another file: what was written elsewhere is not in it.
        name = options[options.index("--name") + 1] if "--name" in options else "export"
        is_told = name in known and "--from-start" not in options
        assert ("has written up to event" in told) is is_told, told
        known.add(name)
        return [json.loads(line) for line in file.read_text().splitlines()]

    assert [each["data"] for each in exported()] == logged
    assert exported() == []
    acquired = [event for event in logged[-4:] if event["type"] == "LeaseAcquired"]
    since = ("--name", "b", "--since", logged[-4]["seq"])
    chosen = ("--pool", logged[0]["pool_id"], "--type", "LeaseAcquired", "--source", "/here")
    found = exported(*since, *chosen)
    assert [each["data"] for each in found] == acquired
    assert {each["source"] for each in found} == {"/here"}
    assert exported(*since) == []
    assert exported("--name", "c", "--since", "now") == []
    assert len(exported("--name", "d", "--since", logged[-1]["recorded_at"])) == 1
    assert [each["data"] for each in exported("--name", "b", "--from-start")] == logged


def test_bad_input_is_told(pharox: Pharox, storage: PostgresStorage, tmp_path: Path) -> None:
    """In one sentence, before anything is registered."""
    (tmp_path / "notes").write_text("of mine")
    for words, status, told in (
        (("--type", "Leased"), 2, "no event type"),
        (("--pool", "nobody"), 1, "nobody"),
        (("--since", "yesterday"), 2, "is not a moment"),
        (("--since", "2"), 2, "no event 2 yet"),
        (("--since", "now", "--from-start"), 2, "not both"),
        (("--source", ""), 2, "is not a URI"),
        (("--name", ""), 2, "name"),
        (("-o", tmp_path), 1, "Is a directory"),
        (("-o", tmp_path / "no" / "folder"), 1, "No such file"),
        (("-o", tmp_path / "notes"), 2, "not of an export"),
    ):
        output = () if "-o" in words else ("-o", tmp_path / "a")
        outcome = pharox("export", *output, *words)
        assert (outcome.status, outcome.out) == (status, ""), outcome
        assert told in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert pharox("subscriptions", "--json").objects == []


def test_nothing_is_lost_when_it_is_killed(
    pharox: Pharox, storage: PostgresStorage, database_url: str, tmp_path: Path
) -> None:
    """What was written last before the kill may be written again; half a line is cut off."""
    fill(storage)
    file = tmp_path / "events.jsonl"
    environment = {**os.environ, "PHAROX_DATABASE_URL": database_url}
    command = [sys.executable, "-c", RUN, "export", "--follow", "-o", str(file)]
    with subprocess.Popen(command, env=environment) as process:
        try:
            until(lambda: file.exists() and ids(file))
            lease_often(storage, 20)
        finally:
            process.kill()
    with file.open("ab") as end:  # as if it had been killed within a write
        end.write(b'{"specversion": "1.0", "id": "')
    lease_often(storage, 1)
    outcome = pharox("export", "-o", file)
    assert (outcome.status, outcome.out) == (0, "")
    assert "cut half a line (30 bytes)" in outcome.err
    logged = [event.seq for event in storage.events()]
    assert sorted(set(ids(file))) == logged
    assert ids(file)[-2:] == logged[-2:]


def test_a_signal_ends_it_behind_a_whole_line(
    pharox: Pharox, storage: PostgresStorage, tmp_path: Path
) -> None:
    """Nothing is written again afterwards, as the checkpoint is behind what was written."""
    fill(storage)
    file = tmp_path / "events.jsonl"

    def end_soon() -> None:
        until(lambda: file.exists() and ids(file))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end_soon)
    thread.start()
    assert pharox("export", "--follow", "-o", file) == (0, "", "")
    thread.join()
    lease_often(storage, 1)
    assert pharox("export", "-o", file).status == 0
    assert ids(file) == [event.seq for event in storage.events()]


def test_trouble_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """That an event cannot be written, or the database is away: not each attempt."""
    logger = logging.getLogger("pharox.test")
    logger.propagate = False
    logger.addHandler(TellOnce())
    for attempt in range(3):
        logger.warning("failed: %s: event %s, attempt %s: %s", "export", 7, attempt, "stalled")
    for error in ("refused", "refused", "shutting down", "refused"):
        logger.warning("disconnected: %s: %s", "export", error)
    assert capsys.readouterr().err.splitlines() == [
        "pharox: failed: export: event 7, attempt 0: stalled",
        "pharox: disconnected: export: refused",
        "pharox: disconnected: export: shutting down",
        "pharox: disconnected: export: refused",
    ]


def test_it_ends_with_the_pipe(
    pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while nothing happens in the ledger."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["export", "--follow"]) == 141
