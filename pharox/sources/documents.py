"""Read JSON documents: arrays of entries anywhere in a document.

A document is parsed as a stream: only one entry, or one other member, is in memory at a
time. After a syntax error the rest cannot be trusted, so the last entry is a bad one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..errors import SourceError
from .entries import BadEntry, Defaults
from .lines import Lines
from .reading import TOO_LONG, Found, attempt, proxies_of_json, proxies_of_value, why
from .records import has_address
from .tables import with_protocol
from .text import ENTRY_LIMIT, SourceText
from .unreadable import Unreadable
from .values import protocol_of_name

MAX_DEPTH = 5
"""How deep in a document entries may be."""

_LISTS = re.compile(
    "data|results?|prox(?:y|ies)|proxylist|items|list|rows|records|servers|entries|response"
    "|nodes|ips|endpoints"
)
_TITLE = re.compile(r"[A-Za-z][A-Za-z _.-]{0,39}")
_SHOWN = 12
_decode = json.JSONDecoder().raw_decode


class _BrokenError(Exception):
    """The rest of the document cannot be read."""


def is_document(start: str) -> bool:
    """Return whether text that begins with a brace is one document, not one object a line."""
    first, _, rest = start.partition("\n")
    if rest.lstrip().startswith("{") and first.strip() != "{":
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not rest.strip() or not (isinstance(value, dict) and has_address(value))


def read_document(text: SourceText, defaults: Defaults, lines: Lines) -> Found:
    """Yield the entries of an array, or of the arrays in an object."""
    document = _Document(text, defaults, lines)
    text.skip_blank()
    start = text.ahead()[:1]
    if start == "[":
        check_shape(text.ahead()[1:])
        yield from document.array(defaults, is_whole=True)
    elif start == "{":
        yield from document.object()
    else:
        raise SourceError("the JSON is neither an array nor an object")


def check_shape(ahead: str) -> None:
    """Refuse a list of objects without an address of a proxy.

    Raises
    ------
    SourceError
        With the names of the fields that there are instead.
    """
    objects = []
    for value in _values(ahead):
        if not isinstance(value, dict):
            return
        if value:
            objects.append(value)
    if objects and not any(map(has_address, objects)):
        raise SourceError("the entries have neither a host nor an address" + _but(objects[0]))


class _Document:
    """A document, and the number of entries read from it."""

    def __init__(self, text: SourceText, defaults: Defaults, lines: Lines) -> None:
        self._text, self._defaults, self._lines = text, defaults, lines
        self._number = 0
        self._has_list = False
        self._is_broken = False
        self._seen: dict[str, Any] = {}

    def object(self) -> Found:
        """Yield the entries of the arrays in an object, or the objects themselves as entries."""
        text = self._text
        while (ahead := text.ahead()).startswith("{"):
            try:
                value, end = _decode(ahead)
            except (ValueError, RecursionError) as error:
                if not _ran_out(error, ahead):
                    yield BadEntry(self._number + 1, f"is not valid JSON{why(error)}", "entry")
                    return
                value, end = {}, 0
            if not has_address(value) or _holds_list(value):
                yield from self._walk()
                return
            text.at += end
            self._number += 1
            read = partial(proxies_of_json, self._defaults, self._lines)
            yield from attempt(self._number, "entry", ahead[:end], read)
            text.skip_blank()
        if text.ahead():
            yield self._behind()

    def _walk(self) -> Found:
        """Yield the entries of the arrays in an object."""
        try:
            yield from self._members(self._defaults, 1)
        except _BrokenError as error:
            yield BadEntry(self._number + 1, f"{error}; nothing after it was read", "entry")
            return
        if not self._has_list:
            raise SourceError("the JSON has no array of proxies" + _but(self._seen))
        self._text.skip_blank()
        if self._text.ahead():
            yield self._behind()

    def _behind(self) -> BadEntry:
        reason = "follows the end of the JSON; it was not read"
        return BadEntry(self._number + 1, reason, "entry")

    def array(self, defaults: Defaults, *, is_whole: bool) -> Found:
        """Yield the entries of an array; nothing may follow if it is the whole document."""
        text, read = self._text, partial(proxies_of_json, defaults, self._lines)
        self._has_list = True
        text.take()
        text.skip_blank()
        mark = text.take() if text.ahead().startswith("]") else ","
        while mark == ",":
            text.skip_blank()
            self._number += 1
            ahead = text.ahead()
            try:
                _, end = _decode(ahead)
            except (ValueError, RecursionError) as error:
                reason = f"{_broken(error, ahead)}; nothing after it was read"
                yield BadEntry(self._number, reason, "entry")
                self._give_up()
                return
            text.at += end
            yield from attempt(self._number, "entry", ahead[:end], read)
            mark = text.take()
        number = self._number + 1
        if mark == "":
            yield BadEntry(number, "is missing: the JSON ends before its array does", "entry")
        elif mark != "]" or (is_whole and text.take()):
            reason = "does not follow a comma" if mark != "]" else "follows the end of the array"
            yield BadEntry(number, f"{reason}; it was not read", "entry")
        if mark != "]":
            self._give_up()

    def _give_up(self) -> None:
        """Leave the rest unread, after an error was reported."""
        self._is_broken = True
        self._text.end()

    def _members(self, defaults: Defaults, depth: int) -> Found:
        """Yield the entries in the members of an object."""
        text = self._text
        text.take()
        mark = ","
        while mark == ",":
            text.skip_blank()
            if text.ahead().startswith("}"):
                text.take()
                return
            key = self._value()
            if not isinstance(key, str) or text.take() != ":":
                raise _BrokenError("follows JSON that is not valid")
            text.skip_blank()
            yield from self._member(key, defaults, depth)
            mark = text.take()
        if mark != "}" and not self._is_broken:
            raise _BrokenError(
                "is missing: the JSON ends too early" if not mark else "is not valid JSON"
            )

    def _member(self, key: str, defaults: Defaults, depth: int) -> Found:
        ahead = self._text.ahead()
        below = self._below(key, defaults)
        if ahead.startswith("["):
            if _is_list(key, ahead[1:]):
                yield from self.array(below, is_whole=False)
                return
        elif ahead.startswith("{") and depth < MAX_DEPTH:
            value = self._whole(ahead)
            if isinstance(value, dict) and self._is_entry(key, value):
                self._number += 1
                self._has_list = True
                self._value()
                entry = _keyed(key, value)
                read = partial(proxies_of_value, below, self._lines)
                yield from attempt(self._number, "entry", key, lambda _: read(entry))
            else:
                yield from self._members(below, depth + 1)
            return
        self._seen[key] = self._value(skips=True)

    def _below(self, key: str, defaults: Defaults) -> Defaults:
        if protocol_of_name(key) is None:
            return defaults
        try:
            return with_protocol(defaults, key)
        except Unreadable as error:
            raise SourceError(f"the JSON {error}") from None

    def _is_entry(self, key: str, value: dict[str, Any]) -> bool:
        """Return whether a member is a proxy, with the address in its value or its key."""
        if has_address(value) and not _holds_list(value):
            return True
        try:
            self._lines.address(key)
        except Unreadable:
            return False
        return True

    def _whole(self, ahead: str) -> Any:
        try:
            return _decode(ahead)[0]
        except (ValueError, RecursionError):
            return None

    def _value(self, *, skips: bool = False) -> Any:
        """Return the next value, or raise :class:`_BrokenError`."""
        ahead = self._text.ahead()
        try:
            value, end = _decode(ahead)
        except (ValueError, RecursionError) as error:
            if skips and _ran_out(error, ahead) and len(ahead) > ENTRY_LIMIT:
                raise SourceError(
                    "the JSON has a long part that is not an array of proxies" + _but(self._seen)
                ) from None
            raise _BrokenError(_broken(error, ahead)) from None
        self._text.at += end
        return value


def _keyed(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return an entry, whose address may be its key."""
    return value if has_address(value) else {**value, "proxy": key}


def _is_list(key: str, ahead: str) -> bool:
    """Return whether an array's first element looks like a proxy."""
    first = next(_values(ahead), None)
    is_named = _LISTS.fullmatch(_name(key)) is not None or protocol_of_name(key) is not None
    if isinstance(first, dict):
        if is_named:
            check_shape(ahead)
        return has_address(first)
    return is_named and (first is None or isinstance(first, str))


def _holds_list(value: dict[str, Any]) -> bool:
    return any(
        isinstance(part, list) and part and isinstance(part[0], dict) for part in value.values()
    )


def _values(ahead: str) -> Iterator[Any]:
    """Yield the first values of an array, as far as they are in the window."""
    at = 0
    while True:
        at += len(ahead[at:]) - len(ahead[at:].lstrip())
        try:
            value, at = _decode(ahead, at)
        except (ValueError, RecursionError):
            return
        yield value
        at += len(ahead[at:]) - len(ahead[at:].lstrip())
        if ahead[at : at + 1] != ",":
            return
        at += 1


def _name(key: str) -> str:
    return re.sub(r"[^a-z]", "", key.lower())


def _but(value: dict[str, Any]) -> str:
    """List the fields that there are, without keys that may be addresses or secrets."""
    named = [name for name in value if _TITLE.fullmatch(name)]
    return f", but {', '.join(named[:_SHOWN])}" if named else ""


def _ran_out(error: Exception, ahead: str) -> bool:
    """Return whether a decoder failed because the text ended."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(ahead.rstrip()) or error.msg.startswith("Unterminated")
    )


def _broken(error: Exception, ahead: str) -> str:
    """Return why no JSON value could be read within the longest allowed text."""
    if _ran_out(error, ahead):
        is_end = len(ahead) <= ENTRY_LIMIT
        return "is cut off: the JSON ends in the middle of it" if is_end else TOO_LONG
    return f"is not valid JSON{why(error)}"
