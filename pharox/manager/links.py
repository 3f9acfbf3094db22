"""Call the links that give mobile proxies another exit.

A link is a secret, and whoever answers it is not trusted. It is called directly, never through a
proxy, also not one of the environment; a redirect is not followed; of the answer an address is
kept, if it says one. httpx's client would log the URL, so its transport is used. The whole call is
over in time, whatever comes: a proxy is leased again when its claim is.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

import httpx
from pydantic import SecretStr

from ..models import RotationAnswer, RotationFailure
from ..models.outcome import MAX_RETRY_AFTER_S
from ..models.responses import retry_after_of
from ..models.text import normal_ip
from .rotator import LINK_S

_MAX_BYTES = 8192
_BODY_S = 3.0
"""How long the body of an answer may take. Its status has said already that the exit is another."""

_ADDRESSES = (
    *("new_ip", "newip", "newIp", "exit_ip", "external_ip", "externalIp", "ext_ip"),
    *("current_ip", "currentIp", "public_ip", "proxy_ip", "ip_address", "ip"),
)
"""The fields in which providers name the new address, the most exact one first."""


async def call_links(links: Sequence[SecretStr | None]) -> list[RotationAnswer]:
    """Call links, all at once, and return what came of each."""
    return await asyncio.gather(*map(_call, links))


def call_links_in_thread(links: Sequence[SecretStr | None]) -> list[RotationAnswer]:
    """Do the same from code that may be in a thread with an event loop."""
    answers: Future[list[RotationAnswer]] = Future()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                answers.set_result(runner.run(call_links(links)))
        except BaseException as error:
            answers.set_exception(error)

    threading.Thread(target=work, name="pharox-links", daemon=True).start()
    return answers.result()


class _Loop(asyncio.SelectorEventLoop):
    """A loop that looks names up in threads of its own.

    Those of a pool are not to be had any more while a program ends, and links are called then too.
    """

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Any:
        """Look a name up as ``socket.getaddrinfo`` does."""
        found: Future[Any] = Future()
        found.set_running_or_notify_cancel()  # A look-up goes on when nobody waits for it.

        def look() -> None:
            try:
                found.set_result(socket.getaddrinfo(host, port, **hints))
            except BaseException as error:
                found.set_exception(error)

        threading.Thread(target=look, name="pharox-names", daemon=True).start()
        return await asyncio.wrap_future(found, loop=self)


async def _call(link: SecretStr | None) -> RotationAnswer:
    if link is None:
        return RotationAnswer(RotationFailure.UNREADABLE)
    try:
        async with asyncio.timeout(LINK_S + _BODY_S):
            return await _answered(link)
    except (TimeoutError, httpx.TimeoutException):
        return RotationAnswer(RotationFailure.TIMEOUT)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError, OverflowError):
        return RotationAnswer(RotationFailure.UNREADABLE)
    except Exception:  # Whatever one link does, the others are called, and their answers kept.
        return RotationAnswer(RotationFailure.UNREACHABLE)


async def _answered(link: SecretStr) -> RotationAnswer:
    async with httpx.AsyncHTTPTransport(trust_env=False) as transport:
        async with asyncio.timeout(LINK_S):
            response = await transport.handle_async_request(_request(link))
        try:
            if response.is_success:
                return RotationAnswer(status=response.status_code, exit_ip=await _address(response))
            return RotationAnswer(
                RotationFailure.REFUSED,
                status=response.status_code,
                retry_after_seconds=retry_after_of(response, MAX_RETRY_AFTER_S),
            )
        finally:
            await response.aclose()


def _request(link: SecretStr) -> httpx.Request:
    url = httpx.URL(link.get_secret_value())
    headers = {"User-Agent": "pharox", "Connection": "close", "Accept-Encoding": "identity"}
    if url.userinfo:
        login = f"{url.username}:{url.password}".encode()
        headers["Authorization"] = f"Basic {b64encode(login).decode()}"
    timeout = httpx.Timeout(LINK_S).as_dict()
    return httpx.Request("GET", url, headers=headers, extensions={"timeout": timeout})


async def _address(response: httpx.Response) -> str | None:
    """Return the new address if the answer names it; what goes wrong there is no failure."""
    body = bytearray()
    stream: Any = response.stream
    try:
        async with asyncio.timeout(_BODY_S), aclosing(aiter(stream)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > _MAX_BYTES:
                    return None
    except (httpx.HTTPError, OSError):  # also a TimeoutError: part of an address is none
        return None
    return address_in(bytes(body))


def address_in(body: bytes) -> str | None:
    """Return the address in the answer of a link: the whole body, or a field of its JSON."""
    text = body.decode(errors="replace").strip()
    if (address := normal_ip(text)) is not None:
        return address
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    values = (found.get(name) for name in _ADDRESSES)
    known = (normal_ip(value) for value in values if isinstance(value, str))
    return next((address for address in known if address is not None), None)
