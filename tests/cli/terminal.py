"""A terminal for commands that run in this process: its size, and what is drawn on it."""

from __future__ import annotations

import re
import sys

import pytest
from rich.cells import cell_len

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80, lines: int = 50) -> None:
    """Have what is printed go to a terminal of this size, until the end of the test."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True, raising=False)
    for name, value in (("COLUMNS", columns), ("LINES", lines), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("NO_COLOR", raising=False)


def drawn(text: str) -> list[str]:
    """Return the lines of what was printed, without colours and movements."""
    return _CONTROL.sub("", text).splitlines()


def widest(text: str) -> int:
    """Return how many columns the longest line takes."""
    return max(cell_len(line) for line in drawn(text))
