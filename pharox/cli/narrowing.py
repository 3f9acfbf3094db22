"""Choose the columns of a list that fit a terminal; a file or a pipe gets all of them.

A column in which no row has anything is left out. If what remains is too wide for a row a line,
further columns are left out, those first that are missed least, and it is said which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..models.text import escape_unprintable
from .output import Format, print_rows
from .showing import PAGE, say

if TYPE_CHECKING:
    from pydantic import BaseModel

SHORT_ID = 18
"""How many characters of a lease's id are shown where space is short: its time and a counter."""

_SHORT_NAME = 16
"""How many characters of a name are shown there."""

_LONG = 24
"""From how many characters on a text may be wrapped."""

T = TypeVar("T")
Cell = Callable[[T], object]

Wide = Annotated[bool, typer.Option("--wide", help="Show all columns, also those that do not fit.")]


def shortened(name: str) -> str:
    """Return the beginning of a name for where space is short, with a mark if it is longer."""
    return name if len(name) <= _SHORT_NAME else f"{name[: _SHORT_NAME - 1]}…"


def print_fitting(
    output: Format,
    rows: Iterable[T],
    cells: Mapping[str, Cell[T]],
    *,
    fields: type[BaseModel] | Sequence[str],
    attributes: Callable[[T], Mapping[str, Any]] | None = None,
    spare: Sequence[str] = (),
    short: Mapping[str, Cell[T]] | None = None,
    rare: Sequence[str] = (),
    wide: bool = False,
    empty: str | None = None,
) -> None:
    """Print rows as :func:`pharox.cli.output.print_rows` does, with the columns that fit.

    Parameters
    ----------
    cells:
        What each column shows of a row, in the order of the columns.
    spare:
        The columns that a narrow terminal can do without, the first to go first.
    short:
        What a column shows on a terminal that is too narrow for all of them.
    rare:
        The columns that are shown only if one of the first thousand rows has a value.
    wide:
        Keep all columns.
    """
    chosen, left_out = dict(cells), list[str]()
    if output is Format.TABLE:
        rows = iter(rows)
        first = list(islice(rows, PAGE))
        rows = chain(first, rows)
        for name in rare:
            if all(cells[name](row) is None for row in first):
                del chosen[name]
        if sys.stdout.isatty() and first and not wide:
            chosen, left_out = _narrowed(chosen, short or {}, first, spare)
    print_rows(
        output,
        rows,
        list(chosen),
        lambda row: [cell(row) for cell in chosen.values()],
        fields=fields,
        attributes=attributes,
        empty=empty,
    )
    if left_out:
        say(f"left out, as they do not fit: {', '.join(left_out)}; --wide shows all")


def _narrowed(
    cells: dict[str, Cell[T]],
    short: Mapping[str, Cell[T]],
    rows: Sequence[T],
    spare: Sequence[str],
) -> tuple[dict[str, Cell[T]], list[str]]:
    """Return the columns that fit, and those that do not; all of them if too few are left."""
    if _fit(cells, rows):
        return cells, []
    chosen = {name: short.get(name, cell) for name, cell in cells.items()}
    left_out = list[str]()
    for name in spare:
        if _fit(chosen, rows):
            break
        if chosen.pop(name, None) is not None:
            left_out.append(name)
    return (chosen, left_out) if _fit(chosen, rows) else (cells, [])


def _fit(cells: Mapping[str, Cell[T]], rows: Sequence[T]) -> bool:
    """Return whether each row takes one line, unless a text in it is long."""
    from .fitting import GAP, terminal_width  # noqa: PLC0415 - rich takes a while to import

    needed = GAP * (len(cells) - 1)
    for name, cell in cells.items():
        needed += max(map(_least_width, (name, *(cell(row) for row in rows))))
    return needed <= terminal_width()


def _least_width(value: object) -> int:
    """Return how many columns a cell needs: that of its longest word, if it is long."""
    from rich.cells import cell_len  # noqa: PLC0415 - as above

    text = escape_unprintable(str(value))
    return cell_len(text) if len(text) <= _LONG else max(map(cell_len, text.split()), default=0)
