"""``--output``: print rows as a table, as JSON or as CSV, alike in every command that lists some.

A table is for people: it has the columns and the words of its command, and fits the terminal.
JSON and CSV are for programs: both have the fields of the model, under the same names, and no
secret, as models hide theirs. All of them are printed as the rows come.

What a name looks like is somebody else's choice, so no cell may control a terminal, and none of
CSV is a formula for a spreadsheet that opens it.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..printable import escape_unprintable
from .showing import print_table, say

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


OUTPUT = "output"
"""The name of the parameter, which ``--json`` belongs to as well: see ``once``."""

Output = Annotated[
    Format,
    typer.Option(
        f"--{OUTPUT}",
        "-o",
        help="As a table, a JSON array, a JSON object per line (--json for short), or CSV.",
        show_default=False,
    ),
]
"""The option that every command has that lists or shows something; its default is the table."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet would evaluate."""


def print_rows(
    output: Format,
    rows: Iterable[T],
    columns: Sequence[str],
    row: Callable[[T], Sequence[object]],
    *,
    fields: type[BaseModel] | Sequence[str],
    attributes: Callable[[T], Mapping[str, Any]] | None = None,
    empty: str | None = None,
) -> None:
    """Print rows in the form that was asked for.

    Parameters
    ----------
    output:
        The value of the command's ``--output``.
    rows:
        Models, dataclasses or mappings; read once and as they are printed.
    columns, row:
        The header of the table, and the cells of a row below it.
    fields:
        The header of CSV: names of attributes, or the model that has them.
    attributes:
        The attributes of a row for JSON and CSV; if None those of the model, of the dataclass
        or of the mapping, as JSON has them.
    empty:
        What is said instead of an empty table, on standard error.
    """
    attributes = attributes or attributes_of
    match output:
        case Format.TABLE:
            _print_table(rows, columns, row, empty)
        case Format.JSON:
            _print_array(map(attributes, rows))
        case Format.JSONL:
            for each in rows:
                print(json.dumps(attributes(each)))
        case Format.CSV:
            names = fields if isinstance(fields, Sequence) else _fields_of(fields)
            _print_csv(names, map(attributes, rows))
    sys.stdout.flush()


def attributes_of(row: object) -> dict[str, Any]:
    """Return the attributes of a model, a dataclass or a mapping, as JSON has them."""
    from pydantic_core import to_jsonable_python  # noqa: PLC0415 - a table needs none

    attributes: dict[str, Any] = to_jsonable_python(row)
    return attributes


def _fields_of(model: type[BaseModel]) -> tuple[str, ...]:
    return (*model.model_fields, *model.model_computed_fields)


def _print_table(
    rows: Iterable[T],
    columns: Sequence[str],
    row: Callable[[T], Sequence[object]],
    empty: str | None,
) -> None:
    rows = iter(rows)
    first = list(islice(rows, 1))
    if first or empty is None:
        print_table(columns, map(row, chain(first, rows)))
    else:
        say(empty)


def _print_array(objects: Iterable[Mapping[str, Any]]) -> None:
    """Print an array, one element a line, so that it is readable and begins at once."""
    before = "[\n"
    for each in objects:
        print(before, json.dumps(each), sep="", end="")
        before = ",\n"
    print("[]" if before == "[\n" else "\n]")


def _print_csv(fields: Sequence[str], objects: Iterable[Mapping[str, Any]]) -> None:
    r"""Print CSV as RFC 4180 has it: a header, and lines that end with ``\r\n``."""
    print_csv_lines(fields, objects, with_header=True)


def print_csv_lines(
    fields: Sequence[str], objects: Iterable[Mapping[str, Any]], *, with_header: bool
) -> None:
    """Print objects as lines of CSV, with a header above them or without."""
    for line in _csv_lines(fields, objects, with_header=with_header):
        sys.stdout.write(line)


def _csv_lines(
    fields: Sequence[str], objects: Iterable[Mapping[str, Any]], *, with_header: bool
) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    lines = ([_in_csv(each.get(field)) for field in fields] for each in objects)
    for cells in chain([fields] if with_header else [], lines):
        writer.writerow(cells)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _in_csv(value: object) -> object:
    """Return a cell: nothing for None, JSON for what is nested, and no text that is a formula."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return escape_unprintable(json.dumps(value))
    if not isinstance(value, str):
        return value
    text = escape_unprintable(value)
    return f"'{text}" if value.startswith(_FORMULA) else text
