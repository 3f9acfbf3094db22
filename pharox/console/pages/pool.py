"""One pool: its chart, leases and proxies, now or at a moment of the past."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ...errors import InvalidInputError
from ...models import utc_now
from ...models.ids import NIL
from ..console import Console, reader
from ..live import stream
from ..pool_view import SPANS, PoolView, Question
from ..rendering import render, render_text
from ..story.window import moment_of


def question_of(request: Request) -> Question:
    """Return what a request asks: ``at``, ``span``, ``end`` and the pages of leases and proxies.

    Raises
    ------
    InvalidInputError
        If one of them cannot be read.
    """
    given = request.query_params
    span = given.get("span", "900")
    proxy_id, _, lease_id = given.get("leases", "").partition(".")
    return Question(
        _time(given.get("at", "")),
        int(span) if span.isdecimal() and len(span) < 9 else 0,
        _time(given.get("end", "")),
        (_id(proxy_id), _id(lease_id)),
        _id(given.get("proxies", "")),
    )


def _time(text: str) -> datetime | None:
    """Return a moment that is no seq: a pool is shown at a time."""
    found = moment_of(text, utc_now())
    if isinstance(found, int):
        raise InvalidInputError(
            f"{text!r} is not a moment, such as 2026-11-30T14:05:00", value=text
        )
    return found


async def page(request: Request) -> Response:
    """Answer with the page of a pool."""
    console = await reader(request)
    question = question_of(request)
    shown = await _shown(console, request, question)
    return render(request, "pool.html", spans=SPANS, is_live=is_live(question), **shown)


async def part(request: Request) -> Response:
    """Answer with the part of the page that a moment changes, for the slider."""
    console = await reader(request)
    shown = await _shown(console, request, question_of(request))
    return HTMLResponse(render_text(request, "parts/pool.html", **shown))


async def live(request: Request) -> Response:
    """Answer with the stream of a pool as it is now."""
    console = await reader(request)
    question = question_of(request)

    async def fragment() -> str:
        shown = await _shown(console, request, question)
        return render_text(request, "parts/pool.html", **shown)

    return await stream(request, fragment)


def is_live(question: Question) -> bool:
    """Return whether a page is kept as it is now: a later page stands still, to be read."""
    return question.at is None and question.is_first_page


async def _shown(console: Console, request: Request, question: Question) -> dict[str, Any]:
    """Return the view, and where its next pages are: the same moment and window, further on."""
    view = await _view(console, request, question)
    moment = {"at": view.at.isoformat()} if view.is_past else {}
    end = {} if question.end is None else {"end": question.end.isoformat()}
    return {"view": view, "place": {"span": view.window.span_s, **moment, **end}}


async def _view(console: Console, request: Request, question: Question) -> PoolView:
    pool_id: UUID = request.path_params["pool"]
    if question.at is not None:
        return await console.read(console.pools.of, pool_id, question)
    return await console.shared((pool_id, question), console.pools.of, pool_id, question)


def _id(text: str) -> UUID:
    if not text:
        return NIL
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidInputError(f"{text!r} is not an id", value=text) from error
