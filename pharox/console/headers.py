"""Headers of every answer: nothing is loaded from elsewhere, framed, or kept by a cache.

Script and style come from files of ours only. A name that contains markup is text (Jinja escapes
it); if it ever were not, no script in it would run.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

FRAMING = {"Content-Security-Policy": f"{POLICY}; frame-src 'self'"}
"""The headers of a page that shows another page of the console in a frame."""


def framed(policy: str) -> dict[str, str]:
    """Return the headers of a page with a policy of its own, which a page of ours may frame."""
    return {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'self'",
        "X-Frame-Options": "SAMEORIGIN",
    }


class SecurityHeaders:
    """Adds the headers that an answer has not set itself.

    What is not a file of ours is not stored either.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # Files carry an ETag, and are asked for anew; pages are of the moment.
                is_file = "etag" in headers
                headers["Cache-Control"] = "no-cache" if is_file else "no-store"
            await send(message)

        await self._app(scope, receive, with_headers)
