"""The settings of a crawl that begin with ``PHAROX_``, read once when the crawl begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args
from uuid import uuid4

from pydantic import ValidationError
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from ...errors import InvalidInputError
from ...manager.options import WAIT_S
from ...models import ProxyFilters, ProxyProtocol, SelectorStrategy

LeasePer = Literal["request", "domain", "session", "spider"]
"""What a lease is for; a request with ``meta["pharox_session"]`` always is of that session."""

IDLE_S = 10.0
"""How long a lease of a domain or session is kept while no request goes by it."""

_JOBS = ("SCRAPY_JOB", "SHUB_JOBKEY")
"""Where scrapyd and Zyte name the job of a spider."""


@dataclass(frozen=True)
class CrawlOptions:
    """How a crawl leases."""

    pool: str
    lease_per: LeasePer
    database_url: str | None
    schema: str
    storage: Callable[[], Any] | None
    consumer: str | None
    correlation_id: str | None
    lease: Mapping[str, Any]
    """Options of the pool's handle that the settings name."""
    filters: ProxyFilters | None
    protocols: frozenset[ProxyProtocol] | None
    session_seconds: float
    idle_seconds: float
    targets: bool
    report: bool
    retry: bool
    is_blocked: Callable[[Any], bool] | None

    @classmethod
    def of(cls, settings: BaseSettings) -> CrawlOptions:
        """Read the settings.

        Raises
        ------
        InvalidInputError
            If there is no PHAROX_POOL, or if a setting is invalid; the message names it.
        """
        pool = settings.get("PHAROX_POOL")
        if not pool or not isinstance(pool, str):
            raise InvalidInputError(
                "PHAROX_POOL must name the pool to lease from; without proxies, set "
                "PHAROX_ENABLED = False"
            )
        return cls(
            pool=pool,
            lease_per=_lease_per(settings.get("PHAROX_LEASE_PER", "request")),
            database_url=settings.get("PHAROX_DATABASE_URL"),
            schema=settings.get("PHAROX_SCHEMA", "pharox"),
            storage=_function(settings, "PHAROX_STORAGE"),
            consumer=settings.get("PHAROX_CONSUMER"),
            correlation_id=settings.get("PHAROX_CORRELATION_ID"),
            lease=_lease_options(settings),
            filters=_filters(settings),
            protocols=_protocols(settings),
            session_seconds=_number(settings, "PHAROX_SESSION_SECONDS", 1800.0),
            idle_seconds=_number(settings, "PHAROX_IDLE_SECONDS", IDLE_S),
            targets=settings.getbool("PHAROX_TARGETS", True),
            report=settings.getbool("PHAROX_REPORT", True),
            retry=settings.getbool("PHAROX_RETRY", True)
            and settings.getbool("RETRY_ENABLED", True),
            is_blocked=_function(settings, "PHAROX_IS_BLOCKED"),
        )


def job_of(spider: Any) -> str:
    """Return the job of a spider as its scheduler names it, else an id for this run of it."""
    named = getattr(spider, "_job", None)  # from scrapyd, as an argument of the spider
    known = (named, *map(os.environ.get, _JOBS))
    return next((str(job) for job in known if job), uuid4().hex[:12])


def _lease_options(settings: BaseSettings) -> dict[str, Any]:
    waits = settings.get("PHAROX_WAIT_SECONDS", WAIT_S)
    options: dict[str, Any] = {
        "wait_seconds": None
        if waits in (None, "", 0, "0")
        else _number(settings, "PHAROX_WAIT_SECONDS", WAIT_S),
        "keep_alive": settings.getbool("PHAROX_KEEP_ALIVE", True),
    }
    if settings.get("PHAROX_LEASE_SECONDS") is not None:
        options["duration_seconds"] = int(_number(settings, "PHAROX_LEASE_SECONDS", 60))
    if (selector := settings.get("PHAROX_SELECTOR")) is not None:
        try:
            options["selector"] = SelectorStrategy(selector)
        except ValueError as error:
            known = ", ".join(SelectorStrategy)
            raise InvalidInputError(f"PHAROX_SELECTOR is one of {known}", value=selector) from error
    return options


def _lease_per(value: Any) -> LeasePer:
    if value not in get_args(LeasePer):
        known = ", ".join(get_args(LeasePer))
        raise InvalidInputError(f"PHAROX_LEASE_PER is one of {known}", value=value)
    return cast("LeasePer", value)


def _filters(settings: BaseSettings) -> ProxyFilters | None:
    value = settings.get("PHAROX_FILTERS")
    if value is None or isinstance(value, ProxyFilters):
        return value
    try:
        return ProxyFilters.model_validate(settings.getdict("PHAROX_FILTERS"))
    except (TypeError, ValueError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InvalidInputError(f"PHAROX_FILTERS are no filters of proxies: {why}") from error


def _protocols(settings: BaseSettings) -> frozenset[ProxyProtocol] | None:
    if settings.get("PHAROX_PROTOCOLS") is None:
        return None
    try:
        return frozenset(map(ProxyProtocol, settings.getlist("PHAROX_PROTOCOLS")))
    except ValueError as error:
        raise InvalidInputError(
            f"PHAROX_PROTOCOLS are some of {', '.join(ProxyProtocol)}"
        ) from error


def _number(settings: BaseSettings, name: str, default: float) -> float:
    try:
        number = settings.getfloat(name, default)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name} is a number of seconds") from error
    if not 0 <= number < float("inf"):
        raise InvalidInputError(f"{name} is a number of seconds", value=number)
    return number


def _function(settings: BaseSettings, name: str) -> Any:
    """Return the function that a setting names, or is."""
    value = settings.get(name)
    if value is None:
        return None
    try:
        function = load_object(value)
    except (ImportError, NameError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{name} cannot be imported: {error}") from error
    if not callable(function):
        raise InvalidInputError(f"{name} is a function, or the path of one", value=value)
    return function
