"""Fit a table into the width of a terminal.

A table that is wider wraps its sentences inside of their columns, at words only: an id, an
address or a time stays whole, so that it can be copied. If even that is too wide, each row
becomes a record with a line per column, as psql's expanded form does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

GAP = 2
"""How many spaces separate two columns."""

COLOURED = frozenset({"status", "result"})
"""The columns whose words have a colour."""

COLOUR_OF = {
    "ok": "green",
    "active": "green",
    "warning": "yellow",
    "slow": "yellow",
    "problem": "red",
    "inactive": "red",
    "banned": "red",
}


def fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], width: int
) -> RenderableType:
    """Return cells below their header, in at most so many terminal columns.

    Parameters
    ----------
    columns:
        The header.
    rows:
        The cells, safe to print; ``-`` for none.
    numeric:
        Of each column, whether it is aligned to the right.
    width:
        The width of the terminal.
    """
    widths = column_widths(columns, rows, width)
    if widths is None:
        return _records(columns, rows)
    table = Table(
        *(
            Column(Text(name), width=size, justify="right" if to_right else "left", overflow="fold")
            for name, size, to_right in zip(columns, widths, numeric, strict=True)
        ),
        box=None,
        padding=(0, GAP, 0, 0),
        pad_edge=False,
        header_style="bold",
    )
    for row in rows:
        table.add_row(*map(_coloured, columns, row))
    return table


def terminal_width() -> int:
    """Return how many columns the terminal has."""
    return Console().width


def column_widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[int] | None:
    """Return the widths of columns that fit together, or None if their words do not."""
    cells = [(name, *column) for name, *column in zip(columns, *rows, strict=True)]
    wanted = [max(map(cell_len, column)) for column in cells]
    widths = [
        max((cell_len(word) for cell in column for word in cell.split()), default=0)
        for column in cells
    ]
    left = width - GAP * (len(columns) - 1) - sum(widths)
    if left < 0:
        return None
    # What is left goes first to the columns that need the least of it.
    by_need = sorted(range(len(widths)), key=lambda place: wanted[place] - widths[place])
    for rank, place in enumerate(by_need):
        more = min(wanted[place] - widths[place], left // (len(by_need) - rank))
        widths[place] += more
        left -= more
    return widths


def _records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Text:
    """Return rows as records, one below the other, with an empty line between."""
    size = max(map(cell_len, columns))
    text = Text(overflow="fold")
    for row in rows:
        for name, cell in zip(columns, row, strict=True):
            text.append(name + " " * (size - cell_len(name) + GAP), style="bold")
            text.append_text(_coloured(name, cell)).append("\n")
        text.append("\n")
    text.right_crop(2)
    return text


def _coloured(column: str, cell: str) -> Text:
    colour = COLOUR_OF.get(cell) if column in COLOURED else None
    return Text(cell, style=Style(color=colour))
