"""Commands, metrics and the console of a fleet on two servers."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.requests import Request

from pharox import Fleet, ProxyPool
from pharox.console import Access, create_fleet_app
from pharox.fleet.metrics import LedgersServer
from tests.cli.conftest import Outcome, run
from tests.console.conftest import Client
from tests.fleet.conftest import stocked
from tests.ledger.following import until

Pharox = Callable[..., Outcome]


@pytest.fixture
def file(urls: dict[str, str], tmp_path: Path) -> Path:
    """The settings of a fleet of two servers, and of a third that is not there."""
    lines = ["[fleet]", 'home = "near"', "connect_timeout_s = 2", "[fleet.ledgers]"]
    gone = {"gone": f"postgresql://x:hush@/x?host={tmp_path}"}
    lines += [f'{name} = "{url}"' for name, url in (urls | gone).items()]
    path = tmp_path / "pharox.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def pharox(file: Path, capsys: pytest.CaptureFixture[str]) -> Pharox:
    """Call with the words after ``pharox --fleet FILE``."""
    return lambda *words: run(capsys, "--fleet", file, *words)


@pytest.fixture
def whole(file: Path) -> Iterator[Fleet]:
    """The fleet of the file, with a pool in each ledger and a lease in one."""
    with Fleet.connect(file) as fleet:
        stocked(fleet, "a", "near", 2)
        stocked(fleet, "b", "far", 2)
        for pool in ("a", "b"):
            lease = fleet.manager.acquire_proxy(pool, "worker")
            assert lease is not None
            if pool == "a":
                fleet.manager.release_proxy(lease)
        yield fleet


def test_commands_read_all_ledgers(pharox: Pharox, whole: Fleet) -> None:
    """Each row has its ledger; what is missing is said beside, and without its password."""
    missing = "the ledger 'gone' is missing"
    listed = pharox("fleet", "list", "--json")
    assert [(row["name"], row["is_reachable"], row["pools"]) for row in listed.objects] == [
        ("near", True, 1),
        ("far", True, 1),
        ("gone", False, None),
    ]
    stats = pharox("stats", "--json")
    assert [(row["ledger"], row["pool_name"], row["total_leases"]) for row in stats.objects] == [
        ("near", "a", 0),
        ("far", "b", 1),
    ]
    leases = pharox("leases", "--json")
    assert [(row["ledger"], row["pool_name"]) for row in leases.objects] == [("far", "b")]
    log = pharox("log", "--json", "--type", "LeaseAcquired", "--type", "PoolPlaced")
    assert [(row["log"], row["type"]) for row in log.objects] == [
        ("near", "PoolPlaced"),
        ("near", "PoolPlaced"),
        ("near", "LeaseAcquired"),
        ("far", "LeaseAcquired"),
    ]
    audit = pharox("audit", "consumer", "worker", "--json")
    assert [row["log"] for row in audit.objects if row["type"] == "LeaseAcquired"] == [
        "near",
        "far",
    ]
    for outcome in (listed, stats, leases, log, audit):
        assert outcome.status == 0
        assert missing in outcome.err
        assert "hush" not in outcome.out + outcome.err
    told = pharox("audit", "consumer", "worker", "--no-pager").out
    assert "2 leases acquired" in told
    lines = pharox("log", "--pool", "b").out.splitlines()
    assert all(line.split()[0] in ("near", "far") for line in lines)
    assert any("PoolPlaced pool=b ledger=far" in line for line in lines)


def test_a_command_about_one_ledger_asks_which(pharox: Pharox, whole: Fleet) -> None:
    """With --ledger each command works as ever; what is only of one ledger says so."""
    asked = pharox("pools", "list")
    assert (asked.status, "say which by --ledger" in asked.err) == (2, True)
    assert "b" in pharox("--ledger", "far", "pools", "list").out
    assert "none of it" in pharox("--ledger", "west", "pools", "list").err
    for option in (("--last", 3), ("--follow",), ("--since", 7)):
        assert pharox("log", *option).status == 2


def test_a_command_places_a_pool_where_it_is(pharox: Pharox, whole: Fleet) -> None:
    """A wrong place is repaired only by whoever names it."""
    assert "no pool 'c'" in pharox("fleet", "place", "c", "far").err
    for ledger in ("near", "far"):
        whole.ledgers[ledger].storage.save_pool(ProxyPool(name="c"))
    assert "in the ledger 'near'" in pharox("fleet", "place", "c", "far").err
    placed = pharox("fleet", "place", "c", "far", "--instead-of", "near")
    assert (placed.status, whole.locate("c")) == (0, "far")
    assert pharox("fleet", "place", "c", "near").status == 1
    assert pharox("fleet", "place", "c", "near", "--instead-of", "far").status == 0
    assert whole.locate("c") == "near"


def test_metrics_have_the_ledger_as_a_label(whole: Fleet) -> None:
    """One that does not answer is down; the others are counted as if they were alone."""
    counted = 'pharox_fleet_events_total{ledger="far",type="LeaseAcquired"} 1.0'
    with LedgersServer(whole, port=0) as server:
        until(lambda: counted in scraped(server))  # once the log is read
        text = scraped(server)
    assert 'pharox_fleet_up{ledger="near"} 1.0' in text
    assert 'pharox_fleet_up{ledger="gone"} 0.0' in text
    assert 'pharox_fleet_pool_leases{ledger="far",pool="b"} 1.0' in text
    assert text.count("# HELP pharox_fleet_up ") == 1


def scraped(server: LedgersServer) -> str:
    """Return what Prometheus would read."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def test_the_console_shows_all_ledgers_to_who_may_read(whole: Fleet) -> None:
    """An overview that links to the console of each, with one decision of who may see them."""
    client = Client(create_fleet_app(whole))
    page = client.get("/fleet")
    assert page.status_code == 200
    assert "does not answer" in page.text
    assert 'href="/ledgers/far/"' in page.text
    far = client.get("/ledgers/far/")
    assert (far.status_code, 'href="/fleet"' in far.text) == (200, True)
    assert ">b<" in far.text

    def nothing(_: Request) -> Access:
        return Access.none()

    closed = Client(create_fleet_app(whole, authorize=nothing))
    assert {closed.get(path).status_code for path in ("/fleet", "/ledgers/far/", "/")} == {403}
