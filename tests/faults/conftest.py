"""How often faults are made, and what came of each, for the page that says so."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, ledger
from tests.faults import cluster as clusters
from tests.faults.cluster import Cluster
from tests.faults.diary import Account, account

TIMES = int(os.environ.get("PHAROX_FAULTS", "1"))
"""How many times as often as in an ordinary run each fault is made."""

REPORTS = os.environ.get("PHAROX_REPORTS")
"""The folder for reports; None in an ordinary run."""

PROXIES = 16

_outcomes = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep how a test ended for its report."""
    outcome = yield
    if call.when == "call" or outcome.outcome != "passed":
        item.stash[_outcomes] = outcome
    return outcome


@dataclass
class Report:
    """What a test tried and what came of it."""

    test: str
    fact: str
    area: str
    tried: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    in_doubt: int = 0
    lost: int = 0
    doubled: int = 0
    held_twice: int = 0
    findings: int = 0
    free_s: float | None = None
    """For how long a proxy was free while somebody waited, at most, if that was looked at."""
    seconds: float = 0
    outcome: str = "passed"

    def made(self, fault: str, times: int = 1) -> None:
        """Take note of a fault that was made."""
        self.tried[fault] = self.tried.get(fault, 0) + times

    def close(self, storage: PostgresStorage, folder: Path) -> Account:
        """Hold what the workers were told against the ledger; nothing may be lost or twice."""
        storage.cleanup_expired_leases()
        found = account(storage, folder)
        self.acknowledged += found.acknowledged
        self.in_doubt += found.in_doubt
        self.lost += len(found.lost) + len(found.unreleased)
        self.doubled += len(found.doubled)
        self.held_twice += len(found.held_twice)
        self.findings += len(found.findings)
        found.assert_clean()
        return found


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """What this test tried and what came of it, for the folder PHAROX_REPORTS if that is set."""
    fact, area = (
        " ".join((documented.__doc__ or "").split("\n\n")[0].split())
        for documented in (request.function, request.module)
    )
    report = Report(request.node.name, fact, area)
    began = time.monotonic()
    yield report
    report.seconds = round(time.monotonic() - began, 1)
    ended: pytest.TestReport | None = request.node.stash.get(_outcomes, None)
    if ended is not None:
        report.outcome = ended.outcome
        if ended.skipped and isinstance(ended.longrepr, tuple):
            report.outcome = str(ended.longrepr[2])
    if REPORTS:
        module = request.module.__name__.rpartition(".")[2]
        _write(Path(REPORTS) / f"{module}.{report.test}.json", report)


def _write(path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = asdict(report)
    path.write_text(json.dumps(facts, indent=2) + "\n")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A server of the test's own, with a pool of exclusive proxies."""
    with clusters.running() as cluster:
        with ledger(cluster.url) as storage:
            fill(storage, PROXIES)
        yield cluster


@pytest.fixture
def diaries(tmp_path: Path) -> Path:
    """The folder of the workers' diaries."""
    folder = tmp_path / "diaries"
    folder.mkdir()
    return folder
