"""Print text, tables and JSON, to a terminal or into a pipe.

Names and hosts are untrusted, so unprintable characters are escaped: a terminal must
not interpret them. No line is cut or wrapped; a narrow terminal wraps by itself, and a
pipe gets whole rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from ..models.text import escape_unprintable

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
"""The option that every command with a result for scripts has."""

PAGE = 1000
"""How many rows of a table determine the widths of its columns."""


def in_utc(moment: datetime) -> str:
    """Return a moment as ISO 8601 with milliseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def say(sentence: str) -> None:
    """Print a message to standard error."""
    print(f"pharox: {escape_unprintable(' '.join(sentence.split()))}", file=sys.stderr)


def print_json(attributes: BaseModel | dict[str, Any], *, flush: bool = True) -> None:
    """Print one JSON object as one line, in ASCII; of many, only the last needs a flush."""
    if isinstance(attributes, BaseModel):
        attributes = attributes.model_dump(mode="json")
    print(json.dumps(attributes), flush=flush)


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
    lines = table_lines(columns, rows)
    header = next(lines)
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only where there are colours
        from rich.text import Text  # noqa: PLC0415

        Console().print(Text(header, style="bold"), soft_wrap=True)
    else:
        print(header)
    for line in lines:
        print(line)
    sys.stdout.flush()


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield a table's lines, the header first; numbers are right-aligned."""
    rows = iter(rows)
    page = list(islice(rows, PAGE))
    texts = [[_cell(value) for value in row] for row in page]
    widths = [max(map(_width, column)) for column in zip(columns, *texts, strict=True)]
    numeric = [
        bool(page) and all(isinstance(value, int | None) for value in column)
        for column in zip(*page, strict=True)
    ] or [False] * len(columns)

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, to_right in zip(cells, widths, numeric, strict=True):
            space = " " * (width - _width(cell))
            padded.append(space + cell if to_right else cell + space)
        return "  ".join(padded).rstrip()

    yield line(columns)
    for row in chain(texts, ([_cell(value) for value in row] for row in rows)):
        yield line(row)


def _width(text: str) -> int:
    """Return how many terminal columns a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - only where letters may be wide

    return cell_len(text)


def _cell(value: object) -> str:
    return "-" if value is None else escape_unprintable(str(value))
