"""Print long text: whole lines into a pipe, wrapped and in a pager on a terminal.

What is printed comes from a query that holds a snapshot of the database, and a person may leave a
pager open over night. So lines are written to a temporary file as fast as they come, and the
pager is fed from there.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from threading import Condition, Thread
from typing import IO, TYPE_CHECKING, Annotated, Protocol, cast

import typer

from ..models.text import escape_unprintable

if TYPE_CHECKING:
    from rich.console import Console

NoPager = Annotated[
    bool, typer.Option("--no-pager", help="Print to the terminal however long it is.")
]

_LEAST_TEXT = 40
"""How many columns the text beside a margin gets at least; else it begins below it, indented."""


_CHUNK = 65_536
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Printable(Protocol):
    """A line: what stands in its margin, its text, and the style of rich that it has."""

    @property
    def text(self) -> str:
        """What is wrapped."""

    @property
    def margin(self) -> str:
        """What stands before the first of its lines, and blank before the others."""

    @property
    def tone(self) -> str:
        """The style."""


def print_lines(lines: Iterable[Printable], *, paged: bool = True) -> None:
    """Print lines as they come; on a terminal as many of them as fit, or by a pager."""
    if not sys.stdout.isatty():
        for line in lines:
            print(escape_unprintable(line.margin + line.text))
        return
    from rich.console import Console  # noqa: PLC0415 - only where it wraps and has colours

    console = Console(highlight=False, markup=False, emoji=False)
    drawn = chain.from_iterable(_drawn(line, console) for line in lines)
    begun = list(islice(drawn, console.height))
    pager = _Pager.started() if paged and len(begun) == console.height else None
    if pager is None:
        for text in chain(begun, drawn):
            print(text)
        return
    with pager:
        all(map(pager.write, chain(begun, drawn)))


def _drawn(line: Printable, console: Console) -> Iterator[str]:
    """Yield a line as it is drawn: in as many lines as it needs, each with its colours."""
    from rich.text import Text  # noqa: PLC0415 - as above

    margin, text = escape_unprintable(line.margin), escape_unprintable(line.text)
    indent = len(margin) if console.width - len(margin) >= _LEAST_TEXT else 4 * bool(margin)
    wrapped = Text(text, style=line.tone).wrap(console, max(20, console.width - indent))
    for number, part in enumerate(wrapped):
        part.rstrip()
        first = number == 0 and bool(margin.strip())
        if first and indent < len(margin):
            yield _rendered(Text(margin.rstrip(), style="dim"), console)
        lead = margin if first and indent == len(margin) else " " * indent
        yield _rendered(Text.assemble((lead, "dim"), part), console).rstrip("\n")


def _rendered(text: object, console: Console) -> str:
    with console.capture() as captured:
        console.print(text, soft_wrap=True, end="")
    return captured.get()


class _Pager:
    """A pager, and the file that it is fed from while lines are still written to it."""

    def __init__(self, process: subprocess.Popen[bytes], *, has_colours: bool) -> None:
        self._process, self._has_colours = process, has_colours
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the block
        self._size, self._has_ended, self._is_closed = 0, False, False
        self._changed = Condition()
        self._feeder = Thread(target=self._feed, daemon=True)

    @classmethod
    def started(cls) -> _Pager | None:
        """Start the pager of the environment, else `less`; None if there is none."""
        command = shlex.split(os.environ.get("PAGER", "")) or ["less"]
        # As git has it: leave if it fits, take colours, and leave the text on the screen.
        environment = {"LESS": "FRX", **os.environ}
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                command, stdin=subprocess.PIPE, env=environment
            )
        except OSError:
            return None
        return cls(process, has_colours=os.path.basename(command[0]) == "less")

    def __enter__(self) -> _Pager:
        self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._has_ended = True
            self._changed.notify()
        while self._process.poll() is None:
            with suppress(KeyboardInterrupt):  # It is for the pager, which ends when it likes.
                self._process.wait()
        self._feeder.join()
        self._file.close()

    def write(self, text: str) -> bool:
        """Give the pager a line; return whether it still takes any."""
        coloured = text if self._has_colours else _COLOUR.sub("", text)
        data = f"{coloured}\n".encode(sys.stdout.encoding, "backslashreplace")
        self._file.write(data)
        self._file.flush()
        with self._changed:
            self._size += len(data)
            self._changed.notify()
            return not self._is_closed

    def _feed(self) -> None:
        """Pass on what was written, until its end or that of the pager."""
        pipe, at = cast("IO[bytes]", self._process.stdin), 0
        with suppress(BrokenPipeError), pipe:
            while at < (size := self._written(at)):
                at += pipe.write(os.pread(self._file.fileno(), min(size - at, _CHUNK), at))
        with self._changed:
            self._is_closed = True

    def _written(self, at: int) -> int:
        """Return how much was written, once it is more than this or there is no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._size > at or self._has_ended)
            return self._size
