"""``--watch``: draw what a command lists again and again, until Ctrl-C.

Every command that has ``--output`` has it: see ``once``. The command runs anew each time and
writes into a buffer; what it wrote replaces what stood there. One connection is kept for all
runs. If the database is away, the last table stays, with the error and since when below it.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from ..printable import escape_unprintable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WATCH = "watch"
"""The name of the parameter."""

EVERY_S = 2.0
SHORTEST_S = 0.1

_NUMBER = re.compile(r"-?[0-9.]+(ms|[smhdw])?")
"""What is meant as an interval, be it one or not."""

_FOOT = 2
"""How many lines of the screen are left for what stands below the table."""


@cache
def option() -> Any:
    """Return the option, for a command that lists something."""
    app = typer.Typer(add_completion=False)  # It makes options from functions only.
    app.command()(_with_option)
    return next(each for each in typer.main.get_command(app).params if each.name == WATCH)


def _with_option(
    watch: Annotated[
        str | None,
        typer.Option(
            f"--{WATCH}",
            metavar="[TIME]",
            help="Draw it again every 2 seconds, or so often (5, 500ms, 1m), until Ctrl-C.",
        ),
    ] = None,
) -> None:
    """Have the option that :func:`option` takes."""


def with_interval(arguments: list[str]) -> list[str]:
    """Return the arguments with an interval after ``--watch``, which the parser requires."""
    completed = list[str]()
    for place, word in enumerate(arguments):
        if word == "--":
            return completed + arguments[place:]
        following = "".join(arguments[place + 1 : place + 2])
        lacks = word == f"--{WATCH}" and not (
            _NUMBER.fullmatch(following) or interval_of(following)
        )
        completed += [f"--{WATCH}={EVERY_S:g}s"] if lacks else [word]
    return completed


def interval_of(text: str) -> float | None:
    """Return the seconds of an interval, or None if the text is none."""
    from .checking import duration_of  # noqa: PLC0415 - pydantic takes a while to import

    milliseconds = text.removesuffix("ms")
    try:
        if milliseconds != text:
            return float(milliseconds) / 1000
        return duration_of(text)
    except (InvalidInputError, ValueError, typer.BadParameter):
        return None


def watched(context: typer.Context, interval: str, run: Callable[[], Any]) -> None:
    """Run a command again and again, and show what it prints in place of what it printed.

    Raises
    ------
    InvalidInputError
        If the interval is none, or the output is not a table on a terminal.
    """
    every_s = interval_of(interval)
    if every_s is None or every_s < SHORTEST_S:
        raise InvalidInputError(
            f"--watch {interval} is no interval: give seconds, or a duration such as 500ms or 1m, "
            f"of at least {SHORTEST_S:g} s"
        )
    if not sys.stdout.isatty() or context.params.get("output", "table") != "table":
        raise InvalidInputError(
            "--watch redraws a table on a terminal; for a file, a pipe or a program, run the "
            "command again instead"
        )
    from .session import kept_open  # noqa: PLC0415 - it would import this module in a circle

    try:
        with kept_open(context):
            _redraw(run, every_s)
    except KeyboardInterrupt:
        return


def _redraw(run: Callable[[], Any], every_s: float) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where it can redraw
    from rich.live import Live  # noqa: PLC0415

    console = Console(highlight=False, markup=False, emoji=False)
    shown, lost = _printed_by(run), None
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as screen:
        while True:
            screen.update(_screen(console, shown, every_s, lost), refresh=True)
            time.sleep(every_s)
            try:
                shown, lost = _printed_by(run), None
            except Exception as error:
                lost = _Loss.after(lost, error)


class _Loss:
    """That the database is away: since when, and what it said last."""

    def __init__(self, since: datetime, sentence: str) -> None:
        self.since, self.sentence = since, sentence

    @classmethod
    def after(cls, before: _Loss | None, error: Exception) -> _Loss:
        """Return the loss after a failed run; an error of another kind is raised again."""
        from .failing import database_said  # noqa: PLC0415 - as above

        said = database_said(error)
        if said is None:
            raise error
        return cls(_now() if before is None else before.since, said)


def _printed_by(run: Callable[[], Any]) -> str:
    """Return what a command prints, as on a terminal."""
    printed = _Terminal()
    with redirect_stdout(printed), redirect_stderr(printed):
        run()
    return printed.getvalue()


class _Terminal(io.StringIO):
    """A buffer that what is printed into takes for the terminal that it is shown on."""

    def isatty(self) -> bool:
        """Say that it has colours."""
        return True


def _screen(console: Console, shown: str, every_s: float, lost: _Loss | None) -> Text:
    """Return as much of what was printed as fits, and a line about it."""
    from rich.text import Text  # noqa: PLC0415 - as above

    lines = shown.splitlines()
    fit = max(1, console.height - _FOOT - 1)
    cut = len(lines) - fit
    text = Text.from_ansi("\n".join(islice(lines, fit)), no_wrap=True, overflow="crop")
    more = f"{cut} more lines do not fit; " if cut > 0 else ""
    text.append(f"\n{more}every {every_s:g} s, at {_now():%H:%M:%S} UTC; Ctrl-C ends it", "dim")
    if lost is not None:
        said = escape_unprintable(" ".join(lost.sentence.split()))
        text.append(f"\nas it was before {lost.since:%H:%M:%S}; trying again: {said}", "red")
    return text


def _now() -> datetime:
    from ..models import utc_now  # noqa: PLC0415 - pydantic takes a while to import

    return utc_now()
