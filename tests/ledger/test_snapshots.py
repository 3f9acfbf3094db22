"""Stored states of the past are shortcuts: few are enough, and none that is needed is removed."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import projections
from pharox.ledger.archive import archive
from pharox.storage.postgres import PostgresStorage, snapshots
from pharox.storage.postgres.folding import Folder
from pharox.storage.postgres.snapshots import EVENTS_PER_GAP, not_needed
from tests.conftest import fill, ledger, run_sql

from .full_parts import full_parts, lease_often

SEQS = st.sets(st.integers(1, 10_000), max_size=60).map(sorted)


def stored(storage: PostgresStorage) -> list[int]:
    """Return the seqs of all snapshots."""
    rows = run_sql(storage.engine, "SELECT seq FROM pharox.snapshots ORDER BY seq")
    return [int(str(seq)) for (seq,) in rows]


class TestWhichAreNeeded:
    @given(seqs=SEQS)
    def test_the_way_stays_short(self, seqs: list[int]) -> None:
        """A fold goes no farther than before, or a tenth of its distance from the last one."""
        removed = not_needed(seqs, 0)
        kept = [seq for seq in seqs if seq not in removed]
        assert kept[-1:] == seqs[-1:]
        for before, following in pairwise([0, *kept]):
            gap = [seq for seq in removed if before < seq < following]
            if gap:
                assert EVENTS_PER_GAP * (following - before) <= kept[-1] - min(gap)

    @given(seqs=SEQS)
    def test_what_is_thinned_is_thin(self, seqs: list[int]) -> None:
        """Thinning again removes nothing."""
        kept = [seq for seq in seqs if seq not in not_needed(seqs, 0)]
        assert not_needed(kept, 0) == []

    def test_their_number_grows_as_the_logarithm(self) -> None:
        """Of a thousand times as many, some tens more are kept."""
        kept: dict[int, int] = {}
        seqs: list[int] = []
        for seq in range(1, 10_001):
            seqs.append(seq)
            removed = set(not_needed(seqs, 0))
            seqs = [one for one in seqs if one not in removed]
            kept[seq] = len(seqs)
        assert kept[10] == 10
        assert kept[10_000] < 130


class TestThinning:
    @pytest.fixture
    def last(self, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> int:
        """The last seq of a log of sixty proxies, whose snapshots are thinned out a lot."""
        monkeypatch.setattr(snapshots, "EVENTS_PER_GAP", 2)
        fill(postgres, 60)
        return postgres.seal()

    def test_it_happens_when_one_is_stored(self, postgres: PostgresStorage, last: int) -> None:
        """Those that are left give the same states, and verify finds nothing."""
        for seq in range(1, last + 1):
            postgres.take_snapshot(seq)
        left = stored(postgres)
        assert left[-1] == last
        assert len(left) < last / 2
        rows = run_sql(postgres.engine, "SELECT DISTINCT seq FROM pharox.snapshot_rows ORDER BY 1")
        assert rows == [(seq,) for seq in left]
        assert len(postgres.state_at(30)["proxies"]) == 29
        assert postgres.verify() == []

    def test_the_one_that_is_asked_for_stays(self, postgres: PostgresStorage, last: int) -> None:
        """A snapshot far back, stored later than the others, is not removed at once."""
        for seq in (last, 2, 3):
            postgres.take_snapshot(seq)
        assert stored(postgres) == [3, last]

    def test_those_of_other_projections_stay(self, postgres: PostgresStorage, last: int) -> None:
        """What has not the same read models is no shortcut for these, nor these for it."""
        run_sql(
            postgres.engine,
            "INSERT INTO pharox.snapshots SELECT seq, now(), ARRAY['pools'] "
            "FROM unnest(ARRAY[9, 11]) AS seq",
        )
        for seq in (10, last):
            postgres.take_snapshot(seq)
        assert stored(postgres) == [9, 10, 11, last]

    def test_none_of_the_archive_is_removed(
        self, postgres: PostgresStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Up to the end of the archive all stay: the past of each archived part begins there."""
        clock = full_parts(postgres, leases=30)
        ends = []
        for _ in range(3):
            outcome = archive(postgres, clock() - timedelta(minutes=2), tmp_path)
            ends.append(outcome.archived[-1].last_seq or 0)
            lease_often(postgres, clock, 30)
            clock.advance(3600)
        monkeypatch.setattr(snapshots, "EVENTS_PER_GAP", 0)
        last = postgres.seal()
        for seq in range(last - 5, last + 1):
            postgres.take_snapshot(seq)
        assert stored(postgres) == [*ends, last]
        assert postgres.state_at(max(ends))["pools"]
        assert postgres.verify() == []

    def test_one_that_is_removed_while_it_is_read(
        self, postgres: PostgresStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A state is never folded from half a snapshot."""
        fill(postgres, 5)
        postgres.take_snapshot(4)
        expected = postgres.state_at(6)
        load = Folder.load

        def removed_meanwhile(folder: Folder, seq: int) -> None:
            with ledger(database_url) as other:
                for table in ("snapshots", "snapshot_rows"):
                    run_sql(other.engine, f"DELETE FROM pharox.{table}")
            load(folder, seq)

        monkeypatch.setattr(Folder, "load", removed_meanwhile)
        assert postgres.state_at(6) == expected
        assert expected.keys() == {projection.name for projection in projections.registered()}
