"""Events as lines of a story: the sentence that ``pharox audit`` prints, with links in it.

Names of proxies, pools and their like are looked up for a page at once. An address is the one that
the proxy had then: at the beginning of the page, unless an event of the page says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from markupsafe import Markup, escape

from ...events import AcquireMissed, Event, ProxyDescribed, named_pool
from ...history.addresses import address_of
from ...history.describing import Described, day_of, describe
from ...history.past.shapes import Past
from ...history.pool_names import pool_names
from ...history.sealed_log import Beginning
from ...models.ids import NIL
from ...models.text import escape_unprintable

WORDS: dict[str, tuple[str, str]] = {
    "LeaseAcquired": ("leased", "good"),
    "LeaseRenewed": ("renewed", ""),
    "LeaseReleased": ("released", ""),
    "LeaseExpired": ("expired", "warn"),
    "LeaseRevoked": ("revoked", "warn"),
    "LeasesPruned": ("pruned", ""),
    "AcquireMissed": ("missed", "bad"),
    "HealthChecked": ("checked", ""),
    "ProxiesChecked": ("checked", ""),
    "OutcomeReported": ("outcome", ""),
    "CoolDownSet": ("rest", ""),
    "TargetTroubled": ("trouble", "bad"),
    "TargetRecovered": ("recovered", "good"),
    "TargetRulesSet": ("rules", ""),
    "SessionBound": ("session", ""),
    "SessionForgotten": ("session", ""),
    "ExitRotated": ("rotated", ""),
    "CursorMoved": ("turn", ""),
    "RotationBegan": ("exit", ""),
    "RotationCalled": ("exit", ""),
    "RotationAnswered": ("exit", ""),
    "PoolRegistered": ("registered", ""),
    "PoolChanged": ("changed", ""),
    "PoolRemoved": ("removed", ""),
    "ConsumerRegistered": ("registered", ""),
    "ProxyRegistered": ("registered", ""),
    "ProxyChanged": ("changed", ""),
    "ProxyRemoved": ("removed", ""),
    "SourceSaved": ("source", ""),
    "SourceRemoved": ("source", ""),
    "SourceRefreshed": ("source", ""),
    "SourceFailed": ("source", "bad"),
    "ApiTokenIssued": ("token", ""),
    "ApiTokenWithdrawn": ("token", ""),
    "ActionTaken": ("action", ""),
    "PoolPlaced": ("placed", ""),
    "PoolMoveBegan": ("moves", "warn"),
    "PoolStateCarried": ("carried", ""),
    "PoolDeparted": ("departed", "warn"),
    "PoolArrived": ("arrived", "good"),
    "PoolMoved": ("moved", ""),
    "PoolMoveCancelled": ("stays", ""),
}
"""A word for each type of event, and what it means to the reader: good, warn, bad or nothing."""

_IDS = re.compile(r"^(?:(?:lease|proxy|pool) [0-9a-f-]{36}|until \S+)(?:, |$)")


class Link(NamedTuple):
    """A place in a sentence, and the page that it leads to."""

    text: str
    route: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a story.

    ``text`` is its sentence, in which ``links`` have a place. ``asked`` is the request, ``by`` who
    did it; ``details`` are other facts.
    """

    event: Event
    day: str
    word: str
    tone: str
    text: str
    links: tuple[Link, ...] = ()
    asked: str = ""
    details: tuple[str, ...] = ()
    by: str = ""

    @property
    def note(self) -> str:
        """What stands below the sentence."""
        return " · ".join(filter(None, (self.asked, *self.details, self.by)))

    @property
    def is_miss(self) -> bool:
        """Whether somebody got nothing."""
        return isinstance(self.event, AcquireMissed)


def lines_of(storage: Any, past: Past, events: Sequence[Event], begins_after: int) -> list[Line]:
    """Return the lines of events that follow each other in a story, in the log's order.

    Parameters
    ----------
    past:
        Where addresses of the past are looked up.
    begins_after:
        The last seq of the log that is archived.
    """
    addresses = _addresses(past, events)
    current = {pool.id: pool.name for pool in storage.list_pools()}
    names = _names(storage, current, events, begins_after)
    lines = []
    described: dict[UUID | None, ProxyDescribed] = {}
    for event in events:
        known = described.get(event.proxy_id)
        if isinstance(event, ProxyDescribed):
            addresses[event.proxy_id] = address_of(event)
            described[event.proxy_id] = event
        address = None if event.proxy_id is None else addresses.get(event.proxy_id)
        pool = named_pool(event) or names.get(event.pool_id)
        told = describe(event, pool=pool or str(event.pool_id), address=address, known=known)
        lines.append(_line(event, told, _links(event, address, pool, current)))
    return lines


def by_day(lines: Sequence[Line], *, newest_first: bool) -> list[tuple[str, list[Line]]]:
    """Return the lines of a story by their days, as they are shown.

    A request or an actor that is also that of the line above is not said again.
    """
    shown, asked, by = [], "", ""
    for line in reversed(lines) if newest_first else lines:
        new_request = "" if line.asked == asked else line.asked
        shown.append(replace(line, asked=new_request, by="" if line.by == by else line.by))
        asked, by = line.asked or asked, line.by
    return [(day, list(group)) for day, group in groupby(shown, key=attrgetter("day"))]


class Sentence(NamedTuple):
    """A text with links in it, as a :class:`Line` is one."""

    text: str
    links: tuple[Link, ...] = ()


def linked(sentence: Line | Sentence, url: Any) -> Markup:
    """Return a sentence with a link for the first mention of each thing that it has a link for."""
    return _with_links(sentence.text, sentence.links, url)


def _line(event: Event, told: Described, links: tuple[Link, ...]) -> Line:
    word, tone = WORDS[event.type]
    if event.type == "RotationAnswered":
        tone = "warn" if event.failure else "good"
    if event.type == "ProxyChanged" and event.after.status.value in ("banned", "inactive"):
        tone = "warn"
    details = tuple(filter(None, map(_without_ids, told.details)))
    day = day_of(event.recorded_at)
    return Line(event, day, word, tone, told.sentence, links, told.asked, details, told.by)


def _without_ids(detail: str) -> str:
    """Return a line without its ids: a page has links for them."""
    while found := _IDS.match(detail):
        detail = detail[found.end() :]
    return detail


def _links(
    event: Event, address: str | None, pool: str | None, current: Mapping[UUID, str]
) -> tuple[Link, ...]:
    """Return the links of an event; a proxy's page is shown as it was then."""
    found = []
    consumer, target = getattr(event, "consumer", None), getattr(event, "target", None)
    if event.proxy_id is not None:
        of_then = {"proxy": event.proxy_id, "to": event.seq}
        found.append(Link(address or str(event.proxy_id), "proxy", of_then))
    if consumer:
        found.append(Link(consumer, "consumer", {"name": consumer}))
    if target:
        found.append(Link(target, "target", {"name": target}))
    if pool and event.pool_id in current:
        found.append(Link(pool, "pool", {"pool": event.pool_id}))
    return tuple(found)


def _with_links(text: str, links: Iterable[Link], url: Any) -> Markup:
    by_text: dict[str, Link] = {}
    for link in links:
        # Names are quoted where they could be mistaken for something else.
        by_text |= {repr(link.text): link, link.text: link}
    if not by_text:
        return escape(escape_unprintable(text))
    longest_first = sorted(by_text, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    parts, place, seen = [], 0, list[Link]()
    for found in pattern.finditer(text):
        link = by_text[found[0]]
        if link in seen:
            continue
        seen.append(link)
        parts.append(escape(escape_unprintable(text[place : found.start()])))
        parts.append(
            Markup('<a href="{}"><bdi>{}</bdi></a>').format(
                url(link.route, **link.parameters), escape_unprintable(found[0])
            )
        )
        place = found.end()
    parts.append(escape(escape_unprintable(text[place:])))
    return Markup("").join(parts)


def _addresses(past: Past, events: Sequence[Event]) -> dict[UUID, str]:
    """Return the addresses of proxies at the first event, or later if they were not there yet."""
    proxies: dict[UUID, set[UUID]] = {}
    for event in events:
        if event.proxy_id is not None and not isinstance(event, ProxyDescribed):
            proxies.setdefault(event.pool_id, set()).add(event.proxy_id)
    found: dict[UUID, str] = {}
    for pool_id, ids in proxies.items():
        for seq in (events[0].seq - 1, events[-1].seq):
            if missing := sorted(ids - found.keys()):
                found |= past.addresses(pool_id, missing, seq)
    return found


def _names(
    storage: Any, current: Mapping[UUID, str], events: Sequence[Event], begins_after: int
) -> Mapping[UUID, str]:
    """Return the names of the pools of events, also of removed ones."""
    if {event.pool_id for event in events} - current.keys() - {NIL}:
        return {**pool_names(storage, Beginning(begins_after, {})), **current}
    return current
