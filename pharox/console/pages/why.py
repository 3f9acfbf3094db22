"""Why a consumer got nothing: in a sentence, who or what stood in its way; and its misses.

The answer is that of :func:`pharox.history.why.why`, with its misses in a row by minute and reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...effects.limiting import answers_within
from ...errors import ConsumerNotFoundError
from ...history.describing import in_numbers, shown_status
from ...history.past.keyframes import Keyframes
from ...history.sealed_log import archived_upto
from ...history.why import Explanation, Holder, MissMinute, Unusable, culprit, explain
from ...incident.wording import count
from ...models import utc_now
from ..console import reader
from ..rendering import render
from ..story import Line, Link, Sentence, lines_of
from ..story.window import moment_of

MINUTES = 60
"""How many lines are listed, one for each minute and reason."""

LISTED = 10
"""How many holders, and how many unusable proxies, are listed; and leases of each holder."""

ANSWER_S = 20.0
"""How many seconds each answer may take: a moment of long ago is far from any that is known."""


@dataclass(frozen=True, slots=True)
class WhyPage:
    """What the page shows. Without a consumer it only asks.

    ``found`` is None if the consumer never missed up to then. ``minutes`` are the misses in a row,
    the newest of them, which come first; ``most`` is the highest number among them.
    """

    consumer: str = ""
    at: str = ""
    found: Explanation | None = None
    culprit: Sentence | None = None
    had: str = ""
    line: Line | None = None

    @property
    def minutes(self) -> Sequence[MissMinute]:
        """The misses in a row by minute, the newest first."""
        return self.found.minutes[: -MINUTES - 1 : -1] if self.found else ()

    @property
    def most(self) -> int:
        """The most misses of a minute and a reason."""
        return max((minute.misses for minute in self.minutes), default=1)

    @property
    def holders(self) -> Sequence[Holder]:
        """Who held most then."""
        return self.found.holders[:LISTED] if self.found else ()

    @property
    def unusable(self) -> Sequence[Unusable]:
        """The first proxies that nobody could lease."""
        return self.found.unusable[:LISTED] if self.found else ()


def data(storage: Any, keyframes: Keyframes, consumer: str, at: str) -> WhyPage:
    """Return why a consumer got nothing up to a moment: a time, a span before now, or a seq.

    Raises
    ------
    ConsumerNotFoundError
        If there never was such a consumer.
    InvalidInputError
        If the moment is none, or in the future.
    """
    if not consumer:
        return WhyPage(at=at)
    moment = moment_of(at, utc_now(), is_end=True)
    try:
        with answers_within(ANSWER_S):
            found = explain(storage, keyframes, consumer, moment)
    except ConsumerNotFoundError as error:
        raise ConsumerNotFoundError(f"There never was a consumer {consumer!r}.") from error
    if found is None:
        return WhyPage(consumer, at)
    miss = found.miss
    (line,) = lines_of(storage, keyframes.past, [miss], archived_upto(storage))
    return WhyPage(
        miss.consumer,
        at,
        found,
        culprit_of(found),
        "" if found.counts is None else in_numbers(found.counts),
        line,
    )


def culprit_of(found: Explanation) -> Sentence | None:
    """Return who or what stood in the way, in a sentence; None if nobody did."""
    blamed = culprit(found)
    if blamed is None:
        return None
    if blamed.limit is not None:
        return _limit(found, blamed.limit.name, blamed.limited)
    return _holders(found) if blamed.holders else _unusable(found)


def _limit(found: Explanation, name: str, limited: str) -> Sentence:
    links = [_link(found, found.miss.consumer)]
    if found.miss.target:
        links.append(Link(found.miss.target, "target", {"name": found.miss.target}))
    return Sentence(f"The limit is {name} of the pool, of {limited}.", tuple(links))


def _holders(found: Explanation) -> Sentence:
    first, *others = found.holders
    leases = count(sum(len(holder.leases) for holder in found.holders), "lease")
    text = f"{first.consumer!r} held {len(first.leases):,} of the {leases} of the pool then"
    if others:
        text += f", {others[0].consumer!r} {len(others[0].leases):,}"
    links = (_link(found, holder.consumer) for holder in found.holders[:2])
    return Sentence(f"{text}.", tuple(links))


def _unusable(found: Explanation) -> Sentence:
    statuses = Counter(each.status for each in found.unusable)
    parts = ", ".join(f"{number:,} {status}" for status, number in statuses.most_common())
    who = Counter(each.change.actor for each in found.unusable if each.change and each.change.actor)
    by = "".join(f"; {actor!r} changed {number:,} of them" for actor, number in who.most_common(1))
    proxies = count(len(found.unusable), "proxy", "proxies")
    return Sentence(f"{proxies} could not be leased: {parts}{by}.")


def _link(found: Explanation, consumer: str) -> Link:
    return Link(consumer, "consumer", {"name": consumer, "to": found.miss.seq})


def status_of(unusable: Unusable) -> str:
    """Return the status of a proxy that nobody could lease, and until when."""
    return shown_status(unusable.status, drains=unusable.drains, until=unusable.until)


async def page(request: Request) -> Response:
    """Answer with the page."""
    console = await reader(request)
    asked = (request.query_params.get(name, "").strip() for name in ("consumer", "at"))
    shown = await console.read_slowly(data, console.storage, console.keyframes, *asked)
    return render(request, "why.html", shown=shown, status_of=status_of)
