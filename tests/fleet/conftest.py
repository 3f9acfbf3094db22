"""Fleets of two ledgers: in memory, and on two servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pharox import Fleet, InMemoryStorage, Proxy
from pharox.connecting import embedded
from pharox.storage.postgres import cancellation_guard, deadline
from tests import servers
from tests.conftest import SECRET_KEY, Clusters, new_database, proxies_of
from tests.faults.relay import Relay, in_front_of


class FarServer:
    """A second server of the run, which a test may stop and start."""

    def __init__(self, folder: Path) -> None:
        self.url = embedded.start(folder).url
        self._cluster = embedded._users[folder.resolve()][1]

    def stop(self) -> None:
        """Stop it; who is connected is disconnected."""
        self._cluster.stop()

    def start(self) -> None:
        """Start it again, with its data."""
        self._cluster.ensure_running()


@pytest.fixture(scope="session")
def far_server() -> Iterator[FarServer]:
    """The second server, with a template of an upgraded ledger."""
    with servers.new_folder() as folder:
        server = FarServer(Path(folder))
        yield server
        embedded._leave(Path(folder).resolve())


@pytest.fixture(scope="session")
def far_template(far_server: FarServer) -> str:
    """The name of a database with an upgraded schema on the second server."""
    import pharox

    new_database(far_server.url, "pharox_far_template").__enter__()
    url = far_server.url.replace("/postgres?", "/pharox_far_template?")
    storage = pharox.connect(url)
    storage.upgrade_schema()
    storage.close()
    return "pharox_far_template"


@pytest.fixture
def urls(
    clusters: Clusters, far_server: FarServer, far_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The URLs of two empty ledgers, "near" and "far", on two servers."""
    monkeypatch.setenv("PHAROX_SECRET_KEY", SECRET_KEY)
    near_server, template = clusters.get(servers.names()[0])
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(new_database(url, f"pharox_{uuid4().hex[:12]}", copied))
            for name, url, copied in (
                ("near", near_server, template),
                ("far", far_server.url, far_template),
            )
        }


@pytest.fixture
def relay(urls: dict[str, str]) -> Iterator[Relay]:
    """What is in front of the server "far", and can have it hang."""
    with in_front_of(urls["far"]) as relay:
        yield relay


@pytest.fixture
def hanging(urls: dict[str, str], relay: Relay, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a fleet whose ledger "far" hangs while the relay is frozen."""
    monkeypatch.setattr(deadline, "CANCEL_S", 0.2)
    monkeypatch.setattr(cancellation_guard, "PATIENCE_S", 0.2)
    far = relay.url.render_as_string(hide_password=False)
    ledgers = {"near": urls["near"], "far": far}
    timeouts = {"connect_timeout_s": 2, "answer_timeout_s": 0.5}
    return {"home": "near", "ledgers": ledgers, **timeouts}


@pytest.fixture
def far_fleet(urls: dict[str, str]) -> Iterator[Fleet]:
    """A fleet on two servers, whose home ledger is "near"."""
    with Fleet.connect({"home": "near", "ledgers": urls, "connect_timeout_s": 2}) as fleet:
        yield fleet


def memory_fleet() -> Fleet:
    """A fleet of two ledgers in memory."""
    ledgers = {"near": InMemoryStorage(), "far": InMemoryStorage()}
    return Fleet.connect({"home": "near", "ledgers": ledgers})


@pytest.fixture(params=["memory", "servers"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """Both kinds of fleets in turn."""
    if request.param == "memory":
        return memory_fleet()
    fleet: Fleet = request.getfixturevalue("far_fleet")
    return fleet


def stocked(fleet: Fleet, pool: str, ledger: str, proxies: int = 1) -> list[Proxy]:
    """Register a pool in a ledger, with proxies that take one lease each."""
    registered = fleet.manager.register_pool(pool, ledger)
    made = proxies_of(registered, proxies)
    fleet.ledgers[ledger].storage.add_proxies_bulk(made)
    return made


def another(fleet: Fleet) -> Fleet:
    """Return the fleet as another process has it, which has seen nothing yet."""
    ledgers = {name: ledger.storage for name, ledger in fleet.ledgers.items()}
    return Fleet.connect({"home": fleet.home.name, "ledgers": ledgers})
