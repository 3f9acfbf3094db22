"""A ledger that hangs (it accepts connections and says nothing) is as one that is down."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pharox import (
    AnswerTimeoutError,
    AsyncFleet,
    DatabaseUnavailableError,
    Fleet,
    OutcomeUnknownError,
)
from pharox.console import create_fleet_app
from pharox.fleet import metrics
from pharox.fleet.metrics import LedgersServer
from tests.cli.conftest import run
from tests.console.conftest import Client
from tests.faults.relay import Relay
from tests.fleet.conftest import stocked
from tests.ledger.following import until


@pytest.fixture
def hung(hanging: dict[str, Any], relay: Relay) -> dict[str, Any]:
    """The settings of a fleet with a pool in each ledger, one of which hangs from now on."""
    with Fleet.connect(hanging) as fleet:
        stocked(fleet, "a", "near", 3)
        stocked(fleet, "b", "far", 3)
    relay.freeze()
    return hanging


def test_a_pool_that_falls_back_passes_over_a_ledger_that_hangs(hung: dict[str, Any]) -> None:
    """At once and while it waits; a request without a fallback says which ledger it is."""
    with Fleet.connect(hung) as fleet:
        for wait_seconds in (None, 0.1):
            lease = fleet.manager.acquire_proxy(
                "b", "worker", fallback=["a"], wait_seconds=wait_seconds
            )
            assert lease is not None
            assert lease.pool_name == "a"
        with pytest.raises(DatabaseUnavailableError) as refused:
            fleet.manager.acquire_proxy("b", "worker")
        assert refused.value.data["ledger"] == "far"


def test_a_request_that_was_sent_is_unclear_and_the_next_one_falls_back(
    hanging: dict[str, Any], relay: Relay
) -> None:
    """The lease may have been granted, so nothing else is leased for that request."""
    with Fleet.connect(hanging) as fleet:
        stocked(fleet, "a", "near", 3)
        stocked(fleet, "b", "far", 3)
        relay.freeze()
        with pytest.raises(OutcomeUnknownError) as unclear:
            fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
        assert unclear.value.data["ledger"] == "far"
        lease = fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
        assert lease is not None
        assert lease.pool_name == "a"
        relay.thaw()
        assert fleet.manager.acquire_proxy("b", "worker", fallback=["a"]) is not None


def test_a_request_that_the_server_cancelled_in_time_falls_back(hanging: dict[str, Any]) -> None:
    """Something blocks the ledger: its AnswerTimeoutError is of a command without effect."""
    with Fleet.connect(hanging) as fleet:
        stocked(fleet, "a", "near")
        stocked(fleet, "b", "far")
        engine = fleet.ledgers["far"].storage.engine
        with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            connection.exec_driver_sql("LOCK TABLE pharox.pools IN ACCESS EXCLUSIVE MODE")
            lease = fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
            assert lease is not None
            assert lease.pool_name == "a"
            with pytest.raises(AnswerTimeoutError) as late:
                fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
            assert late.value.data["ledger"] == "far"


def test_merged_reads_name_a_ledger_that_hangs(hung: dict[str, Any]) -> None:
    """Each in a process that is connected to nothing yet, and the rest is read."""
    with Fleet.connect(hung) as fleet:
        assert [row.value.pool_name for row in fleet.stats()] == ["a"]
        for read in (fleet.stats, fleet.leases, fleet.moves):
            assert list(read().missing) == ["far"]
        assert [each.name for each in fleet.status() if not each.is_reachable] == ["far"]
        events, missing = fleet.log()
        assert {row.ledger for row in events} == {"near"}
        assert list(missing) == ["far"]
        assert list(fleet.audit_consumer("nobody")[1]) == ["far"]


@pytest.mark.parametrize("read", ["status", "moves", "log"])
def test_merged_reads_wait_no_longer_on_connections_there_are(
    hanging: dict[str, Any], relay: Relay, read: str
) -> None:
    """Also those that seal the log, or read it row by row."""
    with Fleet.connect(hanging) as fleet:
        stocked(fleet, "b", "far")
        getattr(fleet, read)()
        relay.freeze()
        found = getattr(fleet, read)()
        if read == "status":
            assert [each.name for each in found if not each.is_reachable] == ["far"]
        else:
            assert list(found[1] if read == "log" else found.missing) == ["far"]


def test_tasks_name_a_ledger_that_hangs(hung: dict[str, Any]) -> None:
    """As threads do."""
    asyncio.run(_read_by_tasks(hung))


async def _read_by_tasks(hung: dict[str, Any]) -> None:
    async with await AsyncFleet.connect(hung) as fleet:
        lease = await fleet.manager.acquire_proxy("b", "worker", fallback=["a"])
        assert lease is not None
        assert lease.pool_name == "a"
        for read in (fleet.stats, fleet.leases, fleet.moves):
            assert list((await read()).missing) == ["far"]
        assert [each.name for each in await fleet.status() if not each.is_reachable] == ["far"]
        events, missing = await fleet.log()
        assert {row.ledger async for row in events} == {"near"}
        assert list(missing) == ["far"]


def test_commands_and_the_console_name_a_ledger_that_hangs(
    hung: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list of ledgers, that of moves, and the overview of the console."""
    file = tmp_path / "pharox.toml"
    named = [f'{name} = "{url}"' for name, url in hung["ledgers"].items()]
    rest = ["connect_timeout_s = 2", "answer_timeout_s = 0.5"]
    file.write_text("\n".join(["[fleet]", 'home = "near"', *rest, "[fleet.ledgers]", *named]))
    for words in (("fleet", "list"), ("fleet", "moves"), ("stats",)):
        answer = run(capsys, "--fleet", file, *words)
        assert "the ledger 'far' is missing" in answer.err
    with Fleet.connect(hung) as fleet:
        assert "does not answer" in Client(create_fleet_app(fleet)).get("/fleet").text


def test_metrics_are_served_while_a_ledger_hangs(
    hung: dict[str, Any], relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is down until it answers, and keeps no scrape waiting longer than others do."""
    monkeypatch.setattr(metrics, "SCRAPE_S", 0.5)
    with Fleet.connect(hung) as fleet, LedgersServer(fleet, port=0) as server:

        def scraped() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
                return str(answer.read(), "utf-8")

        text = scraped()
        assert 'pharox_fleet_up{ledger="far"} 0.0' in text
        until(lambda: 'pharox_fleet_up{ledger="near"} 1.0' in scraped())
        relay.thaw()
        until(lambda: 'pharox_fleet_up{ledger="far"} 1.0' in scraped())
