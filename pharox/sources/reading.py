"""Turn one raw entry into proxies or a bad entry; shared by the readers of all formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..models import Proxy
from .entries import BadEntry, Defaults, Entry, Unit
from .lines import Lines
from .records import parts_of
from .text import ENTRY_LIMIT
from .unreadable import Unreadable

Found = Iterator[Entry | BadEntry]
Read = Callable[[str], Iterable[Proxy]]

TOO_LONG = f"is longer than {ENTRY_LIMIT} characters"


def each(lines: Iterable[tuple[int, str | None]], read: Read) -> Found:
    """Yield the entries of each line that is not blank."""
    for number, line in lines:
        if line is None or line.strip():
            yield from attempt(number, "line", line, read)


def attempt(number: int, unit: Unit, raw: str | None, read: Read) -> Found:
    """Yield the result of ``read`` for one raw entry."""
    if raw is None or len(raw) > ENTRY_LIMIT:
        yield BadEntry(number, TOO_LONG, unit)
        return
    try:
        raw.encode()
        found = list(read(raw))
    except UnicodeEncodeError:
        yield BadEntry(number, "is not UTF-8", unit)
    except Unreadable as error:
        yield BadEntry(number, str(error), unit)
    else:
        for proxy in found:
            yield Entry(number, proxy)


def proxies_of_json(defaults: Defaults, lines: Lines, text: str) -> Iterable[Proxy]:
    """Return the proxies that one JSON value describes, an object or an address."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"is not valid JSON{why(error)}"
        raise Unreadable(reason) from None
    return proxies_of_value(defaults, lines, value)


def proxies_of_value(defaults: Defaults, lines: Lines, value: Any) -> Iterable[Proxy]:
    """Return the proxies that an object or an address describes."""
    if isinstance(value, str):
        return [proxy for parts in lines.read(value) for proxy in defaults.proxies(parts)]
    if not isinstance(value, dict):
        raise Unreadable("is not a JSON object")
    return defaults.proxies(parts_of(value, lines.address))


def why(error: Exception) -> str:
    """Return the decoder's reason, which quotes nothing of the text."""
    return f" ({error.msg.lower()})" if isinstance(error, json.JSONDecodeError) else ""
