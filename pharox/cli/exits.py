"""The exit statuses of ``pharox``, one meaning each.

Scripts act on them, so a status never changes its meaning. ``docs/command-line.md`` has the same
table.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class Exit(IntEnum):
    """How a command ends."""

    meaning: str

    OK = 0, "it worked"
    FAILURE = (
        1,
        "it did not: an unknown pool or lease, filters that nothing matches, a bad entry, no "
        "database, something found to be wrong",
    )
    USAGE = 2, "the command makes no sense: an unknown option, a value that is none"
    TRY_AGAIN = (
        75,
        "not now, try again: every proxy is leased, rests or is unhealthy, or the queue is full; "
        "of `run` also a lost lease",
    )
    """EX_TEMPFAIL of sysexits.h: nothing is wrong with the command, and it may succeed later."""
    INTERRUPTED = (
        130,
        "it was ended by Ctrl-C, but for `--watch` and what serves, which end so and exit with 0",
    )
    BROKEN_PIPE = 141, "whatever read its output did not read all of it"
    TERMINATED = 143, "it was ended by SIGTERM"

    def __new__(cls, status: int, meaning: str) -> Self:
        """Make a status that carries its meaning."""
        member = int.__new__(cls, status)
        member._value_ = status
        member.meaning = meaning
        return member
