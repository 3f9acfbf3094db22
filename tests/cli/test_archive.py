"""``pharox archive``, and the commands that read an archive along."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pharox.events import LeaseAcquired
from pharox.storage.postgres import PostgresStorage
from tests.ledger.full_parts import full_parts, tables_of

from .conftest import Pharox


@pytest.fixture
def archived(pharox: Pharox, postgres: PostgresStorage, tmp_path: Path) -> Path:
    """The folder to which a ledger's first three parts went."""
    clock = full_parts(postgres)
    folder = tmp_path / "archive"
    assert pharox("archive", "--before", clock.now.isoformat(), "--to", folder).status == 0
    return folder


class TestArchive:
    """The output lists the parts that leave, and why the next one stays."""

    def test_it_tells_what_left_and_what_stays(
        self, pharox: Pharox, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """One line for each part that left, with its file, and one for those that stay."""
        moment = full_parts(postgres).now.isoformat()
        outcome = pharox("archive", "--before", moment, "--to", tmp_path / "a")
        *left, stays = outcome.out.splitlines()
        assert [line.partition(" -> ")[0] for line in left] == [
            "events 1 to 19",
            "events 20 to 38",
            "events 39 to 57",
        ]
        assert all(Path(line.partition(" -> ")[2]).is_file() for line in left)
        assert stays == "the part from position 60 on stays in the log: it is not full yet"
        again = pharox("archive", "--before", moment, "--to", tmp_path / "a", "--drop")
        assert again.out == stays + "\n"
        assert tables_of(postgres) == {"events_60", "seals_60"}

    def test_as_json(self, pharox: Pharox, postgres: PostgresStorage, tmp_path: Path) -> None:
        """One object for each part that left."""
        moment = full_parts(postgres).now.isoformat()
        outcome = pharox("archive", "--before", moment, "--to", tmp_path, "--json")
        assert [part["last_seq"] for part in outcome.objects] == [19, 38, 57]
        assert outcome.objects[0].keys() == {
            "first_position",
            "end_position",
            "first_seq",
            "last_seq",
            "file",
        }

    def test_bad_input_is_told(
        self, pharox: Pharox, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """A sentence, and no traceback."""
        full_parts(postgres)
        (tmp_path / "file").write_text("")
        for before, to, status, told in (
            ("2031-01-01T00:00Z", tmp_path / "a", 2, "is in the future"),
            ("2026-01-01", tmp_path / "a", 2, "no time zone"),
            ("yesterday", tmp_path / "a", 2, "is not a moment"),
            ("2026-01-01T00:30Z", tmp_path / "file" / "a", 1, "Not a directory"),
            ("2026-01-01T00:30Z", tmp_path / "file", 2, "is a file"),
        ):
            outcome = pharox("archive", "--before", before, "--to", to)
            assert outcome.status == status
            assert told in outcome.err
            assert len(outcome.err.splitlines()) == 1
        assert pharox("archive").status == 2

    def test_without_the_extra(
        self, pharox: Pharox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It says what to install."""
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        for name in [name for name in sys.modules if name.startswith("pharox.ledger.archive")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr("pharox.ledger.archive", raising=False)
        outcome = pharox("archive", "check", tmp_path)
        assert outcome.status == 1
        assert "pip install 'pharox[archive]'" in outcome.err


class TestCheck:
    """Files are checked without a database."""

    def test_a_whole_archive(
        self, pharox: Pharox, archived: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It tells how much it saw, and the last root, which one can compare."""
        monkeypatch.setenv("PHAROX_DATABASE_URL", "postgresql://nowhere.invalid/x")
        outcome = pharox("archive", "check", archived)
        assert outcome.status == 0
        assert "events in 7 ticks match their seals" in outcome.out
        (facts,) = pharox("archive", "check", archived, "--json").objects
        assert facts["root"] in outcome.out
        assert facts["differences"] == []

    def test_a_broken_archive(self, pharox: Pharox, archived: Path) -> None:
        """The differences are printed, and the status is 1."""
        path = next((archived / "events").iterdir())
        path.write_bytes(path.read_bytes()[:-9])
        outcome = pharox("archive", "check", archived)
        assert outcome.status == 1
        assert str(path) in outcome.out
        assert pharox("archive", "check", archived, "--json").objects[0]["differences"]

    def test_no_archive(self, pharox: Pharox, tmp_path: Path) -> None:
        """A folder without an archive is an error."""
        outcome = pharox("archive", "check", tmp_path)
        assert (outcome.status, outcome.out) == (1, "")
        assert "cannot be read" in outcome.err


class TestReadingAlong:
    """Questions about the past say when they need the archive, and take it."""

    def first_lease(self, postgres: PostgresStorage, folder: Path) -> LeaseAcquired:
        from pharox.ledger.archive.reading import WithArchive

        events = WithArchive(postgres, folder).events()
        return next(event for event in events if isinstance(event, LeaseAcquired))

    def test_audit(self, pharox: Pharox, postgres: PostgresStorage, archived: Path) -> None:
        """An old lease is shown with the archive; without it, the error says where the lease is."""
        lease = self.first_lease(postgres, archived)
        without = pharox("audit", "lease", lease.lease_id)
        assert without.status == 1
        assert f"are archived in {archived}" in without.err
        told = pharox("audit", "lease", lease.lease_id, "--archive", archived)
        assert told.status == 0
        assert "worker-0" in told.out
        for kind, name in (("pool", "pool"), ("proxy", lease.proxy_id), ("consumer", "worker-0")):
            assert pharox("audit", kind, name).status == 1
            assert pharox("audit", kind, name, "--archive", archived).status == 0

    def test_audit_of_what_came_later(self, pharox: Pharox, archived: Path) -> None:
        """Recent events are shown without the archive."""
        acquired = pharox("acquire", "pool", "--consumer", "late", "--json").objects[0]
        outcome = pharox("audit", "lease", acquired["id"])
        assert outcome.status == 0
        assert "late" in outcome.out
        assert "http://10.0.0." in outcome.out
        assert archived.is_dir()

    @pytest.mark.parametrize(
        "question", [("audit", "pool", "pool"), ("replay", "--pool", "pool", "--at", "now")]
    )
    def test_a_folder_that_is_not_there(
        self, pharox: Pharox, archived: Path, question: tuple[str, ...]
    ) -> None:
        """A misspelt folder is an error, even if the archive is not needed."""
        missing = archived / "typo"
        outcome = pharox(*question, "--archive", archived, "--archive", missing)
        assert outcome == (1, "", f"pharox: there is no folder {missing}\n")

    def test_replay(self, pharox: Pharox, postgres: PostgresStorage, archived: Path) -> None:
        """A moment in an archived part is shown with the archive."""
        seq = self.first_lease(postgres, archived).seq
        without = pharox("replay", "--pool", "pool", "--at", seq)
        assert without.status == 1
        assert "are archived in" in without.err
        told = pharox("replay", "--pool", "pool", "--at", seq, "--archive", archived)
        assert told.status == 0
        assert "worker-0 until" in told.out
        assert pharox("replay", "--pool", "pool", "--at", postgres.seal()).status == 0
