"""One target: how proxies fare there, which rest for it, its rules, and what was reported of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pharox.log import Extract

from ...history.describing import rules_in_words
from ...history.past.shapes import Past
from ...models import TargetOutcomes, TargetSummary, target_of
from ..story import KINDS, Line, Part, Wanted, lines_of, read_part
from ..story.reading import LOOKED
from .named import named_page

PAIRS = 50
"""How many proxies are listed that rest for it."""

_TYPES = (*KINDS["outcomes"], "LeaseAcquired", "AcquireMissed")


@dataclass(frozen=True, slots=True)
class TargetPage:
    """What the page of a target shows.

    ``pools`` are how the proxies of each pool fare there. ``resting`` are the pairs that rest for
    it now, the first :data:`PAIRS`. ``rules`` are what its answers mean, in words, if it has rules
    of its own.
    """

    name: str
    pools: Sequence[TargetSummary]
    resting: Sequence[TargetOutcomes]
    has_more: bool
    rules: str | None
    wanted: Wanted
    part: Part
    lines: Sequence[Line]


def data(storage: Any, past: Past, name: str, wanted: Wanted) -> TargetPage:
    """Return what the page of a target shows.

    Raises
    ------
    HTTPException
        404 if nothing is known of it.
    InvalidInputError
        If the name is no host.
    """
    target = target_of(name)
    pools = storage.summarize_targets(target=target)
    resting = storage.list_target_outcomes(target=target, cooling=True, limit=PAIRS + 1)
    known = {each.rules.target: each.rules for each in storage.list_target_rules()}
    part = read_part(
        storage,
        Extract(types=_TYPES, target=target),
        wanted,
        within=LOOKED,
    )
    if not (pools or part.events or target in known or wanted.before or wanted.after):
        raise HTTPException(
            404, f"Nothing is known of a target {target!r}: no outcome was reported of it lately."
        )
    return TargetPage(
        target,
        pools,
        resting[:PAIRS],
        len(resting) > PAIRS,
        rules_in_words(known[target].facts) if target in known else None,
        wanted,
        part,
        lines_of(storage, past, part.events, part.begins_after),
    )


async def page(request: Request) -> Response:
    """Answer with the page of a target."""
    return await named_page(request, "target", data)
