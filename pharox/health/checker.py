"""Which strategy and which options a proxy is checked with, one proxy or a stream of them.

A strategy may be anybody's: it is stopped when its time is up, and whatever it
raises or returns, a check ends with a result for its proxy.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing

from ..errors import InvalidInputError, OutOfResourcesError
from ..models import (
    CheckFailure,
    HealthCheckOptions,
    HealthCheckResult,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
)
from ..storage.validation import checked_model
from .probing import HealthCheckStrategy, HTTPHealthCheckStrategy
from .streaming import in_chunks

CONCURRENCY = 100
"""How many proxies are checked at once if nobody says how many."""

GRACE_S = 0.5
"""How long after its last attempt's deadline a strategy may take to give its result."""

Proxies = Iterable[Proxy] | AsyncIterable[Proxy]

logger = logging.getLogger("pharox")


class HealthChecker:
    """Checks proxies, each in the way of its protocol. It records nothing.

    Parameters
    ----------
    default_options:
        For protocols that have none of their own.
    protocol_options:
        Options by protocol.
    strategies:
        Strategies by protocol. A protocol without one is checked as HTTP is, by
        default with :class:`HTTPHealthCheckStrategy`.
    ssl_context:
        What the default strategy trusts.
    """

    def __init__(
        self,
        default_options: HealthCheckOptions | None = None,
        protocol_options: Mapping[ProxyProtocol, HealthCheckOptions] | None = None,
        strategies: Mapping[ProxyProtocol, HealthCheckStrategy] | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._default_options = default_options or HealthCheckOptions()
        self._options = dict(protocol_options or {})
        given = dict(strategies or {})
        other = given.get(ProxyProtocol.HTTP) or HTTPHealthCheckStrategy(ssl_context=ssl_context)
        self._strategies = dict.fromkeys(ProxyProtocol, other) | given

    def register_strategy(self, protocol: ProxyProtocol, strategy: HealthCheckStrategy) -> None:
        """Check proxies of this protocol with this strategy from now on."""
        self._strategies[protocol] = strategy

    def set_protocol_options(self, protocol: ProxyProtocol, options: HealthCheckOptions) -> None:
        """Check proxies of this protocol with these options from now on."""
        self._options[protocol] = options

    async def check_proxy(
        self, proxy: Proxy, options: HealthCheckOptions | None = None
    ) -> HealthCheckResult:
        """Return what a check of one proxy found, within ``timeout * attempts`` seconds.

        Raises
        ------
        InvalidInputError
            If ``proxy`` is none.
        OutOfResourcesError
            If this machine has no socket left for the check, which is no fault of the proxy.
        """
        protocol = _checked(proxy).protocol
        chosen = options or self._options.get(protocol, self._default_options)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(chosen.timeout * chosen.attempts + GRACE_S) as deadline:
                strategy = self._strategies[protocol]
                return _for_this(proxy, await strategy.check(proxy, chosen), strategy)
        except OutOfResourcesError:
            raise
        except Exception as error:
            failure = _failure_of_strategy(proxy, error, late=deadline.expired())
        except asyncio.CancelledError as error:
            if _is_being_cancelled():
                raise
            failure = _failure_of_strategy(proxy, error, late=False)
        return HealthCheckResult(
            proxy_id=proxy.id,
            status=ProxyStatus.INACTIVE,
            latency_ms=int((time.perf_counter() - started) * 1000),
            protocol=protocol,
            failure=failure,
            error_message=_MESSAGES[failure],
        )

    def stream_health_checks(
        self,
        proxies: Proxies,
        options: HealthCheckOptions | None = None,
        *,
        concurrency: int = CONCURRENCY,
        per_host: int | None = None,
    ) -> AsyncGenerator[HealthCheckResult, None]:
        """Yield the result of each proxy as soon as it is there.

        Proxies are taken from ``proxies`` as they are needed; leaving the loop
        ends all checks.

        Parameters
        ----------
        proxies:
            Any iterable or async iterable.
        concurrency:
            How many are checked at once.
        per_host:
            How many of one host are checked at once; None for any number.

        Raises
        ------
        InvalidInputError
            If ``concurrency`` or ``per_host`` is no whole number from 1, at the
            call; if an item is no proxy, when it is reached.
        OutOfResourcesError
            If this machine has no sockets left for so many checks.
        """
        chunks = self.stream_chunks(proxies, options, concurrency=concurrency, per_host=per_host)
        return _one_by_one(chunks)

    def stream_chunks(
        self,
        proxies: Proxies,
        options: HealthCheckOptions | None = None,
        *,
        concurrency: int = CONCURRENCY,
        per_host: int | None = None,
    ) -> AsyncGenerator[list[HealthCheckResult], None]:
        """Yield lists of the results that are there at once, else as :meth:`stream_health_checks`.

        Fit for recording many results in one transaction.
        """
        if not isinstance(proxies, Iterable | AsyncIterable):
            raise InvalidInputError("proxies must be an iterable of proxies", proxies=proxies)
        _check_bound("concurrency", concurrency)
        if per_host is not None:
            _check_bound("per_host", per_host)

        async def check(proxy: Proxy) -> HealthCheckResult:
            return await self.check_proxy(proxy, options)

        return in_chunks(
            proxies,
            check,
            concurrency=concurrency,
            key=None if per_host is None else lambda proxy: str(_checked(proxy).host),
            per_key=per_host,
        )


class _StrangeResultError(Exception):
    """A strategy returned something else than a result for the proxy it was given."""


_MESSAGES = {
    CheckFailure.TIMEOUT: "the check did not end in time",
    CheckFailure.OTHER: "the check itself failed; the log says more",
}


async def _one_by_one(
    chunks: AsyncGenerator[list[HealthCheckResult], None],
) -> AsyncGenerator[HealthCheckResult, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            for result in chunk:
                yield result


def _checked(proxy: object) -> Proxy:
    if not isinstance(proxy, Proxy):
        raise InvalidInputError(f"a {type(proxy).__name__} is no proxy to check")
    return proxy


def _check_bound(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{name} must be a whole number from 1", value=value)


def _for_this(proxy: Proxy, result: object, strategy: HealthCheckStrategy) -> HealthCheckResult:
    if not isinstance(result, HealthCheckResult):
        raise _StrangeResultError(f"a {type(result).__name__} in place of a result")
    if result.proxy_id != proxy.id:
        raise _StrangeResultError(f"a result for {result.proxy_id}")
    if type(strategy) is HTTPHealthCheckStrategy:  # valid as it was made
        return result
    return checked_model(result)


def _failure_of_strategy(proxy: Proxy, error: BaseException, *, late: bool) -> CheckFailure:
    if late and isinstance(error, TimeoutError):
        return CheckFailure.TIMEOUT
    logger.error("pharox.health.strategy_failed: proxy %s", proxy.id, exc_info=error)
    return CheckFailure.OTHER


def _is_being_cancelled() -> bool:
    """Tell a cancellation of the caller's task from one that a strategy raised by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
