"""What the integrations share: a host that is new enough, a lease to hold, and a proxy's URL.

What a client of a lease has to do is :class:`pharox.manager.holding.Holding`; an integration says
only how its host is given a proxy, and where that host tells of responses and errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeVar, Unpack

from ..effects import Calls, call, call_async, run, run_async
from ..errors import MissingHostError
from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.holding import Holding, making
from ..manager.options import PoolOptions
from ..manager.pool_handle import Handle
from ..manager.proxy_manager import ProxyManager
from ..models import LeasedProxy, ProxyProtocol

C = TypeVar("C")

_REMOTE = {ProxyProtocol.SOCKS4: "socks4a", ProxyProtocol.SOCKS5: "socks5h"}
"""How requests and curl spell that the proxy resolves the names of targets."""


def require(host: str, least: str, *, extra: str | None = None, module: str | None = None) -> None:
    """Raise an error in one sentence unless a host is installed and new enough.

    Parameters
    ----------
    host:
        The distribution, such as ``"aiohttp-socks"``.
    least:
        The first version that will do.
    extra:
        The extra of pharox that installs it; of the same name if None.
    module:
        What is imported of it; the host's name with underscores if None.

    Raises
    ------
    MissingHostError
        If it cannot be imported, or is older.
    """
    extra = extra or host
    if find_spec(module or host.replace("-", "_")) is None:
        raise _missing(host, least, extra, None)
    try:
        found = version(host)
    except PackageNotFoundError:  # It is on the path without being installed.
        return
    if _numbers(found) < _numbers(least):
        raise _missing(host, least, extra, found)


def _missing(host: str, least: str, extra: str, found: str | None) -> MissingHostError:
    there = "is not installed" if found is None else f"is {found} here"
    return MissingHostError(
        f"pharox.integrations needs {host} {least} or newer, which {there}: "
        f"pip install 'pharox[{extra}]'",
        host=host,
        extra=extra,
        least_version=least,
        found_version=found,
    )


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: (2, 13) for 2.13.0rc1, without zeros last."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in found[0].split(".")] if found else [0]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def opening(handle: Handle[Any], make: Callable[[Holding], C], *, report: bool = True) -> Calls[C]:
    """Lease a proxy and return what ``make`` makes to go by it.

    Raises
    ------
    ProxyUnavailableError
        If nothing was free.
    """
    if report:
        yield from handle._manager._reading_rules()
    lease = yield from handle._leasing(None, {})
    return (yield from making(Holding(handle._manager, lease, report=report), make))


def open_now(
    manager: ProxyManager,
    pool: str,
    make: Callable[[Holding], C],
    *,
    report: bool,
    **options: Unpack[PoolOptions],
) -> C:
    """Lease a proxy and return what ``make`` makes to go by it, as a blocking caller."""
    return run(opening(manager.pool(pool, **options), make, report=report), call)


async def open_async(
    manager: AsyncProxyManager,
    pool: str,
    make: Callable[[Holding], C],
    *,
    report: bool,
    **options: Unpack[PoolOptions],
) -> C:
    """Lease a proxy and return what ``make`` makes to go by it, from a coroutine."""
    return await run_async(opening(manager.pool(pool, **options), make, report=report), call_async)


def give_back(holding: Holding, error: BaseException | None = None) -> None:
    """Release a lease once, as a blocking caller; ``error`` is what ended its block."""
    run(holding.giving_back(error), call)


async def give_back_async(holding: Holding, error: BaseException | None = None) -> None:
    """Release a lease once, from a coroutine; ``error`` is what ended its block."""
    await run_async(holding.giving_back(error), call_async)


def url_resolving_there(proxy: LeasedProxy) -> str:
    """Return the URL of a proxy with which requests and curl leave names to the proxy.

    That is ``proxy.url``, except that SOCKS is spelled ``socks5h`` or ``socks4a``.
    """
    scheme, _, rest = proxy.url.partition("://")
    return f"{_REMOTE.get(proxy.protocol, scheme)}://{rest}"
