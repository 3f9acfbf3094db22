"""The story of a proxy, a consumer, a lease or a target, a page at a time.

It is what ``pharox audit`` tells, in the same words (:mod:`pharox.history.describing`), read by
keyset: a page begins at a seq and has so many events. Nothing is counted over the history, and
nothing is read that is not shown, but for the stretch of the log in which a page is looked for.
"""

from __future__ import annotations

from .lines import Line, Link, Sentence, by_day, lines_of, linked
from .reading import PAGE, Part, read_part
from .window import KINDS, Here, Wanted, wanted_of

__all__ = [
    "KINDS",
    "PAGE",
    "Here",
    "Line",
    "Link",
    "Part",
    "Sentence",
    "Wanted",
    "by_day",
    "lines_of",
    "linked",
    "read_part",
    "wanted_of",
]
