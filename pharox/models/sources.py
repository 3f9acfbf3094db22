"""Sources: URLs from which a provider's list of proxies is fetched again and again.

A URL often has a token in its path or query, so all of it is a secret, as are the headers. Only
its host is shown. The proxies of a source are those of its pool with its name as their ``source``.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator

from ..errors import InvalidInputError
from .model import Model
from .money import Price
from .proxy import ProxyProtocol, ProxyStatus
from .refusing import Refusing
from .removal import HALF, MaxRemoved
from .text import in_url
from .validation import UtcDatetime, check_name, check_text

SHORTEST_INTERVAL_S = 1.0
MAX_HEADERS = 20
MAX_SOURCES = 1000
"""How many sources a ledger may have."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]{0,4000}")
_OWN_HEADERS = {"accept-encoding", "if-none-match", "if-modified-since", "host"}
"""What a fetch sets itself."""


def _check_source_name(name: str) -> str:
    return check_name(name, "source")


def _check_pool_name(name: str) -> str:
    return check_name(name, "pool")


def _check_country(text: str | None) -> str | None:
    return None if text is None else check_text(text)


def _check_max_removed(text: str) -> str:
    return str(MaxRemoved.parse(text))


class ListOptions(Refusing):
    """How the entries of a source's list are read, as the options of ``pharox import`` say it.

    Parameters
    ----------
    protocol, status, country, cost_per_gb, cost_per_lease:
        Those of entries that name none.
    max_concurrency:
        How many leases a proxy may have at once, or ``unlimited``, for entries that name none; as
        the pool says, or 1 (100 with ``template``), if None.
    format:
        ``lines``, ``csv``, ``json`` or ``jsonl``; detected from the content if None.
    line:
        The order of a line's parts, such as ``user:pass:host:port``; detected if None.
    template:
        Whether placeholders in credentials are filled for each lease.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: ProxyProtocol | None = None
    status: ProxyStatus = ProxyStatus.ACTIVE
    max_concurrency: Annotated[int, Field(ge=1, lt=2**31)] | Literal["unlimited"] | None = None
    format: Literal["lines", "csv", "json", "jsonl"] | None = None
    line: Annotated[str, Field(max_length=200), AfterValidator(check_text)] | None = None
    country: Annotated[str | None, AfterValidator(_check_country)] = None
    template: bool | None = None
    cost_per_gb: Price | None = None
    cost_per_lease: Price | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The options as events have them, without what is not set."""
        return self.model_dump(mode="json", exclude_defaults=True)


class ProxySource(Refusing):
    """A URL whose list of proxies a pool is kept in step with.

    Parameters
    ----------
    name:
        Its name in the ledger, which its proxies have as their ``source``.
    pool_name:
        The pool of its proxies.
    url:
        An http(s) URL, as text or ``SecretStr``.
    headers:
        Headers to send to the URL's host, by name: ``{"Authorization": "Token ..."}``.
    every_seconds:
        How often the list is fetched, from 1 on.
    max_removed:
        The most proxies that one refresh may remove: a share such as ``50%``, or a number.
    enabled:
        Whether it is refreshed when it is due. By its name it is refreshed in any case.
    options:
        How the list is read.

    Raises
    ------
    InvalidInputError
        If a value is invalid. No message repeats the URL or a header.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(_check_source_name)]
    pool_name: Annotated[str, AfterValidator(_check_pool_name)]
    url: SecretStr
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    every_seconds: Annotated[
        float, Field(ge=SHORTEST_INTERVAL_S, le=366 * 86_400, allow_inf_nan=False)
    ] = 600.0
    max_removed: Annotated[str, AfterValidator(_check_max_removed)] = str(HALF)
    enabled: bool = True
    options: ListOptions = Field(default_factory=ListOptions)

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        host_of_url(self.url.get_secret_value())
        if len(self.headers) > MAX_HEADERS:
            raise InvalidInputError(f"a source has at most {MAX_HEADERS} headers")
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise InvalidInputError("the name of a header has letters, digits and hyphens")
            if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
                raise InvalidInputError(f"the value of header {name} is no line of ASCII text")
            if name.lower() in _OWN_HEADERS:
                raise InvalidInputError(f"the header {name} is set by each fetch itself")
        if len({name.lower() for name in self.headers}) < len(self.headers):
            raise InvalidInputError("a header is given twice")
        return self

    @property
    def host(self) -> str:
        """The host of its URL, with the port if there is one: all of it that may be shown."""
        return host_of_url(self.url.get_secret_value())

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that nobody may see."""
        return (
            self.url.get_secret_value(),
            *(value.get_secret_value() for value in self.headers.values()),
        )

    @property
    def most_removed(self) -> MaxRemoved:
        """The most proxies that one refresh may remove."""
        return MaxRemoved.parse(self.max_removed)

    def facts(self) -> dict[str, Any]:
        """Return its settings as events have them: everything but its secrets."""
        return {
            "source": self.name,
            "host": self.host,
            "every_seconds": self.every_seconds,
            "max_removed": self.max_removed,
            "enabled": self.enabled,
            "options": self.options.facts,
        }


def host_of_url(url: str) -> str:
    """Return the host of an http(s) URL, with its port if it names one.

    Raises
    ------
    InvalidInputError
        If it is no such URL. The message does not repeat it.
    """
    check_text(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    is_plain = url.isprintable() and " " not in url
    if parts.scheme.lower() not in ("http", "https") or not host or not is_plain:
        raise InvalidInputError("a source needs an http(s) URL, such as https://provider.example/x")
    return in_url(host) if port is None else f"{in_url(host)}:{port}"


class SourceCounts(Model):
    """What a refresh found in a list, and what became of the source's proxies.

    ``listed`` proxies were read, of which ``unchanged`` were known. ``added`` are new, ``changed``
    got another password. Of those that went, ``removed`` were not leased, and ``draining`` leave
    with their last lease; ``returned`` were draining and are listed again. ``kept`` are no longer
    listed and stay, as entries that could not be read may have been theirs. ``skipped`` entries
    could not be read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    listed: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    draining: int = 0
    returned: int = 0
    unchanged: int = 0
    kept: int = 0
    skipped: int = 0

    @property
    def is_change(self) -> bool:
        """Whether any proxy came, went or was changed."""
        return any((self.added, self.changed, self.removed, self.draining, self.returned))


class SourceState(StrEnum):
    """How a source is, in a word."""

    OK = "ok"
    INCOMPLETE = "incomplete"
    """Entries of its list cannot be read, and what is no longer listed stays: it may be those."""
    FAILED = "failed"
    PAUSED = "paused"
    NEW = "new"
    """Its list was not fetched yet."""


class SourceStatus(Model):
    """A source as it is listed: its settings without secrets, and how its refreshes went.

    ``checked_at`` is when its list was last asked for, ``succeeded_at`` when that last went well.
    ``refreshed_at`` and ``counts`` are of the last refresh with anything to tell, ``failed_at`` and
    ``failure`` of the last failure; ``failure`` is None if a refresh went well since.
    ``failures`` is how many refreshes in a row failed. ``next_due_at`` is None while it is paused;
    ``is_due`` says whether that time had come when it was listed, by the storage's clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: UUID
    name: str
    pool_id: UUID
    pool_name: str
    host: str
    every_seconds: float
    max_removed: str
    enabled: bool
    options: ListOptions
    saved_at: UtcDatetime
    checked_at: UtcDatetime | None = None
    succeeded_at: UtcDatetime | None = None
    refreshed_at: UtcDatetime | None = None
    counts: SourceCounts | None = None
    failed_at: UtcDatetime | None = None
    failure: str | None = None
    failures: int = 0
    is_due: bool = False

    @property
    def next_due_at(self) -> datetime | None:
        """When its list is to be fetched next; None if it is paused."""
        if not self.enabled:
            return None
        if self.checked_at is None or self.checked_at < self.saved_at:
            return self.saved_at
        return self.checked_at + timedelta(seconds=self.every_seconds)

    @property
    def state(self) -> SourceState:
        """How it is: what is wrong comes first."""
        if self.failure is not None:
            return SourceState.FAILED
        if not self.enabled:
            return SourceState.PAUSED
        if self.succeeded_at is None:
            return SourceState.NEW
        is_incomplete = self.counts is not None and self.counts.skipped > 0
        return SourceState.INCOMPLETE if is_incomplete else SourceState.OK

    def due_by(self, now: datetime) -> Self:
        """Return this with ``is_due`` as it is at a time."""
        due_at = self.next_due_at
        return self.model_copy(update={"is_due": due_at is not None and due_at <= now})
