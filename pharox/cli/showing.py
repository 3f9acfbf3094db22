"""Print text, tables and JSON, to a terminal or into a pipe.

Names and hosts are untrusted, so unprintable characters are escaped: a terminal must
not interpret them. A table fits the terminal; into a pipe go whole rows, one a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..printable import escape_unprintable
from ..printable import in_utc as in_utc  # noqa: PLC0414 - all commands print moments so

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
"""The option of a command that does something; one that lists has ``--output`` instead."""

WRITE: ContextVar[Callable[[dict[str, Any]], None] | None] = ContextVar("WRITE", default=None)
"""Prints an object in another form than a line of JSON; see ``printing_json``."""

PAGE = 1000
"""How many rows of a table determine the widths of its columns."""


def say(sentence: str) -> None:
    """Print a message to standard error."""
    print(f"pharox: {escape_unprintable(' '.join(sentence.split()))}", file=sys.stderr)


def print_json(attributes: BaseModel | dict[str, Any], *, flush: bool = True) -> None:
    """Print one JSON object as one line, in ASCII; of many, only the last needs a flush."""
    if not isinstance(attributes, dict):
        attributes = attributes.model_dump(mode="json")
    write = WRITE.get()
    if write is None:
        print(json.dumps(attributes), flush=flush)
        return
    write(attributes)
    if flush:
        sys.stdout.flush()


@contextmanager
def progress_bar(
    task: str, unit: str, total: int | None = None, *, stays: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal only; yield the function that updates it.

    That function takes the arguments of ``rich.progress.Progress.update``, but for the task.
    """
    from rich.console import Console  # noqa: PLC0415 - only where there is something to show
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn())
    console, is_hidden = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=not stays, disable=is_hidden) as bar:
        yield partial(bar.update, bar.add_task(task, total=total))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows below a header, as they come."""
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only where it can fit and has colours

        # Rich would find numbers, links and names of emojis in cells otherwise.
        console = Console(highlight=False, markup=False, emoji=False)
        rows = iter(rows)
        page = list(islice(rows, PAGE))
        console.print(fitted_table(columns, page, console.width))
        while page := list(islice(rows, PAGE)):
            console.print(fitted_table(columns, page, console.width))
    else:
        for line in table_lines(columns, rows):
            print(line)
    sys.stdout.flush()


def fitted_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], width: int
) -> RenderableType:
    """Return a table for a terminal of so many columns, such as for ``rich.live.Live``."""
    from .fitting import fitted  # noqa: PLC0415 - rich takes a while to import

    cells = [[_cell(value) for value in row] for row in rows]
    return fitted(columns, cells, _numeric(columns, rows), width)


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield a table's lines, the header first; numbers are right-aligned."""
    rows = iter(rows)
    page = list(islice(rows, PAGE))
    texts = [[_cell(value) for value in row] for row in page]
    widths = [max(map(_width, column)) for column in zip(columns, *texts, strict=True)]
    numeric = _numeric(columns, page)

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, to_right in zip(cells, widths, numeric, strict=True):
            space = " " * (width - _width(cell))
            padded.append(space + cell if to_right else cell + space)
        return "  ".join(padded).rstrip()

    yield line(columns)
    for row in chain(texts, ([_cell(value) for value in row] for row in rows)):
        yield line(row)


def _numeric(columns: Sequence[str], page: Sequence[Sequence[object]]) -> list[bool]:
    """Return of each column whether it has numbers only."""
    return [
        bool(page) and all(isinstance(value, int | None) for value in column)
        for column in zip(*page, strict=True)
    ] or [False] * len(columns)


def _width(text: str) -> int:
    """Return how many terminal columns a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - only where letters may be wide

    return cell_len(text)


def _cell(value: object) -> str:
    return "-" if value is None else escape_unprintable(str(value))
