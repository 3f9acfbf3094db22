"""How commands fail: one sentence, the right exit status, nothing that a terminal obeys."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import pharox as library
from pharox.cli.showing import table_lines
from pharox.models.text import escape_unprintable
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill

from .conftest import Pharox, run

CODE = "import sys; from pharox.cli import main; sys.exit(main())"
ROOT = Path(library.__file__).parents[1]


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["nope"],
            ["stat"],
            ["stats", "--nope"],
            ["import"],
            ["import", "x"],
            ["import", "x", "--pool", "p", "--protocol", "ftp"],
            ["import", "x", "--pool", "p", "--max-concurrency", "0"],
            ["import", "x", "--pool", " "],
            ["import", "x", "--pool", "p", "--source", "\udcff"],
            ["release", "x"],
            ["log", "--limit", "0"],
            ["stats", "--every", "0"],
            ["stats", "--every", "x"],
            ["db"],
            ["--url", "mysql://ann:s3cret@h/d", "stats"],
            ["--url", "nonsense-s3cret", "stats"],
        ],
    )
    def test_a_wrong_call_is_one_sentence(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        """Invalid arguments are one line on standard error, with exit status 2."""
        outcome = run(capsys, *arguments)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.startswith("pharox: ")
        assert outcome.err.count("\n") == 1
        assert "s3cret" not in outcome.err


class TestTheDatabase:
    def test_no_server_is_one_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The error for a server that does not answer hides the URL's password."""
        outcome = run(capsys, "--url", "postgresql://ann:s3cret@127.0.0.1:1/d", "stats")
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert "s3cret" not in outcome.err

    @pytest.mark.parametrize(
        "arguments",
        [["stats"], ["pools"], ["log"], ["acquire", "p"], ["prune", "--ended-before", "1d"]],
    )
    def test_no_schema_is_one_sentence_that_names_the_command(
        self, capsys: pytest.CaptureFixture[str], empty_database_url: str, arguments: list[str]
    ) -> None:
        """Without the schema, each command says how to get it."""
        outcome = run(capsys, "--url", empty_database_url, *arguments)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert "pharox db upgrade" in outcome.err

    def test_what_the_server_refuses_is_one_sentence(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unexpected error of the driver is printed without a traceback."""

        def refused(_: object) -> None:
            raise psycopg.errors.DiskFull("no space\nleft")

        monkeypatch.setattr(PostgresStorage, "list_pools", refused)
        assert pharox("pools") == (1, "", "pharox: the database refused: no space left\n")

    def test_a_bug_shows_its_traceback(
        self, pharox: Pharox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bug of ours is not shown as an error of the user."""

        def broken(_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(PostgresStorage, "list_pools", broken)
        with pytest.raises(ZeroDivisionError):
            pharox("pools")


class TestTheSchema:
    def test_upgrading_makes_it_and_then_changes_nothing(
        self, capsys: pytest.CaptureFixture[str], empty_database_url: str
    ) -> None:
        """``db upgrade`` says what it did, and ``db current`` what there is."""
        url = ("--url", empty_database_url, "--schema", "mine")
        missing = run(capsys, *url, "db", "current")
        assert (missing.status, missing.out) == (1, "")
        assert "pharox db upgrade" in missing.err
        first = run(capsys, *url, "db", "upgrade")
        assert (first.status, first.err) == (0, "")
        assert first.out.startswith("schema mine is now at version ")
        second = run(capsys, *url, "db", "upgrade")
        assert second.out.startswith("schema mine was at version ")
        current = run(capsys, *url, "db", "current")
        assert (current.status, current.out.strip()) == (0, first.out.split()[-1])


class TestTheTerminal:
    HOSTILE = "a\x1b[2Jb\rc\nd\x07e\u202ef\x9b[31m[bold]g[/bold]"

    def test_text_from_the_ledger_is_inert(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Names that would move the cursor, colour or forge a line are shown escaped."""
        fill(storage, 1, name=self.HOSTILE, isp=self.HOSTILE, source=self.HOSTILE)
        pharox("acquire", self.HOSTILE, "--consumer", self.HOSTILE)
        for command in (["pools"], ["stats"], ["proxies", self.HOSTILE], ["log"]):
            for options in ([], ["--json"]):
                out = pharox(*command, *options).out
                assert all(c.isprintable() or c == "\n" for c in out)
                assert out.count("\n") == (4 if command == ["log"] else 1 + (not options))
                assert "[bold]g[/bold]" in out

    def test_text_from_a_caller_is_inert_in_errors(self, pharox: Pharox) -> None:
        """So are names in error messages."""
        outcome = pharox("acquire", self.HOSTILE)
        assert outcome.err.rstrip("\n").isprintable()

    def test_plain_text_stays_as_it_is(self) -> None:
        """Letters of any script are no control characters."""
        assert escape_unprintable("São Paulo, 東京, мир 🙂") == "São Paulo, 東京, мир 🙂"

    def test_wide_letters_keep_the_columns_straight(self) -> None:
        """A column is as wide as its widest cell on a terminal, where some letters take two."""
        assert list(table_lines(("city", "n"), [("東京", 1), ("Oslo", 10), (None, None)])) == [
            "city   n",
            "東京   1",
            "Oslo  10",
            "-      -",
        ]

    def test_what_an_output_cannot_write_is_escaped(
        self, pharox: Pharox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A terminal without a letter gets it escaped instead of a crash."""
        pharox("pools", "add", "東京")
        ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", ascii_only)
        assert pharox("pools").status == 0
        ascii_only.seek(0)
        assert "\\u6771\\u4eac" in ascii_only.read()

    def test_a_closed_pipe_is_no_error(
        self, pharox: Pharox, storage: PostgresStorage, database_url: str
    ) -> None:
        """``pharox proxies p | head -1`` ends quietly."""
        fill(storage, 5000, name="p")
        environment = {**os.environ, "PHAROX_DATABASE_URL": database_url}
        with subprocess.Popen(
            [sys.executable, "-c", CODE, "proxies", "p"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert (process.wait(), process.stderr.read()) == (141, b"")

    def test_the_extra_is_named_where_it_is_missing(self) -> None:
        """Without typer the command says what to install."""
        code = (
            "import sys; sys.modules['typer'] = None; from pharox.cli import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "pharox: the command line is an extra: pip install 'pharox[cli]'\n"
