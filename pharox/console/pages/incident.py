"""An incident: choose a pool and a window, look at what happened, take it with you as a file.

The picture is the page that :mod:`pharox.incident` draws, whole, in a frame of the console's page.
It brings its own policy, which allows its own style and script by their hashes and nothing else; so
the console's policy stays as strict as it is, and what is looked at is what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ...errors import InvalidInputError, PharoxError, PoolNotFoundError, ReportError
from ...history.sealed_log import event_at
from ...incident.draw.page import policy
from ...incident.wording import full_moment
from ...models import utc_now
from ..console import reader
from ..headers import FRAMING, framed
from ..rendering import render
from ..reports import Reports, Window
from ..story.window import moment_of

LONGEST = timedelta(hours=6)
"""How long a window may be; a longer one is for `scripts/replay_incident.py`."""

_USUAL = "15m"


@dataclass(frozen=True, slots=True)
class IncidentPage:
    """What the page shows: the form as it was filled in, and the report or why there is none."""

    pools: Sequence[str]
    pool: str
    since: str
    until: str
    window: Window | None = None
    numbers: str = ""
    problem: str = ""
    status_code: int = 200


def data(storage: Any, reports: Reports, query: Mapping[str, str]) -> IncidentPage:
    """Return what the page shows for the parameters of its address."""
    pools = [pool.name for pool in storage.list_pools()]
    asked = IncidentPage(
        pools,
        query.get("pool", ""),
        query.get("from", "").strip() or _USUAL,
        query.get("to", "").strip() or "now",
    )
    if not {"pool", "from", "to"} & set(query):
        return asked
    try:
        window = window_of(storage, asked.pool, asked.since, asked.until)
        numbers = reports.drawn(storage, window).numbers
    except (ReportError, InvalidInputError, PoolNotFoundError) as error:
        status = 400 if isinstance(error, InvalidInputError) else 404
        return replace(asked, problem=_sentence(error), status_code=status)
    return replace(asked, window=window, numbers=numbers)


def window_of(storage: Any, pool: str, since: str, until: str) -> Window:
    """Return the window between two moments, which end now at the latest.

    Raises
    ------
    InvalidInputError
        If a moment is none, or the window is empty or longer than :data:`LONGEST`.
    """
    now = utc_now().replace(microsecond=0)
    start = _time(storage, since, now, is_end=False)
    end = min(_time(storage, until, now, is_end=True), now)
    if start >= end:
        raise InvalidInputError(
            f"the window must begin before it ends, and {full_moment(start)} is not before "
            f"{full_moment(end)}"
        )
    if end - start > LONGEST:
        raise InvalidInputError(
            "the window is longer than 6 hours: choose a shorter one here, or have it drawn by "
            "the command line"
        )
    return Window(pool, start, end)


def _time(storage: Any, text: str, now: datetime, *, is_end: bool) -> datetime:
    moment = moment_of(text, now, is_end=is_end)
    if isinstance(moment, datetime):
        return moment
    event = event_at(storage, moment or 0)
    if event is None:
        raise InvalidInputError(f"the log has no event {text}")
    return event.recorded_at


def _sentence(error: PharoxError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:].rstrip(".") + "."


async def page(request: Request) -> Response:
    """Answer with the form, and the report if a window was chosen."""
    console = await reader(request)
    shown = await console.read_slowly(data, console.storage, console.reports, request.query_params)
    return render(
        request,
        "incident.html",
        shown=shown,
        status_code=shown.status_code,
        headers=FRAMING,
    )


async def drawn(request: Request) -> Response:
    """Answer with the report itself, for the frame."""
    console = await reader(request)
    window = await console.read(_asked, console.storage, request.query_params)
    report = await console.read_slowly(console.reports.drawn, console.storage, window)
    return HTMLResponse(report.html, headers=framed(policy()))


def _asked(storage: Any, query: Mapping[str, str]) -> Window:
    return window_of(storage, query.get("pool", ""), query.get("from", ""), query.get("to", ""))


async def export(request: Request) -> Response:
    """Answer with the report as a file: the page, and the timeline beside it."""
    console = await reader(request)
    window = await console.read(_asked, console.storage, request.query_params)
    report = await console.read_slowly(console.reports.drawn, console.storage, window)
    packed = await run_in_threadpool(report.packed, window.name)
    name = {"Content-Disposition": f'attachment; filename="{window.name}.zip"'}
    return Response(packed, media_type="application/zip", headers=name)
