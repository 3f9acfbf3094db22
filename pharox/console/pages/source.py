"""One source: how its list is fetched, how the last refreshes went, and what came and went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pharox.log import Extract

from ...events import SourceRefreshed
from ...history.past.shapes import Past
from ...models import SourceStatus
from ..story import Line, Part, Wanted, lines_of, read_part
from ..story.reading import LOOKED
from .named import named_page

_TYPES = ("SourceSaved", "SourceRefreshed", "SourceFailed", "SourceRemoved")


@dataclass(frozen=True, slots=True)
class SourcePage:
    """What the page of a source shows.

    ``status`` is None if it was removed. ``reasons`` say why entries of its list could not be read,
    as far as the shown part of its story has that.
    """

    name: str
    status: SourceStatus | None
    reasons: Sequence[str]
    wanted: Wanted
    part: Part
    lines: Sequence[Line]


def data(storage: Any, past: Past, name: str, wanted: Wanted) -> SourcePage:
    """Return what the page of a source shows.

    Raises
    ------
    HTTPException
        404 if nothing is known of it.
    """
    status = next((each for each in storage.list_sources() if each.name == name), None)
    part = read_part(
        storage,
        Extract(types=_TYPES, pool_id=status and status.pool_id),
        wanted,
        within=LOOKED,
        holds=lambda event: getattr(event, "source", None) == name,
    )
    if status is None and not (part.events or wanted.before or wanted.after):
        raise HTTPException(404, f"Nothing is known of a source {name!r}.")
    refreshed = [event for event in part.events if isinstance(event, SourceRefreshed)]
    return SourcePage(
        name,
        status,
        refreshed[-1].reasons if refreshed else (),
        wanted,
        part,
        lines_of(storage, past, part.events, part.begins_after),
    )


async def page(request: Request) -> Response:
    """Answer with the page of a source."""
    return await named_page(request, "source", data)
