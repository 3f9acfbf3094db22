"""One consumer: what it holds, and what it leased, gave back and did not get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pharox.log import Extract

from ...errors import ConsumerNotFoundError
from ...history.latest import newest
from ...history.past.shapes import Past
from ...history.sealed_log import archived_upto, last_seq
from ...models import HeldLease
from ..story import Line, Part, Wanted, lines_of, read_part
from .named import named_page

HELD = 20
"""How many of its leases are listed."""


@dataclass(frozen=True, slots=True)
class ConsumerPage:
    """What the page of a consumer shows. ``held`` are its leases now, the first :data:`HELD`."""

    name: str
    held: Sequence[HeldLease]
    has_more: bool
    wanted: Wanted
    part: Part
    lines: Sequence[Line]


def data(storage: Any, past: Past, name: str, wanted: Wanted) -> ConsumerPage:
    """Return what the page of a consumer shows.

    Raises
    ------
    ConsumerNotFoundError
        If there never was such a consumer.
    """
    held = storage.list_held_leases(consumer_name=name, limit=HELD + 1)
    part = read_part(storage, Extract(consumer=name), wanted)
    if not part.events and not held and not was_ever(storage, name):
        raise ConsumerNotFoundError(f"There never was a consumer {name!r}.", consumer=name)
    lines = lines_of(storage, past, part.events, part.begins_after)
    return ConsumerPage(name, held[:HELD], len(held) > HELD, wanted, part, lines)


def was_ever(storage: Any, name: str) -> bool:
    """Return whether there is an event of a consumer in the log."""
    begin = archived_upto(storage)
    return bool(newest(storage, Extract(begin, last_seq(storage), consumer=name), 1))


async def page(request: Request) -> Response:
    """Answer with the page of a consumer."""
    return await named_page(request, "consumer", data)
