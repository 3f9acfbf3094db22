"""The ASGI application: from a request to an operation, and from its outcome to an answer.

There is no framework in between: a route is an entry of a table, and all the middleware there is
stands in :meth:`Api._answer`, in the order in which it happens.

A client that is gone gets nothing: one that waits loses its place at once, and a lease that was
granted to it meanwhile is released. A lease whose answer was already under way runs out, unless the
client asks again with the same ``lease_id``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic_core import to_json

from ..events.attribution import Attribution, attributed_to
from ..models import MAX_TOKENS, ApiToken
from ..storage.async_interface import IAsyncStorage
from ..storage.validation import check_storage
from .bodies import MAX_WAIT_S
from .openapi import MAX_CORRELATION_LENGTH, description
from .operations import OPERATIONS, Answer, Call, Operation, Operations
from .problems import (
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    SHUTTING_DOWN,
    TOO_LARGE,
    Problem,
    of_the_body,
    problem_of,
)
from .tokens import Tokens, check_right

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from .metrics import Counts

ROOT = "/api/v1"
"""Where the application answers, wherever it is mounted; a mount may be at this path itself."""

MAX_BODY_BYTES = 1024 * 1024
"""How large a body may be."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_GONE = 499
"""The status that a request counts with whose client had gone, as nginx has it."""

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")
_NO_STORE = (b"cache-control", b"no-store")


class ClientGoneError(Exception):
    """The client closed its connection, so that nobody is there to be answered."""


class Api:
    """Serves the operations of ``/api/v1``; :func:`pharox.api.create_app` makes it."""

    def __init__(
        self, storage: IAsyncStorage, *, registry: CollectorRegistry | None = None
    ) -> None:
        check_storage(storage, awaited=True)
        self._tokens = Tokens(storage)
        self._operations = Operations(storage, self._tokens)
        self._counts = _counts(registry)
        self._stopping = asyncio.Event()

    def stop_waiting(self) -> None:
        """Send away who waits for a proxy: the server is being stopped. Call it in the loop."""
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        began = time.perf_counter()
        name, answer, headers = await self._answer(scope, receive)
        if answer is not None:
            await asyncio.sleep(0)  # The next batch goes to the ledger before this is written.
            await _send(send, answer.status, answer.value, headers)
        if self._counts is not None:
            status = _GONE if answer is None else answer.status
            self._counts.answered(name, status, time.perf_counter() - began)

    async def _answer(
        self, scope: Scope, receive: Receive
    ) -> tuple[str, Answer | None, list[tuple[bytes, bytes]]]:
        """Return the operation's name, its answer or that of a problem, and further headers.

        There is no answer if nobody is there to get it.
        """
        name = "none"
        try:
            path = _path(scope)
            if path == "/openapi.json" and scope["method"] in ("GET", "HEAD"):
                mounted = scope.get("root_path", "")
                return "openapi", Answer(200, description(ROOT, MAX_WAIT_S, mounted)), []
            operation, rest = _operation(scope["method"], path)
            name = operation.name
            return name, await self._carry_out(operation, rest, scope, receive), []
        except ClientGoneError:
            return name, None, []
        except Exception as error:
            problem = problem_of(error)
            headers = [(key.encode(), value.encode()) for key, value in problem.headers.items()]
            return name, Answer(problem.kind.status, problem.members()), [_PROBLEM, *headers]

    async def _carry_out(
        self, operation: Operation, rest: str, scope: Scope, receive: Receive
    ) -> Answer:
        headers = dict(scope["headers"])
        token = await self._tokens.of(headers.get(b"authorization", b"").decode("latin-1"))
        check_right(token, operation.right)
        call = Call(token, rest=rest, query=scope["query_string"].decode("latin-1"))
        if operation.body is not None:
            content = await _body(headers, receive)
            with of_the_body():
                call.body = operation.body.model_validate_json(content)
        with attributed_to(_attribution(token, headers)):
            doing = operation.handler(self._operations, call)
            if getattr(call.body, "wait_seconds", 0):
                answer = await self._while_there(doing, receive, operation.name)
            else:
                answer = await doing
        if answer.granted and _is_gone(receive):
            await self._operations.give_back(answer.granted)
            raise ClientGoneError
        return answer

    async def _while_there(self, doing: Awaitable[Answer], receive: Receive, name: str) -> Answer:
        """Carry out what may wait, unless the client leaves or the server stops meanwhile."""
        task = asyncio.ensure_future(doing)
        gone = asyncio.ensure_future(_disconnected(receive))
        stopped = asyncio.ensure_future(self._stopping.wait())
        if self._counts is not None:
            self._counts.waits(name, 1)
        try:
            await asyncio.wait({task, gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            # A storage gives back what it grants to a task that is cancelled.
            task.cancel()
            with suppress(asyncio.CancelledError):
                return await task  # It was answered before it could be cancelled.
            if gone.done():
                raise ClientGoneError
            raise Problem(SHUTTING_DOWN, retry_after_seconds=1.0)
        finally:
            if self._counts is not None:
                self._counts.waits(name, -1)
            for each in (task, gone, stopped):
                each.cancel()
            await asyncio.gather(task, gone, stopped, return_exceptions=True)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Say that there is nothing to start; whoever waits is sent away at the end."""
        while True:
            event = (await receive())["type"]
            if event == "lifespan.shutdown":
                self.stop_waiting()
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return


def _counts(registry: CollectorRegistry | None) -> Counts | None:
    if registry is None:
        return None
    from .metrics import Counts  # noqa: PLC0415 - it needs an extra

    return Counts.of(registry)


def _path(scope: Scope) -> str:
    """Return the path below the root, wherever the application is mounted."""
    path: str = scope["path"]
    mounted = scope.get("root_path", "")
    if mounted and path.startswith(mounted):
        path = path[len(mounted) :]
    return path.removeprefix(ROOT)


def _operation(method: str, path: str) -> tuple[Operation, str]:
    """Return the operation at a path, and the rest of the path, or raise the problem with it."""
    head, _, rest = path.rpartition("/")
    place, rest = (f"{head}/", rest) if head else (path, "")
    operation = OPERATIONS.get((method, place))
    if operation is not None:
        return operation, rest
    allowed = [each for each, where in OPERATIONS if where == place]
    if not allowed:
        raise Problem(NOT_FOUND)
    raise Problem(METHOD_NOT_ALLOWED, headers={"allow": ", ".join(allowed)})


def _attribution(token: ApiToken, headers: dict[bytes, bytes]) -> Attribution:
    """Return who events are attributed to: which token, and the job that the client names."""
    job = headers.get(b"x-correlation-id")
    if job is None:
        return Attribution(_actor(token.id), None)
    if len(job) > MAX_CORRELATION_LENGTH or not job.isascii() or not job.decode().isprintable():
        most = f"at most {MAX_CORRELATION_LENGTH} plain characters"
        raise Problem(INVALID_REQUEST, f"X-Correlation-Id has {most}.")
    return Attribution(_actor(token.id), job.decode() or None)


@lru_cache(maxsize=MAX_TOKENS)
def _actor(token_id: UUID) -> str:
    """Return the actor of events, which is the token by the beginning of its id."""
    return f"api:{str(token_id)[:8]}"


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Return the body of a request, unless it is too large or its sender has gone."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 18 or int(length) > MAX_BODY_BYTES:
        raise _too_large()
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return body


def _too_large() -> Problem:
    """Return the problem with a body; the rest of it is not read."""
    words = f"A body has at most {MAX_BODY_BYTES:,} bytes."
    return Problem(TOO_LARGE, words, headers={"connection": "close"})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_gone(receive: Receive) -> bool:
    """Return whether the client is known to have closed its connection, without waiting for it."""
    asked: Any = receive()
    try:
        # One step: a message that is there is returned, and what would wait is left at that.
        asked.send(None)
    except StopIteration as stopped:
        return bool(stopped.value["type"] == "http.disconnect")
    finally:
        asked.close()
    return False


async def _send(send: Send, status: int, value: Any, headers: list[tuple[bytes, bytes]]) -> None:
    body = value if isinstance(value, bytes) else to_json(value)
    kept = [*(headers or [_JSON]), (b"content-length", str(len(body)).encode()), _NO_STORE]
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})
