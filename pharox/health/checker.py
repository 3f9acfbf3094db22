"""Check one proxy or a stream of proxies, each with the strategy and options of its protocol.

A strategy may be a user's. It is cancelled when its time is up, and whatever it
raises or returns, a check ends with a result for its proxy.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from uuid import uuid4

from ..errors import InvalidInputError, OutOfResourcesError
from ..models import (
    CheckFailure,
    GatewayExit,
    HealthCheckOptions,
    HealthCheckResult,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
)
from ..models.gateway import session_id_after
from ..storage.validation import checked_model
from .probing import HealthCheckStrategy, HTTPHealthCheckStrategy
from .streaming import in_chunks

CONCURRENCY = 100
"""How many proxies to check at once by default."""

GRACE_S = 0.5
"""How long a strategy may take to return after the deadline of its last attempt."""

Proxies = Iterable[Proxy] | AsyncIterable[Proxy]

logger = logging.getLogger("pharox")


class HealthChecker:
    """Checks proxies by their protocols. It records nothing.

    Parameters
    ----------
    default_options:
        For protocols without options of their own.
    protocol_options:
        Options by protocol.
    strategies:
        Strategies by protocol. A protocol without one uses that of HTTP, by default
        :class:`HTTPHealthCheckStrategy`.
    ssl_context:
        The SSL context of the default strategy.
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
        """Return the result of a check of one proxy, within ``timeout * attempts`` seconds.

        Raises
        ------
        InvalidInputError
            If ``proxy`` is not a Proxy.
        OutOfResourcesError
            If this machine has no socket left for the check; the proxy is not at fault.
        """
        protocol = _checked(proxy).protocol
        chosen = options or self._options.get(protocol, self._default_options)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(chosen.timeout * chosen.attempts + GRACE_S) as deadline:
                strategy = self._strategies[protocol]
                result = await strategy.check(_with_own_exit(proxy), chosen)
                return _without_exit(proxy, _for_this(proxy, result, strategy))
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
        """Yield the result of each proxy as soon as it is ready.

        ``proxies`` is consumed as needed. Leaving the loop cancels all checks.

        Parameters
        ----------
        proxies:
            Any iterable or async iterable.
        concurrency:
            How many to check at once.
        per_host:
            How many of one host to check at once; None for any number.

        Raises
        ------
        InvalidInputError
            At the call, if ``concurrency`` or ``per_host`` is not a positive integer;
            later, when an item is not a Proxy.
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
        """Yield lists of all results that are ready, else as :meth:`stream_health_checks`.

        Suited to recording many results in one transaction.
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
    """A strategy returned something other than a result for its proxy."""


_MESSAGES = {
    CheckFailure.TIMEOUT: "the check timed out",
    CheckFailure.OTHER: "the check itself failed; see the log",
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
        raise InvalidInputError(f"a Proxy is needed, not a {type(proxy).__name__}")
    return proxy


def _check_bound(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{name} must be a whole number of at least 1", value=value)


def _with_own_exit(proxy: Proxy) -> Proxy:
    """Return the proxy to connect to: a template with an exit of this check's own."""
    if not proxy.placeholders or proxy.credentials is None:
        return proxy
    gateway_exit = GatewayExit(session=session_id_after(uuid4()), country=proxy.country, minutes=1)
    filled = {"credentials": proxy.credentials.filled(gateway_exit), "template": False}
    return proxy.model_copy(update=filled)


def _without_exit(proxy: Proxy, result: HealthCheckResult) -> HealthCheckResult:
    """Return a result without the exit of a template, which leases do not have."""
    return result.model_copy(update={"exit_ip": None}) if proxy.placeholders else result


def _for_this(proxy: Proxy, result: object, strategy: HealthCheckStrategy) -> HealthCheckResult:
    if not isinstance(result, HealthCheckResult):
        raise _StrangeResultError(f"a {type(result).__name__} instead of a result")
    if result.proxy_id != proxy.id:
        raise _StrangeResultError(f"a result for {result.proxy_id}")
    if type(strategy) is HTTPHealthCheckStrategy:  # its results are always valid
        return result
    return checked_model(result, HealthCheckResult)


def _failure_of_strategy(proxy: Proxy, error: BaseException, *, late: bool) -> CheckFailure:
    if late and isinstance(error, TimeoutError):
        return CheckFailure.TIMEOUT
    logger.error("pharox.health.strategy_failed: proxy %s", proxy.id, exc_info=error)
    return CheckFailure.OTHER


def _is_being_cancelled() -> bool:
    """Return whether the caller's task is cancelled, as a strategy may raise CancelledError too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
