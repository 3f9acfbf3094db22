"""A change to the files of an archive is found without a database."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pharox.ledger.archive import archive, check
from pharox.ledger.archive.files import EVENTS, TICKS
from pharox.log.canonical import digest
from pharox.storage.postgres import PostgresStorage

from .full_parts import full_parts


@pytest.fixture
def folder(postgres: PostgresStorage, tmp_path: Path) -> Path:
    """An archive of three parts, with ticks that cover two of them."""
    archive(postgres, full_parts(postgres).now, tmp_path / "archive")
    return tmp_path / "archive"


def files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).iterdir())


def rewrite(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


SOMETHING = {
    pa.string(): "something",
    pa.timestamp("us", tz="UTC"): datetime(2026, 1, 1, tzinfo=UTC),
    pa.list_(pa.string()): ["something"],
}


def other(value: Any, type_: pa.DataType, bit: int) -> Any:
    """Return another value of the same type."""
    if value is None:
        return SOMETHING.get(type_, bit)
    match value:
        case bool() | int():
            return value ^ (1 << bit % 8)
        case bytes():
            return bytes([value[0] ^ (1 << bit % 8), *value[1:]]) if value else b"x"
        case str():
            at = bit % (len(value) or 1)
            return value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] if value else "x"
        case list():
            return value[:-1]
    return value.replace(microsecond=value.microsecond ^ 1)


def test_an_archive_is_what_was_sealed(folder: Path, postgres: PostgresStorage) -> None:
    """Nothing is found in files that nobody touched, and the last root is the ledger's."""
    checked = check(folder)
    assert not checked.differences
    assert not checked.gaps
    assert checked.events == checked.last_seq > 50
    with postgres.session() as session:
        query = f"SELECT root FROM pharox.ticks WHERE last_seq = {checked.last_seq}"
        assert session.connection.execute(query).fetchall() == [(checked.root,)]


def test_every_changed_cell_is_found(folder: Path, tmp_path: Path) -> None:
    """Any one value of any file, changed in a file that is otherwise as it should be."""
    changed = tmp_path / "changed"

    @given(kind=st.sampled_from(["events", "ticks"]), pick=st.integers(0, 10**9))
    def find(kind: str, pick: int) -> None:
        rmtree(changed, ignore_errors=True)
        copytree(folder, changed)
        schema = EVENTS if kind == "events" else TICKS
        path = files(changed, kind)[pick % 3]
        rows = pq.read_table(path).to_pylist()
        assume(rows)
        row, name = rows[pick // 3 % len(rows)], schema.names[pick // 7 % len(schema.names)]
        assume(not (name.startswith("other") and not row[name]))
        row[name] = other(row[name], schema.field(name).type, pick // 11)
        rewrite(path, rows, schema)
        assert check(changed).differences

    find()


def test_a_missing_row_is_found(folder: Path) -> None:
    """An event or a tick that was taken out is missed."""
    for kind, schema in (("events", EVENTS), ("ticks", TICKS)):
        path = files(folder, kind)[1]
        rows = pq.read_table(path).to_pylist()
        rewrite(path, rows[1:], schema)
        assert check(folder).differences
        rewrite(path, rows, schema)
        assert not check(folder).differences


def test_a_doubled_event_is_found(folder: Path) -> None:
    """The same event twice is one too many."""
    path = files(folder, "events")[0]
    rows = pq.read_table(path).to_pylist()
    rewrite(path, [*rows[:4], *rows[3:]], EVENTS)
    assert any("appears twice" in sentence for sentence in check(folder).differences)


def test_a_forged_event_with_its_digest_is_found(folder: Path) -> None:
    """Making the digest anew does not help: the root covers it."""
    path = files(folder, "events")[0]
    rows = pq.read_table(path).to_pylist()
    rows[5]["consumer"] = "somebody else"
    rows[5]["digest"] = digest(rows[5])
    rewrite(path, rows, EVENTS)
    assert any("root" in sentence for sentence in check(folder).differences)


def test_a_missing_part_is_found(folder: Path) -> None:
    """A part between two others is missed by its positions."""
    files(folder, "events")[1].unlink()
    files(folder, "ticks")[1].unlink()
    assert "positions 20 to 39 are missing" in check(folder).differences


def test_missing_ticks_and_broken_files_are_told(folder: Path) -> None:
    """A file that cannot be read is a difference, in a sentence."""
    path = files(folder, "ticks")[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert any("cannot be read" in sentence for sentence in check(folder).differences)
    path.unlink()
    assert any("No such file" in sentence for sentence in check(folder).differences)
    rewrite(path, [{"a": 1}], pa.schema([("a", pa.int64())]))
    assert any("not have the columns" in sentence for sentence in check(folder).differences)


def test_a_text_that_is_none_is_told(folder: Path) -> None:
    """A bit that makes of a text what no text is, is a difference like any other."""
    path = files(folder, "events")[0]
    plain = pq.read_table(path)
    index = EVENTS.get_field_index("consumer")
    broken = pa.Array.from_buffers(
        pa.string(),
        plain.num_rows,
        [
            None,
            pa.py_buffer(struct.pack(f"<{plain.num_rows + 1}i", *range(plain.num_rows + 1))),
            pa.py_buffer(b"\xb0" * plain.num_rows),
        ],
    )
    pq.write_table(plain.set_column(index, EVENTS.field(index), broken), path)
    assert any("cannot be read" in sentence for sentence in check(folder).differences)


def test_a_flipped_bit_is_found(folder: Path, tmp_path: Path) -> None:
    """Wherever the disk errs in the data of a file, a digest or the reader finds it."""
    changed = tmp_path / "changed"

    @given(part=st.integers(0, 2), at=st.integers(4, 10**6), bit=st.integers(0, 7))
    def find(part: int, at: int, bit: int) -> None:
        rmtree(changed, ignore_errors=True)
        copytree(folder, changed)
        path = files(changed, "events")[part]
        before = pq.read_table(path)
        content = bytearray(path.read_bytes())
        content[at % len(content)] ^= 1 << bit
        path.write_bytes(content)
        if not check(changed).differences:  # It was in a statistic or a padding.
            assert pq.read_table(path).equals(before)

    find()
