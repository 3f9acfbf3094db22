"""Errors as problem details (RFC 9457), with a code that never changes its meaning.

A client acts on ``code``; ``detail`` is for people. What the database or a bug says stays in the
log of this process: the answer says only that it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil
from typing import Any, NamedTuple

from pydantic import ValidationError

from ..errors import (
    ConflictError,
    DatabaseError,
    InvalidInputError,
    InvalidLeaseError,
    LeaseBusyError,
    LeaseEndedError,
    OutcomeUnknownError,
    PoolNotFoundError,
    ProxyUnavailableError,
    QueueFullError,
    SchemaError,
    SecretKeyError,
)
from ..models import MissReason

logger = logging.getLogger("pharox.api")

_FAULTS = 20
"""How many faults of a body are told."""


@dataclass(frozen=True)
class Kind:
    """A kind of problem: its code, its status, and what it means, for the description."""

    code: str
    status: int
    meaning: str


class Problem(Exception):
    """A request that gets nothing, and why."""

    def __init__(
        self,
        kind: Kind,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail or kind.meaning)
        self.kind = kind
        self.extra = {name: value for name, value in extra.items() if value is not None}
        self.headers = dict(headers or {})
        if (seconds := self.extra.get("retry_after_seconds")) is not None:
            self.headers["retry-after"] = str(max(1, ceil(seconds)))

    def members(self) -> dict[str, Any]:
        """Return the members of the JSON object."""
        return {
            "title": HTTPStatus(self.kind.status).phrase,
            "status": self.kind.status,
            "code": self.kind.code,
            "detail": str(self),
            **self.extra,
        }


INVALID_JSON = Kind("invalid_json", 400, "The body is not JSON in UTF-8.")
INVALID_REQUEST = Kind("invalid_request", 400, "A field of the request is wrong; see errors.")
TOKEN_MISSING = Kind("token_missing", 401, "A token is needed: Authorization: Bearer TOKEN.")
TOKEN_UNKNOWN = Kind("token_unknown", 401, "The token is not known, or was withdrawn.")
TOKEN_EXPIRED = Kind("token_expired", 401, "The token has run out.")
NOT_ALLOWED = Kind("not_allowed", 403, "The token is not for this.")
NOT_FOUND = Kind("not_found", 404, "There is nothing at this path.")
LEASE_NOT_FOUND = Kind("lease_not_found", 404, "The consumer has no such lease.")
POOL_NOT_FOUND = Kind("pool_not_found", 404, "There is no such pool.")
METHOD_NOT_ALLOWED = Kind("method_not_allowed", 405, "This path has another method.")
NO_PROXY = Kind("no_proxy", 409, "Nothing could be leased; reason says why.")
LEASE_ENDED = Kind("lease_ended", 409, "The lease has ended, and somebody else may hold its proxy.")
LEASE_CONFLICT = Kind(
    "lease_conflict", 409, "The lease is another one than the request says: id or fencing token."
)
LEASE_BUSY = Kind("lease_busy", 409, "The lease is being changed by another request: ask again.")
TOO_LARGE = Kind("too_large", 413, "The body is larger than a request may be.")
LIMIT_REACHED = Kind("limit_reached", 429, "A limit of the pool leaves no room.")
QUEUE_FULL = Kind("queue_full", 429, "Too many requests wait for a proxy of the pool already.")
HEADERS_TOO_LARGE = Kind("headers_too_large", 431, "The headers are larger than they may be.")
INTERNAL = Kind("internal", 500, "Something went wrong here; the log of this process has it.")
CREDENTIALS_LOCKED = Kind(
    "credentials_locked", 500, "The server has no key for the proxy's password; nothing is leased."
)
LEDGER_UNAVAILABLE = Kind(
    "ledger_unavailable", 503, "The ledger cannot be reached, or is not ready: nothing was done."
)
OUTCOME_UNKNOWN = Kind(
    "outcome_unknown",
    503,
    "Nobody knows whether it was done: repeat the request, of an acquisition with this lease_id.",
)
SHUTTING_DOWN = Kind("shutting_down", 503, "This server is being stopped: ask again.")

KINDS = {kind.code: kind for kind in list(globals().values()) if isinstance(kind, Kind)}
"""All of them, by code."""

_MISSES = {
    MissReason.UNKNOWN_POOL: POOL_NOT_FOUND,
    MissReason.LIMIT_REACHED: LIMIT_REACHED,
}


class _Rule(NamedTuple):
    """What an error is to a client.

    ``is_told`` says whether its text is for the client, ``retry_after_seconds`` when to ask again,
    and ``level`` at which level it is logged, if at all.
    """

    kind: Kind
    is_told: bool = False
    retry_after_seconds: float | None = None
    level: int | None = None


_RULES: tuple[tuple[type[Exception], _Rule], ...] = (
    (OutcomeUnknownError, _Rule(OUTCOME_UNKNOWN, level=logging.WARNING)),
    (LeaseEndedError, _Rule(LEASE_ENDED, is_told=True)),
    (LeaseBusyError, _Rule(LEASE_BUSY, is_told=True, retry_after_seconds=1.0)),
    (ConflictError, _Rule(LEASE_CONFLICT)),  # Its text may name the consumer who has the lease.
    (QueueFullError, _Rule(QUEUE_FULL, is_told=True, retry_after_seconds=1.0)),
    (PoolNotFoundError, _Rule(POOL_NOT_FOUND, is_told=True)),
    (InvalidInputError, _Rule(INVALID_REQUEST, is_told=True)),
    (InvalidLeaseError, _Rule(INVALID_REQUEST, is_told=True)),
    (SecretKeyError, _Rule(CREDENTIALS_LOCKED, level=logging.ERROR)),
    (SchemaError, _Rule(LEDGER_UNAVAILABLE, retry_after_seconds=1.0, level=logging.WARNING)),
    (DatabaseError, _Rule(LEDGER_UNAVAILABLE, retry_after_seconds=1.0, level=logging.WARNING)),
)
"""The first that fits holds, so what is special comes first. What none fits is a bug."""


def problem_of(error: Exception) -> Problem:
    """Return the problem that an error is to a client."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ExceptionGroup):
        return problem_of(error.exceptions[0])
    if isinstance(error, ProxyUnavailableError):
        return _miss(error)
    rule = next((rule for kind, rule in _RULES if isinstance(error, kind)), None)
    if rule is None:
        logger.error("pharox.api.failed", exc_info=error)
        return Problem(INTERNAL)
    if rule.level is not None:
        logger.log(rule.level, "pharox.api.%s: %s", rule.kind.code, error)
    return Problem(
        rule.kind,
        str(error) if rule.is_told else None,
        lease_id=getattr(error, "lease_id", None),
        retry_after_seconds=rule.retry_after_seconds,
    )


@contextmanager
def of_the_body() -> Iterator[None]:
    """Raise the problem with what a client sent, if a block finds that it is not valid.

    What is not valid anywhere else, such as in the ledger, is no fault of a client's.
    """
    try:
        yield
    except ValidationError as error:
        raise faults_of(error) from None


def faults_of(error: ValidationError) -> Problem:
    """Return the problem with a body, field by field, without the values that were given."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return Problem(INVALID_JSON, f"The body is not JSON in UTF-8: {_words(faults[0]['msg'])}")
    errors = [
        {"field": ".".join(map(str, fault["loc"])), "message": _words(fault["msg"])}
        for fault in faults[:_FAULTS]
    ]
    first = errors[0]
    where = f"{first['field']}: " if first["field"] else ""
    return Problem(INVALID_REQUEST, f"{where}{first['message']}", errors=errors)


def _words(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Invalid JSON: ")[:500]


def _miss(error: ProxyUnavailableError) -> Problem:
    reason = None if error.reason is None else MissReason(error.reason)
    kind = NO_PROXY if reason is None else _MISSES.get(reason, NO_PROXY)
    seconds = error.retry_after_seconds
    after = None if seconds is None else max(0.0, round(seconds, 3))
    return Problem(kind, str(error), reason=reason, retry_after_seconds=after)
