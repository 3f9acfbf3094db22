"""Parse a line of text into the parts of the proxies in it.

Lists come from everywhere: with notes after an address, separators at its end, quotes
around it, blanks or tabs instead of colons, and columns of measurements. User and
password are never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from .layout import Layout
from .orders import (
    HOST,
    PORT,
    AmbiguousOrderError,
    Order,
    Orders,
    lacks_brackets,
    port_of,
    shape_of,
)
from .unreadable import Unreadable
from .values import PROTOCOLS, country_of, known

Parts = dict[str, Any]

COMMENTS = ("#", ";", "//")

SAMPLED_LINES = 2000
"""How many lines to sample for the order of a list before the first one is read."""

_NO_ADDRESS = "is neither scheme://user:password@host:port nor host:port"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_HOST_PORT = re.compile(rf"{HOST}:{PORT}/?")
_WITH_WORD = re.compile(rf"{HOST}:{PORT}:(?P<word>[^:@\s]+)")
_LOOSE = re.compile(rf"((?:[a-z0-9]+://)?){HOST}\s*:\s*{PORT}(?=[\s:;,|]|$)", re.IGNORECASE)

_QUOTED = re.compile(r"""(?:"([^"]*)"|'([^']*)'|`([^`]*)`|<([^<>]*)>)[\s,;]*(?:(?:#|//).*)?""")
_NOTE = re.compile(r"\s(?:#|//|;\s).*")
_BULLET = re.compile(r"(?:[-*+\u2022]|[0-9]{1,7}[.)])\s+")
_SEVERAL = re.compile(r"(?:[a-z0-9]+://\S+:[0-9]+/?|[0-9]+(?:\.[0-9]+){3}:[0-9]+)", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s,;]+")
_SEPARATORS = ("\t", "|", ";", ",", None)
_COUNTRY = re.compile(r"([A-Z]{2})(?:-[A-Z!+-]*)?")
_STATUS = re.compile(
    r"[A-Z]{2}(?:-[A-Z!+-]*)?|[-+!?*]+|https?|socks[45]?[ah]?|yes|no|true|false|unknown|n/a"
    r"|(?i:elite|anonymous|transparent|anon|high|low|medium|noa|hia|alive|working|online|ok)\b.*"
    r"|[0-9.]+ ?(?:ms|s|sec|%)|[0-9]{4}-[0-9]{2}-[0-9]{2}.*"
)


class Lines:
    """Reads the lines of one list; their order is inferred from all of them."""

    def __init__(self, layout: Layout | None = None) -> None:
        self._layout = layout
        self.orders = Orders()

    @property
    def has_layout(self) -> bool:
        """Whether the order of parts was given."""
        return self._layout is not None

    def learn(self, lines: Iterable[str]) -> None:
        """Learn the order from lines that can be read in one order only."""
        for line in lines:
            try:
                self.read(line)
            except ValueError:
                continue

    def read(self, line: str) -> list[Parts]:
        """Return the parts of each proxy in a line, or raise :class:`Unreadable`."""
        text = cleaned(line)
        if self._layout is not None:
            return [_laid_out(self._layout, text)]
        if ":" in text:
            tokens = _BETWEEN.split(text)
            if len(tokens) > 1 and all(map(_SEVERAL.fullmatch, tokens)):
                return [self._address(token) for token in tokens]
            if loose := _LOOSE.match(text):
                text = f"{loose[1]}{loose['host']}:{loose['port']}{text[loose.end() :]}"
        try:
            return [self._address(text)]
        except AmbiguousOrderError:
            raise
        except Unreadable as error:
            parts = self._separated(text)
            if parts is None:
                raise error from None
            return [parts]

    def address(self, text: str) -> Parts:
        """Return the parts of one address, such as a field of a record."""
        if self._layout is not None:
            return _laid_out(self._layout, text.strip())
        return self._address(text.strip())

    def _address(self, text: str) -> Parts:
        if ":" not in text:
            raise Unreadable(_NO_ADDRESS)
        scheme = _SCHEME.match(text)
        rest = text[scheme.end() :] if scheme else text
        parts: Parts = {"protocol": scheme[1]} if scheme else {}
        if plain := _HOST_PORT.fullmatch(rest):
            return parts | {"host": plain["host"], "port": plain["port"]}
        reading = None if _is_spaced(rest) else self.orders.read(rest, is_url=scheme is not None)
        if reading is None:
            return parts | _with_protocol_behind(rest)
        user, password = reading.user, reading.password
        if reading.order in (Order.URL, Order.HOST_AT_USER):
            user, password = _unquoted(user), _unquoted(password)
        return parts | {
            "host": reading.host,
            "port": reading.port,
            "user": user,
            "password": password,
        }

    def _separated(self, text: str) -> Parts | None:
        """Return the parts of a line in columns; None if it has no columns."""
        text = text.strip("| ")
        for separator in _SEPARATORS:
            if separator and separator not in text:
                continue
            cells = [cell.strip().strip("\"'") for cell in text.split(separator)]
            if len(cells) < 2:
                continue
            parts: Parts = {}
            if cells[0].lower() in PROTOCOLS:
                parts["protocol"] = cells.pop(0)
            if len(cells) > 3 and _may_be_behind(cells):
                # Either end may be host and port, as with colons.
                return (
                    parts
                    | self._address(":".join(cells[:4]))
                    | _columns(cells[4:], may_be_login=False, is_place=False)
                )
            if len(cells) > 1 and shape_of(cells[0]) and _is_port(cells[1]):
                parts |= {"host": cells[0], "port": cells[1]}
                return parts | _columns(cells[2:], may_be_login=True, is_place=separator == "|")
            if cells and (
                _HOST_PORT.fullmatch(cells[0]) or _SCHEME.match(cells[0]) or "@" in cells[0]
            ):
                parts |= self._address(cells[0])
                if parts.get("user"):
                    return parts
                return parts | _columns(cells[1:], may_be_login=False, is_place=separator == "|")
        return None


def _may_be_behind(cells: list[str]) -> bool:
    """Return whether columns may be user, password, host and port."""
    shape = shape_of(cells[2])
    return shape > 0 and _is_port(cells[3]) and (shape > 1 or _is_port(cells[1]))


def cleaned(line: str) -> str:
    """Return a line without quotes, notes and separators around the address."""
    text = line.strip()
    if bullet := _BULLET.match(text):
        text = text[bullet.end() :]
    if (quoted := _QUOTED.fullmatch(text)) is not None:
        return next(part for part in quoted.groups() if part is not None).strip()
    text = _NOTE.sub("", text, count=1).rstrip(" \t,;")
    if (quoted := _QUOTED.fullmatch(text)) is not None:
        return next(part for part in quoted.groups() if part is not None).strip()
    return text


def is_comment(line: str) -> bool:
    """Return whether a line is blank or a comment."""
    text = line.lstrip()
    return not text or text.startswith(COMMENTS)


def _laid_out(layout: Layout, text: str) -> Parts:
    try:
        parts = layout.read(text)
    except UnicodeDecodeError:
        raise Unreadable("has a user or password that is not UTF-8") from None
    if parts is None:
        raise Unreadable(f"is not laid out as {layout.text}")
    return parts


def _with_protocol_behind(text: str) -> Parts:
    """Return the parts of ``host:port:socks5``, or raise why a text is not an address."""
    found = _WITH_WORD.fullmatch(text)
    if found and found["word"].lower() in PROTOCOLS:
        return {"host": found["host"], "port": found["port"], "protocol": found["word"]}
    if lacks_brackets(text):
        raise Unreadable("has an IPv6 address without brackets around it")
    if found and shape_of(found["host"]):
        raise Unreadable(
            "has one word after host and port: if that is a user without a password, "
            "give --line 'host:port:user'"
        )
    raise Unreadable(_NO_ADDRESS)


def _columns(cells: list[str], *, may_be_login: bool, is_place: bool) -> Parts:
    """Return the parts in the columns after an address."""
    cells = [cell for cell in cells if cell]
    if not cells:
        return {}
    # A login comes first, also if a country or a protocol follows.
    is_status = any(_STATUS.fullmatch(cell) for cell in cells[:2])
    if not is_status and len(cells) == 2 and may_be_login:
        return {"user": cells[0], "password": cells[1]}
    if not is_status and not is_place:
        user, mark, password = cells[0].partition(":")
        if mark and len(cells) == 1:
            return {"user": user, "password": password}
        raise Unreadable(
            "has words after its address that may be a user and password: give --line 'host:port "
            "user pass', or --line 'host:port *' to ignore them"
        )
    if is_place and len(cells) == 3 and cells[0].lower() not in PROTOCOLS:
        return {"country": country_of(cells[0]), "city": known(cells[2])}
    protocols = {cell.lower() for cell in cells} & PROTOCOLS
    countries = [found[1] for cell in cells if (found := _COUNTRY.fullmatch(cell))]
    place = {"country": countries[0]} if countries else {}
    return place | ({"protocol": protocols.pop()} if len(protocols) == 1 else {})


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and port_of(text) is not None


def _is_spaced(text: str) -> bool:
    """Return whether blanks follow host and port, which means columns."""
    first = text.split(maxsplit=1)[0] if text else ""
    return len(first) < len(text) and _HOST_PORT.fullmatch(first) is not None


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Unreadable("has a user or password that is not UTF-8") from None
