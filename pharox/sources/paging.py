"""What a page in JSON says of the page after it: its URL, or that there is one.

Providers say it beside the list or in an object of its own, such as ``meta``, and the list may be
wrapped: ``{"data": {"next": ..., "results": [...]}}``. A missed page would look like a list that
lost its proxies, so each object on the way to a list is looked at, by the names that are known
here. A document is decoded as its entries are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .documents import MAX_DEPTH
from .records import has_address
from .text import text_of

NextPage = str | bool | None
"""A URL; True if there is a page and nothing says at which URL; None if nothing says of one."""

_NEXT = frozenset({"next", "nexturl", "nextpageurl", "nextpage", "nextlink", "nexthref"})
_CURSORS = frozenset({"nextcursor", "nexttoken", "nextpagetoken", "nextoffset"})
_MORE = frozenset({"hasmore", "hasnext", "hasnextpage"})
_PAGES = frozenset({"pages", "totalpages", "pagecount", "numpages", "lastpage"})
_PAGE = frozenset({"page", "currentpage", "pagenumber", "number"})
_PAGING = frozenset({"links", "paging", "pagination", "pageinfo", "meta", "metadata", "page"})
_YES = (True, 1, "true", "yes", "1")


def next_page(body: bytes, number: int) -> NextPage:
    """Return what a page says of the next one.

    Parameters
    ----------
    number:
        How many pages were fetched, with this one.
    """
    try:
        text = text_of(body).lstrip()
        document = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        return None  # Lines of JSON, or broken: whoever reads the entries says so.
    if not isinstance(document, dict):
        return None
    is_more: NextPage = None
    for place in _places(document):
        said = _said_in(place, number)
        if isinstance(said, str):
            return said
        is_more = is_more or said
    return is_more


def _places(value: dict[str, Any], depth: int = 1, *, is_paging: bool = True) -> Iterator[Any]:
    """Yield the objects that may speak of pages: those with a list in them, and their paging."""
    if not is_paging and (has_address(value) or not _leads_to_list(value, depth)):
        return
    yield {_name(key): part for key, part in value.items()}
    for key, part in value.items():
        if isinstance(part, dict) and depth < MAX_DEPTH:
            yield from _places(part, depth + 1, is_paging=_name(key) in _PAGING)


def _leads_to_list(value: dict[str, Any], depth: int) -> bool:
    parts = value.values()
    return any(isinstance(part, list) for part in parts) or (
        depth < MAX_DEPTH
        and any(_leads_to_list(part, depth + 1) for part in parts if isinstance(part, dict))
    )


def _said_in(place: Mapping[str, Any], number: int) -> NextPage:
    is_more = any(place.get(name) for name in _CURSORS)
    for name in _NEXT:
        found = place.get(name)
        if isinstance(found, dict):
            found = found.get("href", found.get("url", bool(found)))
        if isinstance(found, str) and ("/" in found or found.startswith("?")):
            return found
        is_more = is_more or bool(found)
    for name in _MORE:
        found = place.get(name)
        is_more = is_more or (found.strip().lower() if isinstance(found, str) else found) in _YES
    return is_more or _has_later_page(place, number) or None


def _has_later_page(place: Mapping[str, Any], number: int) -> bool:
    """Return whether there are more pages than were fetched, and this is not the last of them."""
    pages, page = _number_in(place, _PAGES), _number_in(place, _PAGE)
    return pages is not None and pages > max(number, number if page is None else page)


def _number_in(place: Mapping[str, Any], names: frozenset[str]) -> int | None:
    for name in names & place.keys():
        found = place[name]
        if isinstance(found, int) and not isinstance(found, bool):
            return found
        if isinstance(found, str) and re.fullmatch("[0-9]{1,9}", found):
            return int(found)
    return None


def _name(key: str) -> str:
    """Return the name of a member, however its words are joined."""
    return re.sub("[^a-z]", "", key.lower())
