"""Everything at once under faults holds for a minute; and what does not hold is found."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from pharox import ProxyManager
from pharox.storage.postgres import PostgresStorage
from scripts.soaking import contention
from scripts.soaking.accounts import Accounts
from scripts.soaking.levels import LEAST_SAMPLES, MEMORY, Levels
from tests.conftest import fill, run_python, run_sql

ROOT = Path(__file__).parents[1]


@pytest.mark.stress
def test_a_soak_of_a_minute_holds(tmp_path: Path) -> None:
    """Leases, sweeps, a subscription and rebuilds go on through kills of all three kinds."""
    file = tmp_path / "soak.json"
    done = run_python("-m", "scripts.soaking", "1", "--json", str(file), timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert set(report["tried"]) == {
        "kill -9 of a worker",
        "pg_terminate_backend",
        "kill -9 of the postmaster",
    }
    assert report["acknowledged"] > 100
    assert (report["lost"], report["held_twice"], report["failures"]) == (0, 0, [])


class TestContention:
    """Many tasks and few proxies."""

    def test_few_proxies_have_one_holder_each(self) -> None:
        """Tasks of two processes lease three proxies, and the report has nothing against it."""
        report = contention.contend(seconds=1, processes=2, tasks=8, proxies=3)
        assert report["failures"] == []
        assert report["leases"] > 0
        assert report["misses"] > 0

    @pytest.mark.parametrize(
        ("what", "done", "complaint"),
        [
            ({}, {"leases": 1, "errors": 1, "error: E()": 1}, ["errors: 1", "error: E()"]),
            ({"held_twice": 1}, {"leases": 1}, ["held twice: 1"]),
            ({"lost": 2}, {"leases": 1}, ["told and not in the log: 2"]),
            ({}, {"misses": 9}, ["nobody leased anything"]),
        ],
    )
    def test_what_does_not_hold_is_a_failure(
        self, tmp_path: Path, what: dict[str, int], done: dict[str, int], complaint: list[str]
    ) -> None:
        """Errors, two holders, a lease that the log has not, and nothing done at all."""
        accounts = Accounts(tmp_path)
        vars(accounts).update(what)
        assert contention.report(Counter(done), accounts, [])["failures"] == complaint


class TestAccounts:
    """Journals against the log."""

    def test_what_was_told_and_is_in_the_log_is_accounted_for(
        self, storage: PostgresStorage, tmp_path: Path
    ) -> None:
        """Acknowledged acquisitions and releases are found, over several settlements."""
        fill(storage, 2)
        manager, accounts = ProxyManager(storage), Accounts(tmp_path)
        journal = tmp_path / "worker"
        for _ in range(2):
            lease = manager.acquire_proxy("pool")
            assert lease is not None
            manager.release_proxy(lease)
            with journal.open("a") as file:
                file.write(f"A {lease.id}\nR {lease.id}\n")
            accounts.settle(storage)
        assert (accounts.acknowledged, accounts.lost, accounts.held_twice) == (4, 0, 0)
        assert accounts.open_leases == 0

    @pytest.mark.parametrize("kind", ["A", "R"])
    def test_what_was_told_and_is_not_in_the_log_is_lost(
        self, storage: PostgresStorage, tmp_path: Path, kind: str
    ) -> None:
        """An answer for which there is no event is a loss."""
        (tmp_path / "worker").write_text(f"{kind} {uuid4()}\n")
        accounts = Accounts(tmp_path)
        accounts.settle(storage)
        assert (accounts.acknowledged, accounts.lost) == (1, 1)

    def test_half_a_line_is_read_when_it_is_whole(
        self, storage: PostgresStorage, tmp_path: Path
    ) -> None:
        """A line under way is left for the next settlement."""
        accounts, journal = Accounts(tmp_path), tmp_path / "worker"
        journal.write_text("E DatabaseErr")
        accounts.settle(storage)
        assert accounts.errors == 0
        journal.write_text("E DatabaseError\nX 'boom'\n")
        accounts.settle(storage)
        assert (accounts.errors, accounts.unexplained) == (1, ["'boom'"])

    def test_a_proxy_leased_twice_at_once_is_found(
        self, storage: PostgresStorage, tmp_path: Path
    ) -> None:
        """A second lease of an exclusive proxy that is held is counted."""
        fill(storage, 1)
        assert ProxyManager(storage).acquire_proxy("pool") is not None
        columns = (
            "recorded_at, expires_at, schema_version, type, pool_id, proxy_id, consumer_id, "
            "leases_before, leases_after, max_concurrency_before, max_concurrency_after, "
            "status_before, status_after, consumer, pool_name"
        )
        run_sql(
            storage.engine,
            f"INSERT INTO pharox.events (lease_id, {columns}) SELECT gen_random_uuid(), {columns} "
            "FROM pharox.events WHERE type = 'LeaseAcquired'",
        )
        accounts = Accounts(tmp_path)
        accounts.settle(storage)
        assert (accounts.leases, accounts.held_twice) == (2, 1)


class TestLevels:
    """The last third of the samples against the second."""

    def judged(self, *samples: float) -> bool:
        levels = Levels()
        for sample in samples:
            levels._note("memory", sample, MEMORY)
        (level,) = levels.judged()
        return bool(level["held"])

    def test_a_level_line_holds_and_a_rising_one_does_not(self) -> None:
        """What rises by more than a tenth and eight MiB between the thirds is a leak."""
        assert self.judged(*[50] * 3, *[100] * 3, *[118] * 3)
        assert not self.judged(*[50] * 3, *[100] * 3, *[119] * 3)

    def test_warming_up_and_single_peaks_are_no_leaks(self) -> None:
        """The first third is not looked at, and medians forget a peak."""
        assert self.judged(10, 10, 10, 100, 100, 100, 100, 900, 100)

    def test_connections_have_a_ceiling(self) -> None:
        """They may rise after a burst, but never over what the processes may keep."""
        levels = Levels(processes=1)
        for name, highest in (("few", 12), ("many", 13)):
            for sample in [1] * 6 + [highest] * 3:
                levels._note(name, sample, levels._connections)
        assert [level["held"] for level in levels.judged()] == [True, False]

    def test_too_few_samples_are_not_judged(self) -> None:
        """With less than three samples a third nothing is claimed."""
        assert self.judged(*range(0, 1000 * (LEAST_SAMPLES - 1), 1000))
