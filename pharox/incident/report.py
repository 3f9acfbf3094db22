"""Write a report folder with the timeline and the page, both or neither.

The events are read once. Everything is written into a temporary folder, which is
renamed at the end, so an interrupted report is never mistaken for a complete one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

from ..errors import ReportError
from ..history.pool_names import pools_then
from ..history.sealed_log import SealedLog, beginning
from ..models import utc_now
from .draw.listing import Listing
from .draw.page import render
from .gather.opening import opening
from .gather.picture import Picture
from .gather.running_state import RunningState
from .gather.window import Choice, Window, find_pools, find_window
from .wording import count

TIMELINE, PAGE = "timeline.jsonl", "index.html"


@dataclass(frozen=True, slots=True)
class Report:
    """A written report: its folder, its window and the number of events."""

    folder: Path
    start: datetime
    end: datetime
    events: int
    leases: int
    misses: int

    @property
    def page(self) -> Path:
        """The HTML file to open."""
        return self.folder / PAGE

    @property
    def timeline(self) -> Path:
        """The file with every event, one JSON object a line."""
        return self.folder / TIMELINE

    def __str__(self) -> str:
        numbers = (
            count(self.events, "event"),
            count(self.leases, "lease"),
            count(self.misses, "miss", "misses"),
        )
        return ", ".join(numbers)


def write_report(
    storage: SealedLog,
    start: datetime,
    end: datetime,
    folder: Path | str,
    *,
    pools: Collection[str] = (),
) -> Report:
    """Write what happened in a window of time into a folder.

    The folder then has ``timeline.jsonl``, every event with derived data, one JSON
    object a line, and ``index.html``, a picture of them that opens without a network.

    Parameters
    ----------
    storage:
        The storage of the ledger, which is only read.
    start, end:
        The window, with a time zone, both inclusive. An end in the future is
        moved to now.
    folder:
        The folder to write; it is created, or must be empty.
    pools:
        The names of the pools to report, as they were in the window; all if empty.

    Raises
    ------
    InvalidInputError
        If the window ends before it begins, or has not begun.
    PoolNotFoundError
        If a name was neither a pool's nor requested.
    ReportError
        If nothing happened in the window, or the folder cannot be written.
    """
    return write_window(storage, find_window(storage, start, end, utc_now()), folder, pools=pools)


def write_window(
    storage: SealedLog, window: Window, folder: Path | str, *, pools: Collection[str] = ()
) -> Report:
    """Do what :func:`write_report` does for a window that was found."""
    with _new_folder(Path(folder)) as place:
        known, choice = chosen_pools(storage, window, pools)
        begins = opening(storage, known, choice, window.after)
        running_state, listing = RunningState(begins), Listing(window)
        picture = Picture(window, choice, begins, running_state)
        with (place / TIMELINE).open("w", encoding="ascii") as timeline:
            for event in storage.history(choice.extract(window)):
                if choice.holds(event):
                    running_state.take(event)
                    picture.take(event)
                    listing.take(event, running_state)
                    timeline.write(json.dumps(running_state.line_of(event)) + "\n")
        if not listing.seen:
            names = ", ".join(map(repr, pools))
            raise ReportError(f"nothing happened in {names} between {window}")
        drawn = picture.pools()
        (place / PAGE).write_text(render(picture, listing), encoding="utf-8")
    return Report(
        Path(folder),
        window.start,
        window.end,
        listing.seen,
        sum(1 for pool in drawn for _ in pool.bars),
        sum(pool.miss_reasons.total() for pool in drawn),
    )


def chosen_pools(
    storage: SealedLog, window: Window, pools: Collection[str]
) -> tuple[dict[UUID, str], Choice]:
    """Return the names of all pools before a window, and those of a report of it.

    Raises
    ------
    PoolNotFoundError
        If a name was neither a pool's nor requested.
    """
    then = pools_then(storage, beginning(storage), window.after)
    known = {row.id: row.name for row in then.values()}
    return known, find_pools(storage, window, known, pools)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to ``folder`` on success."""
    folder = folder.resolve()
    place = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ReportError(f"{str(folder)!r} exists and is not an empty folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir()
        try:
            yield place
            place.rename(folder)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    except OSError as error:
        why = error.strerror or str(error)
        raise ReportError(f"the report cannot be written to {str(folder)!r}: {why}") from error
