"""What somebody wants to see of a story: from when to when, which kinds of events, from where on.

The address of a page has it all, so that it can be sent to a colleague. ``from`` and ``to`` are
what ``pharox audit`` takes; a time without a zone is in UTC, as all times of the console.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from itertools import chain
from typing import get_args

from starlette.datastructures import QueryParams

from ...errors import InvalidInputError
from ...events import Event
from ...models import utc_now
from ...models.moments import end_of, start_of

_CHOSEN: dict[str, tuple[str, ...]] = {
    "leases": (
        "LeaseAcquired",
        "LeaseRenewed",
        "LeaseReleased",
        "LeaseExpired",
        "LeaseRevoked",
        "LeasesPruned",
    ),
    "misses": ("AcquireMissed",),
    "outcomes": (
        "OutcomeReported",
        "CoolDownSet",
        "TargetTroubled",
        "TargetRecovered",
        "TargetRulesSet",
    ),
    "checks": ("HealthChecked", "ProxiesChecked"),
    "sessions": ("SessionBound", "SessionForgotten", "ExitRotated", "CursorMoved"),
    "exits": ("RotationBegan", "RotationCalled", "RotationAnswered"),
}
_TYPES = sorted(each.model_fields["type"].default for each in get_args(get_args(Event)[0]))

KINDS: dict[str, tuple[str, ...]] = {
    **_CHOSEN,
    "changes": tuple(name for name in _TYPES if name not in chain(*_CHOSEN.values())),
}
"""The types of events by the kinds that a page lets one choose; a new type is a change."""

Moment = int | datetime
"""A seq of the log, or a time."""

_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Wanted:
    """A part of a story.

    ``since`` and ``until`` are both inclusive, None without a bound; ``since_text`` and
    ``until_text`` are what was typed. ``kinds`` are keys of :data:`KINDS`, none for all. A page
    ends before the seq ``before``, or begins after the seq ``after``.
    """

    since: Moment | None = None
    until: Moment | None = None
    since_text: str = ""
    until_text: str = ""
    kinds: tuple[str, ...] = ()
    before: int | None = None
    after: int | None = None

    @property
    def types(self) -> tuple[str, ...] | None:
        """The types of events, None for all."""
        if not self.kinds:
            return None
        return tuple(name for kind in self.kinds for name in KINDS[kind])

    @property
    def is_filtered(self) -> bool:
        """Whether events are left out by their kind or time."""
        return bool(self.kinds) or self.since is not None or self.until is not None

    @property
    def query(self) -> dict[str, str]:
        """The parameters of its address, without the place of the page."""
        given = {
            "from": self.since_text,
            "to": self.until_text,
            "show": ",".join(self.kinds),
        }
        return {name: text for name, text in given.items() if text}


def wanted_of(query: QueryParams, now: datetime | None = None) -> Wanted:
    """Return what the parameters of an address ask for.

    Raises
    ------
    InvalidInputError
        If a moment, a kind or a seq is none.
    """
    now = now or utc_now()
    chosen = [kind for text in query.getlist("show") for kind in text.split(",") if kind]
    for kind in chosen:
        if kind not in KINDS:
            raise InvalidInputError(
                f"there is no kind of events {kind[:_LONGEST]!r}: there are {', '.join(KINDS)}"
            )
    since_text, until_text = (query.get(name, "").strip() for name in ("from", "to"))
    return Wanted(
        moment_of(since_text, now),
        moment_of(until_text, now, is_end=True),
        since_text,
        until_text,
        tuple(dict.fromkeys(chosen)),
        _seq(query, "before"),
        _seq(query, "after"),
    )


def moment_of(text: str, now: datetime, *, is_end: bool = False) -> Moment | None:
    """Return the moment that somebody typed, None if nothing was.

    Raises
    ------
    InvalidInputError
        If it is neither a time, nor a span before now, nor a seq; or a time in the first or the
        last year of the calendar.
    """
    # A plus is a space in a query that was written by hand.
    text = text.strip().replace(" +", "+")
    if not text:
        return None
    if len(text) > _LONGEST:
        raise InvalidInputError("this is too long for a moment", value=text[:_LONGEST])
    parse = end_of if is_end else start_of
    found = parse(_zoned(text), now)
    if isinstance(found, int):
        return found
    # A page looks around a moment: at an end of the calendar there is nothing beyond it.
    if not MINYEAR < found.year < MAXYEAR:
        raise InvalidInputError(f"{text!r} is at an end of the calendar: give a year between")
    return found.astimezone(UTC)


def _zoned(text: str) -> str:
    """Return a time without a zone as one in UTC, and anything else as it is."""
    if text.isdecimal():
        return text  # a seq, though it may look like a date
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    if moment.tzinfo is not None:
        return text
    return f"{text}Z" if ":" in text else f"{text}T00:00Z"


def _seq(query: QueryParams, name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidInputError(f"{name} must be a seq of the log, not {text[:_LONGEST]!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Here:
    """Where a page of a story is: its route and parameters, for links to other parts of it.

    ``fields`` are the parameters that the route's path does not have: a form must send them.
    """

    route: str
    parameters: dict[str, object]
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, object]:
        """The parameters of the whole story."""
        return {**self.parameters, **self.fields}

    def at(self, wanted: Wanted, **place: int | None) -> dict[str, object]:
        """Return the parameters of another page of what is wanted."""
        return {**self.all, **wanted.query, **place}

    def window(self, wanted: Wanted, first: int, last: int) -> dict[str, object]:
        """Return the parameters that always show the events from one seq to another."""
        return {**self.at(wanted), "from": first, "to": last}
