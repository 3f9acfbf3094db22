"""What became of requests through a leased proxy, and how long a pair of proxy and target rests.

The rules are here once, in Python; ``sql/0005/outcomes.sql`` states them for PostgreSQL, and tests
compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import md5
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field

from ..errors import InvalidInputError
from .refusing import Refusing
from .responses import length_of, retry_after_of, status_of, url_of_response
from .text import escape_unprintable, host_fault, normal_host
from .validation import MAX_NAME_LENGTH, check_text

HALF_LIFE_S = 3600.0
"""After how many seconds an outcome counts half in the record of its pair."""

MAX_NOTE_LENGTH = 200
"""In characters. The log keeps a note forever."""

MAX_RETRY_AFTER_S = 30 * 86_400.0
"""The longest rest that a target can ask for."""

PROXY_AUTHENTICATION_REQUIRED = 407

TOO_MANY_REQUESTS = 429

_FORBIDDEN = 403
_REFUSED = {_FORBIDDEN, PROXY_AUTHENTICATION_REQUIRED, TOO_MANY_REQUESTS}
_SERVER_ERROR = 500
_STATUSES = (100, 599)
_MAX_EXPONENT = 60
_MOST_IN_A_ROW = 2**31 - 1


UNCLEAR_LATELY = timedelta(minutes=10)
"""For how long a failure counts against a proxy of which nobody knows the cause."""


def kept_part(since: datetime, now: datetime) -> float:
    """Return which part of a record still counts that was last reported at a time."""
    age_s = max(0.0, (now - since).total_seconds())
    return float(0.5 ** (age_s / HALF_LIFE_S))


class OutcomeKind(StrEnum):
    """Who is to blame for what became of a request.

    OK: the target answered. BLOCKED: it refused this proxy, as with 403 or 429. PROXY_FAILED:
    there was no way through the proxy: no TCP connection to it, 407, or its TLS or SOCKS
    handshake failed. TARGET_FAILED: the target answered that it has failed, as with other 5xx.
    UNCLEAR: a failure behind the proxy, such as a connection that was cut off after CONNECT.
    """

    OK = "ok"
    BLOCKED = "blocked"
    PROXY_FAILED = "proxy_failed"
    TARGET_FAILED = "target_failed"
    UNCLEAR = "unclear"


REFUSALS = frozenset({OutcomeKind.BLOCKED, OutcomeKind.UNCLEAR})
"""The kinds of which several in a row make a pair rest."""


def target_of(text: str) -> str:
    """Return the target that a text names: the host of a URL or address, in its normal form.

    Raises
    ------
    InvalidInputError
        If the text has no host, or a too long one.
    """
    return _target_of(check_text(text))


@lru_cache(maxsize=1024)
def _target_of(text: str) -> str:
    """Return the target of a text. A client asks the same hosts again and again."""
    address = text.strip()
    if (plain := _plain_address(address)) is not None:
        return plain
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname
    except ValueError:
        host = None
    if not host or not host.isprintable() or any(part.isspace() for part in host):
        raise InvalidInputError(
            "a target is a host, such as shop.example, or a URL with one", value=text
        )
    target = _plain_address(host) or normal_host(host)
    if not target or len(target) > MAX_NAME_LENGTH:
        raise InvalidInputError(f"a target has 1 to {MAX_NAME_LENGTH} characters", value=text)
    is_address = ":" in target or _plain_address(target) is not None
    if not is_address and (fault := host_fault(target)) is not None:
        raise InvalidInputError(f"a target is a host: {fault}", value=text)
    return target


def _plain_address(text: str) -> str | None:
    """Return an IP address that stands alone in its normal form, or None if it is none."""
    try:
        return str(ip_address(text.strip("[]").partition("%")[0]))
    except ValueError:
        return None


def target_of_response(response: Any) -> str | None:
    """Return the target of a response, None if it does not know its URL."""
    return target_or_none(url_of_response(response))


def target_or_none(url: str | None) -> str | None:
    """Return the target of a URL or host that somebody else wrote, None if it has none."""
    try:
        return None if url is None else target_of(url)
    except InvalidInputError:
        return None


def _kind_of_status(status: int, *, is_tunnelled: bool) -> OutcomeKind:
    """Return who is to blame for a response with this status."""
    if not _STATUSES[0] <= status <= _STATUSES[1]:
        return OutcomeKind.UNCLEAR  # such as 999
    if status == PROXY_AUTHENTICATION_REQUIRED and not is_tunnelled:
        return OutcomeKind.PROXY_FAILED
    if status in _REFUSED:
        return OutcomeKind.BLOCKED
    return OutcomeKind.TARGET_FAILED if status >= _SERVER_ERROR else OutcomeKind.OK


def _note(text: str) -> str:
    """Return a note on one line, in printable characters, and not too long."""
    line = escape_unprintable(" ".join(check_text(text).split()))
    return line if len(line) <= MAX_NOTE_LENGTH else f"{line[: MAX_NOTE_LENGTH - 1]}…"


Target = Annotated[str, AfterValidator(target_of)]


class Outcome(Refusing):
    """What became of one request, or of ``count`` requests alike, through a leased proxy.

    Parameters
    ----------
    kind:
        Who is to blame.
    target:
        The host that was asked; a URL is reduced to its host. If None, it is the target that
        the lease was acquired for, and if there is none either, the outcome is of no pair.
    status:
        The HTTP status, from 100 to 999.
    retry_after_seconds:
        How long the target asked to be left alone.
    bytes:
        How many bytes went through the proxy, both ways, as far as that is known.
    note:
        A remark for those who read the log, shortened to 200 characters. No secrets.
    count:
        How many requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: OutcomeKind
    target: Target | None = None
    status: Annotated[int, Field(ge=100, le=999)] | None = None
    retry_after_seconds: (
        Annotated[float, Field(ge=0, le=MAX_RETRY_AFTER_S, allow_inf_nan=False)] | None
    ) = None
    bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    note: Annotated[str, AfterValidator(_note)] | None = None
    count: Annotated[int, Field(ge=1, lt=2**31)] = 1

    @classmethod
    def ok(cls, target: str | None = None, **known: Any) -> Self:
        """Return that the target answered; ``known`` are ``status``, ``bytes`` and ``note``."""
        return cls._of(OutcomeKind.OK, target, known)

    @classmethod
    def blocked(cls, target: str | None = None, **known: Any) -> Self:
        """Return that the target refused the proxy.

        ``known`` are ``status``, ``retry_after`` (seconds), ``bytes`` and ``note``.
        """
        return cls._of(OutcomeKind.BLOCKED, target, known)

    @classmethod
    def proxy_failed(cls, target: str | None = None, **known: Any) -> Self:
        """Return that there was no way through the proxy."""
        return cls._of(OutcomeKind.PROXY_FAILED, target, known)

    @classmethod
    def target_failed(cls, target: str | None = None, **known: Any) -> Self:
        """Return that the target itself failed; it may say ``retry_after`` (seconds)."""
        return cls._of(OutcomeKind.TARGET_FAILED, target, known)

    @classmethod
    def unclear(cls, target: str | None = None, **known: Any) -> Self:
        """Return that something behind the proxy failed, and nobody knows what."""
        return cls._of(OutcomeKind.UNCLEAR, target, known)

    @classmethod
    def from_response(
        cls, response: Any, *, target: str | None = None, kind: OutcomeKind | None = None
    ) -> Self:
        """Return what a response says, of httpx, requests, aiohttp or a library like them.

        403 and 429 are BLOCKED, other 5xx TARGET_FAILED, 407 PROXY_FAILED unless it came through
        TLS, where only the target can have sent it; all others are OK. ``Retry-After`` and
        ``Content-Length`` are read. Errors are for :func:`pharox.outcome_of_error`.

        Parameters
        ----------
        response:
            Anything with ``status_code`` or ``status``, and ``headers`` and ``url`` if it has them.
        target:
            The host that was asked; the one of the response's URL if None.
        kind:
            Who is to blame, for who knows it better than by the status.

        Raises
        ------
        InvalidInputError
            If it has no status, or if ``target`` has no host.

        Examples
        --------
        >>> import httpx
        >>> from pharox import Outcome
        >>> answer = httpx.Response(429, headers={"Retry-After": "20"})
        >>> Outcome.from_response(answer, target="shop.example").retry_after_seconds
        20.0
        """
        status, url = status_of(response), url_of_response(response)
        if kind is None:
            kind = _kind_of_status(status, is_tunnelled=(url or "").lower().startswith("https:"))
        is_valid = _STATUSES[0] <= status <= _STATUSES[1]
        return cls(
            kind=kind,
            target=target_or_none(url) if target is None else target_of(target),
            status=status if is_valid else None,
            retry_after_seconds=(
                None if kind is OutcomeKind.OK else retry_after_of(response, MAX_RETRY_AFTER_S)
            ),
            bytes=length_of(response),
            note=None if is_valid else f"status {status}",
        )

    @classmethod
    def _of(cls, kind: OutcomeKind, target: str | None, known: dict[str, Any]) -> Self:
        if "retry_after" in known:
            known["retry_after_seconds"] = known.pop("retry_after")
        return cls(kind=kind, target=target, **known)


class CoolDown(Refusing):
    """How long a pair of proxy and target rests after the target refused the proxy.

    After ``after`` refusals in a row (one if its status is 429 or it says when to come back)
    the pair rests for ``base_seconds``, each further time ``factor`` times as long, up to
    ``max_seconds``, until a success. ``jitter`` is the part by which that may be longer or
    shorter. If the target says for how long, that holds instead. With ``base_seconds`` 0 no
    pair rests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_seconds: Annotated[float, Field(ge=0, le=MAX_RETRY_AFTER_S, allow_inf_nan=False)] = 30
    factor: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 2
    max_seconds: Annotated[float, Field(ge=0, le=MAX_RETRY_AFTER_S, allow_inf_nan=False)] = 900
    jitter: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    after: Annotated[int, Field(ge=1, le=1_000_000)] = 2

    if not TYPE_CHECKING:  # A type checker knows the arguments by the fields.

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            # No validator does it: that would be asked again of a rule that was saved before.
            if self.base_seconds > self.max_seconds:
                raise InvalidInputError(
                    "CoolDown: base_seconds, the first rest, must be at most max_seconds, the "
                    f"longest: {self.base_seconds:g} is above {self.max_seconds:g}",
                    value=self.base_seconds,
                )

    @classmethod
    def as_saved(cls, given: Any) -> Any:
        """Return a rule as it was saved: once the first rest could be longer than the longest."""
        if not isinstance(given, dict):
            return given
        first = given.get("base_seconds", cls.model_fields["base_seconds"].default)
        longest = given.get("max_seconds", cls.model_fields["max_seconds"].default)
        if first <= longest:
            return cls(**given)
        return cls(**given | {"max_seconds": first}).model_copy(update={"max_seconds": longest})

    def seconds(self, times: int, seed: str) -> float:
        """Return how long a pair rests that has rested so many times since its last success."""
        length = min(self.max_seconds, self.base_seconds * self.factor ** min(times, _MAX_EXPONENT))
        digest = md5(seed.encode(), usedforsecurity=False).hexdigest()
        share = int(digest[:8], 16) / 2**32
        return length * (1 + self.jitter * (2 * share - 1))


@dataclass(frozen=True, slots=True)
class PairRecord:
    """What is known of a proxy at a target.

    ``successes`` and ``failures`` have a half-life of an hour. ``streak`` counts successes in a
    row, or refusals as a negative number. ``cool_downs`` is how often the pair has rested since
    its last success, and ``cools_until`` until when it rests.
    """

    successes: float = 0.0
    failures: float = 0.0
    streak: int = 0
    cool_downs: int = 0
    cools_until: datetime | None = None
    reported_at: datetime | None = None

    def after(
        self,
        outcome: Outcome,
        policy: CoolDown,
        lease_id: UUID,
        now: datetime,
        *,
        is_troubled: bool = False,
    ) -> PairRecord:
        """Return the record after an outcome. The lease's id makes the jitter differ.

        While the target ``is_troubled`` no rest begins or gets longer.
        """
        is_ok = outcome.kind is OutcomeKind.OK
        kept = self._kept(now)
        counted = replace(
            self,
            successes=round(self.successes * kept + (outcome.count if is_ok else 0), 6),
            failures=round(self.failures * kept + (0 if is_ok else outcome.count), 6),
            reported_at=now,
        )
        if is_ok:
            streak = min(max(self.streak, 0) + outcome.count, _MOST_IN_A_ROW)
            return replace(counted, streak=streak, cool_downs=0, cools_until=None)
        if outcome.kind in REFUSALS:
            counted = replace(
                counted, streak=max(min(self.streak, 0) - outcome.count, -_MOST_IN_A_ROW)
            )
        return counted if is_troubled else counted._rested(outcome, policy, lease_id, now)

    def _kept(self, now: datetime) -> float:
        return 0.0 if self.reported_at is None else kept_part(self.reported_at, now)

    def _rested(
        self, outcome: Outcome, policy: CoolDown, lease_id: UUID, now: datetime
    ) -> PairRecord:
        """Return the record with the rest that an outcome begins or prolongs."""
        if policy.base_seconds == 0 or outcome.kind is OutcomeKind.PROXY_FAILED:
            return self
        asked_s = outcome.retry_after_seconds or None  # Not to wait at all is to say nothing.
        is_cooling = self.cools_until is not None and self.cools_until > now
        if asked_s is not None:
            until = now + timedelta(seconds=asked_s)
            if is_cooling and self.cools_until is not None:
                return replace(self, cools_until=max(self.cools_until, until))
        elif outcome.kind in REFUSALS and not is_cooling and self._is_enough(outcome, policy):
            seed = f"{lease_id}:{outcome.target}:{self.cool_downs}"
            until = now + timedelta(seconds=policy.seconds(self.cool_downs, seed))
        else:
            return self
        return replace(self, cools_until=until, cool_downs=self.cool_downs + 1)

    def _is_enough(self, outcome: Outcome, policy: CoolDown) -> bool:
        return outcome.status == TOO_MANY_REQUESTS or -self.streak >= policy.after
