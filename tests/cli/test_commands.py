"""Commands load when they are called; help is whole, completion works, and statuses have a page."""

from __future__ import annotations

import gc
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from pharox import ProxyPool
from pharox.cli import completing
from pharox.cli.app import app
from pharox.cli.exits import Exit
from pharox.cli.lazily import Unloaded
from pharox.cli.once import summary_of
from pharox.connecting.embedded import running_socket
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, run_python

from .conftest import Outcome, Pharox
from .test_hostile import is_inert
from .test_once import commands

ROOT = typer.main.get_command(app)
DOCS = Path(__file__).parents[2] / "docs"

HEAVY = ("pydantic", "sqlalchemy", "psycopg", "httpx", "rich", "structlog", "asyncio", "alembic")
"""What takes a while to import, and a help, a version or a completion does not need."""


def letters(text: str) -> str:
    """Return a text without its spaces and line breaks, wherever these are."""
    return "".join(text.split())


def test_help_and_version_import_no_command() -> None:
    """Nor what commands work with: counted in modules, since times differ from run to run."""
    code = f"""
import sys
from pharox.cli import main
for arguments in (["--help"], ["--version"]):
    assert main(arguments) == 0
ours = {{name for name in sys.modules if name.startswith("pharox.")}}
print("heavy:", *sorted(sys.modules.keys() & {set(HEAVY)!r}))
print("ours:", *sorted(ours))
"""
    done = run_python("-c", code)
    *_, heavy, ours = done.stdout.splitlines()
    assert heavy == "heavy:", done.stderr
    assert set(ours.split()[1:]) == {
        "pharox.cli",
        *(f"pharox.cli.{name}" for name in ("app", "completing", "exits", "failing", "lazily")),
        *(f"pharox.cli.{name}" for name in ("once", "output", "session", "showing", "watching")),
        "pharox.cli.printing_json",
        *("pharox.errors", "pharox.printable"),
    }


def test_a_program_collects_garbage_seldom_and_a_caller_in_python_keeps_its_own() -> None:
    """A command in its own process; one that a program calls leaves its collector alone."""
    code = f"""
import gc, sys
from pharox.cli import main
sys.argv = ["pharox", "--version"]
for arguments in (["--version"], None):
    main(arguments)
    print(gc.get_threshold() == {gc.get_threshold()}, file=sys.stderr)
"""
    assert run_python("-c", code).stderr.split() == ["True", "False"]


@pytest.mark.parametrize("name", ROOT.commands)  # type: ignore[attr-defined]
def test_the_table_of_commands_agrees_with_them(name: str) -> None:
    """Its sentence is the first of the command's own help."""
    listed: Any = ROOT.commands[name]  # type: ignore[attr-defined]
    assert isinstance(listed, Unloaded)
    assert listed.loaded.name == name
    assert summary_of(listed) == summary_of(listed.loaded)


@pytest.mark.parametrize("width", [80, 120])
def test_no_help_is_cut(width: int) -> None:
    """Every sentence of every command, and of each of its options, is there to its end."""
    for path, command in commands(ROOT):
        context = command.context_class(command, info_name=" ".join(("pharox", *path)))
        context.terminal_width = width
        text = command.get_help(context)
        assert "…" not in text
        assert all(len(line) <= width for line in text.splitlines()), path
        whole = letters(text)
        assert letters((command.help or "").split("\n\n")[0]) in whole
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                assert letters(parameter.help or "") in whole, (path, parameter.name)
        for child in getattr(command, "commands", {}).values():
            assert letters(summary_of(child)) in whole, (path, child.name)


def test_the_page_has_every_exit_status() -> None:
    """With the meaning that the code has, in its order."""
    page = (DOCS / "command-line.md").read_text()
    rows = re.findall(r"^\| ([0-9]+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(str(int(status)), status.meaning) for status in Exit]
    assert {Exit.INTERRUPTED, Exit.TERMINATED} == {128 + 2, 128 + 15}


# Completion


@pytest.fixture
def complete(pharox: Pharox, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call with a line up to the cursor; return the words that bash would offer."""

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_PHAROX_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        outcome = pharox()
        monkeypatch.delenv("_PHAROX_COMPLETE")
        assert (outcome.status, outcome.err) == (0, ""), outcome
        return outcome.out.split()

    return offered


def test_commands_options_and_pools_are_completed(
    complete: Any, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a command that is not loaded yet, too; names that a shell could run are left out."""
    for name in ("residential", "res-2.b", "other", "$(id)", "`id`", "a b", "x;y", "'", "é"):
        storage.save_pool(ProxyPool(name=name))
    assert complete("pharox po") == ["pools"]
    assert complete("pharox pools rem") == ["remove"]
    assert "--duration" in complete("pharox acquire --du")
    assert complete("pharox pools --output ") == ["table", "json", "jsonl", "csv"]
    assert complete("pharox acquire res") == ["res-2.b", "residential"]
    assert complete("pharox targets --pool o") == ["other"]
    assert sorted(complete("pharox acquire ")) == ["other", "res-2.b", "residential"]
    for shell in ("zsh", "fish"):
        monkeypatch.setenv("_PHAROX_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "pharox acquire ")
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        outcome = pharox()
        assert "residential" in outcome.out
        assert not re.search("id|;|é", outcome.out.replace("residential", ""))


def test_an_embedded_server_is_asked_only_if_it_runs(
    complete: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tab key starts none, and makes no folder; a file that a crash left is no harm."""
    monkeypatch.delenv("PHAROX_DATABASE_URL")
    folder = tmp_path / "data"
    monkeypatch.setenv("PHAROX_DATA_DIR", str(folder))
    assert complete("pharox acquire re") == []
    assert not folder.exists()
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres/postmaster.pid").write_text("1\n/x\n0\n5432\n/nowhere\n")
    assert str(running_socket()) == "/nowhere"
    assert complete("pharox acquire re") == []


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_completion_fails_silently(
    complete: Any, silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer from the database, in time or at all, there are no names and no errors."""
    monkeypatch.setattr(completing, "WITHIN_S", 0.05)
    for url in (f"postgresql://u@127.0.0.1:{silent_server}/x", "nonsense", "mysql://x/y"):
        monkeypatch.setenv("PHAROX_DATABASE_URL", url)
        assert complete("pharox acquire re") == []
    monkeypatch.delenv("PHAROX_DATABASE_URL")
    assert complete("pharox acquire re") == []


def test_bash_completes_with_the_script_that_is_shown(
    storage: PostgresStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script of `--show-completion`, evaluated by a real bash."""
    fill(storage, name="residential")
    bash, folder = shutil.which("bash"), Path(sys.executable).parent
    assert bash
    assert (folder / "pharox").exists()
    monkeypatch.setenv("PHAROX_DATABASE_URL", database_url)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    script = """
        eval "$(pharox --show-completion)"
        COMP_WORDS=(pharox pools remove re) COMP_CWORD=3
        _pharox_completion pharox
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        [bash, "--norc", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("residential\n", "")


# Without a command


def front(outcome: Outcome) -> tuple[int, list[str], list[str]]:
    """Return the status, the lines before the commands that come next, and those commands."""
    lines = outcome.out.splitlines()
    assert outcome.err == ""
    assert all(map(is_inert, lines))
    place = lines.index("next:")
    return outcome.status, lines[:place], [line.split()[1] for line in lines[place + 1 :]]


def test_without_a_command_it_shows_where_it_is_connected(
    pharox: Pharox,
    storage: PostgresStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is there already, with three commands; only a server that is away is an error."""
    status, lines, following = front(pharox())
    assert (status, lines[-1], following[0]) == (0, "there are no pools yet", "pools")
    fill(storage, 3, name="p\x1b[31m")
    status, lines, following = front(pharox())
    assert lines[-1] == "  p\\x1b[31m: 3 of 3 proxies available, 0 leases"
    assert (status, len(following), following[0]) == (0, 3, "leases")
    status, lines, following = front(pharox("--schema", "elsewhere"))
    assert (status, "does not exist yet" in lines[-1], following[0]) == (0, True, "db")
    monkeypatch.setenv("PHAROX_DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/x")
    status, lines, following = front(pharox())
    assert (status, following[0], "hidden" in str(lines)) == (1, "doctor", False)
    monkeypatch.delenv("PHAROX_DATABASE_URL")
    monkeypatch.setenv("PHAROX_DATA_DIR", str(tmp_path / "none"))
    status, lines, following = front(pharox())
    assert (status, len(following), (tmp_path / "none").exists()) == (0, 3, False)
    refused = pharox("doctor")
    assert (refused.status, (tmp_path / "none").exists()) == (1, False)


def test_duckdb_reports_no_leaks_at_the_end() -> None:
    """Its binding looks for objects that are left, and a command leaves its garbage."""
    code = """if True:
        import sys, duckdb
        from pharox.cli import main
        duckdb.connect().sql("SELECT 1").fetchall()
        sys.argv[1:] = ["--version"]
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == (version("pharox"), "")
