"""Read a page of a story: the newest events before a place, or the first ones after it.

:mod:`pharox.history.latest` reads backwards, so a page costs what is around it, whether an object
has ten events or a million.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pharox.log import Extract

from ...errors import ArchivedError, InvalidInputError
from ...events import Event
from ...history.latest import SLACK, newest
from ...history.sealed_log import archived_upto, first_of, last_seq
from ...models.moments import behind
from .window import Wanted

PAGE = 50
"""How many events a page has."""

LOOKED = 100_000
"""Among how many events of all objects a page is looked for of a story that has no index."""


@dataclass(frozen=True, slots=True)
class Part:
    """A page of a story: events in the order of the log.

    ``older`` is the seq before which there may be more, ``newer`` the seq after which there may
    be more; None if there are none. ``begins_after`` is the last seq that is archived.
    ``looked_from`` and ``looked_upto`` are set if the page was looked for among so many events
    only: the seq of the first of them looking back, and of the last of them looking forward.
    """

    events: tuple[Event, ...]
    older: int | None = None
    newer: int | None = None
    begins_after: int = 0
    looked_from: int | None = None
    looked_upto: int | None = None


def read_part(
    storage: Any,
    of: Extract,
    wanted: Wanted,
    *,
    within: int | None = None,
    holds: Callable[[Event], bool] = lambda event: True,
    is_forward: bool = False,
) -> Part:
    """Return a page of a story.

    Parameters
    ----------
    storage:
        Whose log is read.
    of:
        Whose story it is.
    wanted:
        Which part of it.
    within:
        Among how many events of all objects a page is looked for; among all if None.
    holds:
        Which events of the extract belong to the story.
    is_forward:
        Whether it begins with the oldest event, unless ``wanted`` says from where on.

    Raises
    ------
    InvalidInputError
        If the end is before the beginning.
    """
    begin = archived_upto(storage)
    low, high = _bounds(storage, wanted, begin)
    extract = of._replace(types=wanted.types if of.types is None else _both(of, wanted))
    if isinstance(wanted.since, datetime):
        extract = extract._replace(since=wanted.since)
    if isinstance(wanted.until, datetime):
        extract = extract._replace(until=behind(wanted.until))
    if wanted.after is not None or (is_forward and wanted.before is None):
        after = max(low, wanted.after or 0)
        upto = high if within is None else min(high, after + within)
        part = _forward(storage, extract._replace(after=after, upto=upto), holds, begin, low)
        is_cut = upto < high and part.newer is None
        return replace(part, newer=upto, looked_upto=upto) if is_cut else part
    upto = high if wanted.before is None else min(high, wanted.before - 1)
    newer = upto if wanted.before is not None and upto < high else None
    after = low if within is None else max(low, upto - within)
    found = newest(storage, extract._replace(after=after, upto=upto), PAGE + 1, holds)
    if len(found) > PAGE:
        return Part(tuple(found[-PAGE:]), found[-PAGE].seq, newer, begin)
    looked_from = after + 1 if after > low else None
    return Part(tuple(found), looked_from, newer, begin, looked_from)


def _forward(
    storage: Any, extract: Extract, holds: Callable[[Event], bool], begin: int, low: int
) -> Part:
    found = first_of(storage, extract, PAGE + 1)
    newer = found[PAGE - 1].seq if len(found) > PAGE else None
    events = tuple(filter(holds, found[:PAGE]))
    first = events[0].seq if events else extract.after + 1
    older = first if extract.after > low else None
    return Part(events, older, newer, begin)


def _both(of: Extract, wanted: Wanted) -> tuple[str, ...]:
    """Return the types that are of the story and wanted."""
    types = tuple(of.types or ())
    return types if wanted.types is None else tuple(set(types) & set(wanted.types))


def _bounds(storage: Any, wanted: Wanted, begin: int) -> tuple[int, int]:
    """Return the seqs between which a part is, the first exclusive. Times are checked later."""
    low, high = begin, last_seq(storage)
    match wanted.since:
        case int():
            low = max(low, wanted.since - 1)
        case datetime():
            low = max(low, _seq_at(storage, wanted.since - timedelta(microseconds=1), begin))
    match wanted.until:
        case int():
            high = min(high, wanted.until)
        case datetime():
            high = min(high, max(begin, _seq_at(storage, wanted.until + SLACK, begin)))
    if _is_after(wanted.since, wanted.until):
        raise InvalidInputError(
            f"the end, {wanted.until_text}, is before the beginning, {wanted.since_text}"
        )
    return low, high


def _seq_at(storage: Any, moment: datetime, begin: int) -> int:
    try:
        seq: int = storage.seq_at(moment)
    except ArchivedError:
        return begin
    return seq


def _is_after(since: Any, until: Any) -> bool:
    if since is None or until is None or isinstance(since, int) is not isinstance(until, int):
        return False
    return bool(since > until)
