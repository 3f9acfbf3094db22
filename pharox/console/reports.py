"""Reports of incidents, drawn when a page asks for one; the last few are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

from ..effects.limiting import answers_within
from ..errors import InvalidInputError
from ..incident.gather.window import Window as Found
from ..incident.gather.window import find_window
from ..incident.report import chosen_pools, write_window
from ..models import utc_now
from .figures.activity import Log

ANSWER_S = 30.0
"""How many seconds each answer of the database may take: a report reads its whole window."""

MOST_EVENTS = 200_000
"""How many events a window may have: all are read and drawn."""

_KEPT = 4


class Window(NamedTuple):
    """A pool's name, "" for all, and from when to when."""

    pool: str
    start: datetime
    end: datetime

    @property
    def name(self) -> str:
        """What a file of its report is called."""
        return f"incident-{self.start:%Y%m%dT%H%M%SZ}"


class Drawn(NamedTuple):
    """A drawn report: its numbers in words, and its files by name, the page and the timeline."""

    numbers: str
    page: str
    files: Mapping[str, bytes]

    @property
    def html(self) -> str:
        """The page."""
        return self.files[self.page].decode()

    def packed(self, folder: str) -> bytes:
        """Return a zip file with the files in a folder."""
        file = BytesIO()
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for name, content in self.files.items():
                archive.writestr(f"{folder}/{name}", content)
        return file.getvalue()


class Reports:
    """Draws reports, and keeps the last few: the frame and the file of a window are of one drawing.

    It may be used by several threads.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._kept: OrderedDict[Window, Drawn] = OrderedDict()
        self._drawing: dict[Window, Lock] = {}
        self._lock = Lock()

    def drawn(self, storage: Any, window: Window) -> Drawn:
        """Return the report of a window that is over. It is drawn once, however many ask for it.

        Raises
        ------
        InvalidInputError
            If the window has more than :data:`MOST_EVENTS` events.
        """
        with self._lock:
            drawing = self._drawing.setdefault(window, Lock())
        with drawing:
            if (known := self._known(window)) is not None:
                return known
            found = self._draw(storage, window)
            with self._lock:
                self._kept[window] = found
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
                self._drawing.pop(window, None)
        return found

    def _known(self, window: Window) -> Drawn | None:
        with self._lock:
            if window in self._kept:
                self._kept.move_to_end(window)
                self._drawing.pop(window, None)
            return self._kept.get(window)

    def _draw(self, storage: Any, window: Window) -> Drawn:
        pools = [window.pool] if window.pool else []
        with answers_within(ANSWER_S), TemporaryDirectory(prefix="pharox-") as folder:
            found = find_window(storage, window.start, window.end, utc_now())
            self._check_events(storage, found, pools)
            report = write_window(storage, found, Path(folder, "report"), pools=pools)
            files = {part.name: part.read_bytes() for part in (report.page, report.timeline)}
            return Drawn(str(report), report.page.name, files)

    def _check_events(self, storage: Any, found: Found, pools: list[str]) -> None:
        """Raise an error if a report of a window would read more than can be drawn."""
        if found.upto - found.after <= MOST_EVENTS:
            return
        _, choice = chosen_pools(storage, found, pools)
        events = self._log.number(found.after, found.upto, choice.extract(found).pool_id)
        if events > MOST_EVENTS:
            raise InvalidInputError(
                f"the window has {events:,} events, of which {MOST_EVENTS:,} can be drawn: choose "
                "a shorter one here, or have it drawn by the command line"
            )
