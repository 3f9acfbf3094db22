"""Errors as pages: one sentence that says what to do, with the status that a client expects."""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import (
    AnswerTimeoutError,
    ArchivedError,
    ConflictError,
    ConsumerNotFoundError,
    DatabaseError,
    InvalidInputError,
    LeaseEndedError,
    PharoxError,
    PoolNotFoundError,
    ProxyNotFoundError,
    SchemaError,
    SubscriptionNotFoundError,
)
from .rendering import render

logger = logging.getLogger("pharox")

_STATUSES: tuple[tuple[type[PharoxError], int], ...] = (
    (PoolNotFoundError, 404),
    (ProxyNotFoundError, 404),
    (ConsumerNotFoundError, 404),
    (SubscriptionNotFoundError, 404),
    (LeaseEndedError, 409),
    (ConflictError, 409),
    (InvalidInputError, 400),
    (ArchivedError, 410),
    (AnswerTimeoutError, 504),
    (SchemaError, 503),
    (DatabaseError, 503),
)
_SENTENCES = {
    401: "This console asks who you are.",
    403: "You may not see this. The console lets in whom its `authorize` function does; by "
    "default that is whoever asks from the machine that it runs on.",
    404: "There is no such page.",
    500: "Something went wrong in the console itself. The log of its process says what.",
    504: "The database took too long for this page, so it was not asked further. Try a shorter "
    "window, or later.",
}


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


async def page_of_error(request: Request, error: Exception) -> Response:
    """Return the page that says what went wrong."""
    status = status_of(error)
    sentence = _SENTENCES.get(status, HTTPStatus(status).description)
    is_ours = isinstance(error, PharoxError) and status not in (500, 504)
    if is_ours or (isinstance(error, HTTPException) and error.detail != HTTPStatus(status).phrase):
        sentence = str(error) if is_ours else getattr(error, "detail", sentence)
    headers = getattr(error, "headers", None)
    return render(
        request,
        "error.html",
        status_code=status,
        headers=headers,
        status=status,
        title=HTTPStatus(status).phrase,
        sentence=sentence,
    )


class ErrorPages:
    """Answers an error that nobody expected with a page, and logs it.

    The page says nothing of it: it may quote a secret.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            if scope["type"] != "http" or has_begun:
                raise
            logger.exception("pharox.console.failed: %s", scope["path"])
            page = await page_of_error(Request(scope), HTTPException(500))
            await page(scope, receive, send)
