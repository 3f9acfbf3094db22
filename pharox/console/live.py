"""Keep a part of a page as it is now, by server-sent events.

A page is whole without it. Its script, if there is any, opens the stream that an element names
(``data-live``) and puts each fragment into the element. The fragment is the template that the page
was made with, so both show the same.

A fragment is sent when it differs from the last one. Access is asked for again before each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import PharoxError
from .access import Access
from .console import reader

EVERY_S = 2.0
"""How often a part of a page is made anew."""


async def stream(
    request: Request, fragment: Callable[[], Awaitable[str]], *, every_s: float = EVERY_S
) -> Response:
    """Return the stream of a part of a page, for as long as the browser listens."""
    await reader(request)
    return EventSourceResponse(_fragments(request, fragment, every_s), ping=15)


async def _fragments(
    request: Request, fragment: Callable[[], Awaitable[str]], every_s: float
) -> AsyncIterator[ServerSentEvent]:
    last = None
    while True:
        if not await _may_still_read(request):
            yield ServerSentEvent(event="failed", data="Not live: log in again.")
            return
        try:
            html = await fragment()
        except PharoxError as error:
            # The page keeps what it shows, and says that it is no longer live.
            yield ServerSentEvent(event="failed", data=str(error))
        else:
            if html != last:
                yield ServerSentEvent(event="part", data=html)
            last = html
        await asyncio.sleep(every_s)


async def _may_still_read(request: Request) -> bool:
    """Return whether access has not ended; whoever would be asked who they are has none."""
    try:
        access: Access = await request.app.state.console.access(request)
    except HTTPException:
        return False
    return access.may_read
