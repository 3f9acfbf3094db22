"""What a command lists is the same as a table, as JSON and as CSV, and fits where it goes."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pharox import ProxyManager
from pharox.cli.output import Format, print_rows
from pharox.cli.printing_json import MORE
from pharox.cli.showing import fitted_table
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill
from tests.hostile.values import AWKWARD

from .conftest import Pharox
from .test_hostile import is_inert

FORMULAS = ['=HYPERLINK("http://evil.example")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]


def printed(
    capsys: pytest.CaptureFixture[str], output: str, rows: Sequence[dict[str, object]]
) -> str:
    """Return what rows with the fields ``name`` and ``size`` look like."""
    fields = ("name", "size")
    print_rows(Format(output), rows, fields, lambda row: [row[f] for f in fields], fields=fields)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "rows", [[], [{"name": "a", "size": 1}], [{"name": "b", "size": None}] * 3]
)
def test_each_form_has_the_same_rows(
    capsys: pytest.CaptureFixture[str], rows: list[dict[str, object]]
) -> None:
    """JSON is one array, CSV has its header even without rows, and both have every field."""
    assert json.loads(printed(capsys, "json", rows)) == rows
    assert [json.loads(line) for line in printed(capsys, "jsonl", rows).splitlines()] == rows
    text = printed(capsys, "csv", rows)
    assert text.count("\r\n") == text.count("\n") == len(rows) + 1  # RFC 4180
    assert [*csv.DictReader(io.StringIO(text))] == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in rows
    ]
    assert len(printed(capsys, "table", rows).splitlines()) == len(rows) + 1


@pytest.mark.parametrize("name", [*AWKWARD.values(), *FORMULAS, 'a,"b"\nc'])
def test_no_cell_is_a_formula_or_moves_the_terminal(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A name that somebody else chose is only text in each form, and numbers stay numbers."""
    rows = [{"name": name, "size": -1}]
    for output in Format:
        text = printed(capsys, output, rows)
        assert is_inert(text.replace("\r\n", "\n")), output
    (row,) = csv.DictReader(io.StringIO(printed(capsys, "csv", rows)))
    assert not row["name"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert row["size"] == "-1"
    assert json.loads(printed(capsys, "json", rows)) == rows


words = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=50)
cells = st.lists(words, max_size=6).map(" ".join)


@given(
    table=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), max_size=4)
    ),
    width=st.integers(60, 150),
)
def test_a_table_fits_and_breaks_no_word(table: list[list[str]], width: int) -> None:
    """In a terminal no line is wider than it, and no id, address or time is broken."""
    columns = [f"column {n}" for n in range(len(table[0]) if table else 3)]
    console = Console(width=width, file=io.StringIO(), highlight=False, color_system=None)
    console.print(fitted_table(columns, table, width))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(cell_len(line) <= width for line in shown.splitlines())
    longest = max(
        (cell_len(word) for row in table for cell in row for word in cell.split()), default=0
    )
    if longest <= width - len("column 0") - 2:
        found = shown.split()
        assert all(word in found for row in table for cell in row for word in cell.split())


def test_a_list_is_printed_in_every_form(
    pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--json`` is a JSON object a line as ever; two forms at once are refused."""
    pool, _ = fill(storage, name="p")
    assert json.loads(pharox("pools", "-o", "json").out) == pharox("pools", "--json").objects
    assert pharox("pools", "list", "--output", "jsonl") == pharox("pools", "--json")
    (row,) = csv.DictReader(io.StringIO(pharox("pools", "-o", "csv").out))
    assert row["id"] == str(pool.id)
    for twice in (("--json", "-o", "csv"), ("-o", "csv", "-o", "json")):
        refused = pharox("pools", *twice)
        assert (refused.status, refused.out) == (2, "")
    assert pharox("pools", "-o", "xml").status == 2
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width, coloured in ((60, True), (400, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        if not coloured:
            monkeypatch.setenv("NO_COLOR", "1")
        shown = pharox("pools").out
        assert str(pool.id) in shown
        bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert all(len(line) <= width for line in bare.splitlines())
        assert str(uuid4()) not in shown


def test_what_a_command_did_has_the_same_forms(pharox: Pharox, storage: PostgresStorage) -> None:
    """An array, a line each, and CSV have the same fields; --json is one of them, not another."""
    _, proxies = fill(storage, 2)
    names = [proxy.id for proxy in proxies]
    lines = pharox("ban", *names, "--json").objects
    assert json.loads(pharox("ban", *names, "--output", "json").out) == lines
    rows = list(csv.DictReader(io.StringIO(pharox("ban", *names, "-o", "csv").out)))
    assert [row["id"] for row in rows] == [each["id"] for each in lines]
    assert [*rows[0]] == [*lines[0], MORE]
    assert not any(row[MORE] for row in rows)
    assert "already banned" in pharox("ban", *names, "-o", "table").out
    assert pharox("ban", *names, "--json", "-o", "csv").status == 2
    assert json.loads(pharox("sources", "refresh", "-o", "json").out) == []
    for command in ("acquire", "sweep", "replay", "release", "audit proxy"):
        assert "--output" in pharox(*command.split(), "--help").out


def test_objects_that_are_unlike_lose_nothing_in_csv(
    pharox: Pharox, storage: PostgresStorage
) -> None:
    """What the first object's columns do not have is in the last one."""
    fill(storage, 1, name="p")
    manager = ProxyManager(storage)
    lease = manager.acquire_proxy("p", consumer_name="c", target="shop.example")
    assert lease is not None
    assert manager.acquire_proxy("p", consumer_name="c", target="shop.example") is None
    manager.release_proxy(lease)
    lines = pharox("audit", "pool", "p", "--json").objects
    rows = list(csv.DictReader(io.StringIO(pharox("audit", "pool", "p", "-o", "csv").out)))
    assert [*rows[0]] == [*lines[0], MORE]
    assert [row["seq"] for row in rows] == [str(line["seq"]) for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert more_of(row) == {name: line[name] for name in line if name not in lines[0]}
    assert {"target", "reason", "expires_at"} <= {name for row in rows for name in more_of(row)}


def more_of(row: dict[str, str]) -> dict[str, object]:
    """Return the fields of a line that have no column."""
    found: dict[str, object] = json.loads(row[MORE] or "{}")
    return found
