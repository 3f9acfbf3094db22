"""Names and hosts as they are shown.

They come from elsewhere: a terminal must not obey them and a page must not be
turned around by them, so what does not print is escaped.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import ip_address

import idna

_HIDDEN = "***"
_PLACE = re.compile(r"(\[[^\[\]]*\]|[^\s:/@\[\]]+)(:[0-9]{1,5})?")
_HOST_WITH_DOT = re.compile(r"(\[.*\]|[^:]*[.][^:]*)(:[0-9]{1,5})?")


def normal_host(host: str) -> str:
    """Return a host in the one form by which it is known.

    Names have no capitals and no dot at their end, and are in ASCII as the DNS has them. What is
    no name stays, for others to refuse; addresses have a form of their own.
    """
    if not host.isascii() and host.isprintable():
        with suppress(idna.IDNAError):  # such as that of an emoji
            host = idna.encode(host, uts46=True).decode()
    return host.rstrip(".").lower()


def escape_unprintable(text: str) -> str:
    """Return text with every character that is not plain print escaped, as Python writes it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def url_of(protocol: str, host: object, port: int, login: str = "") -> str:
    """Return the URL of a proxy, an IPv6 address in brackets; ``login`` ends with its ``@``."""
    spelled = f"[{host}]" if ":" in str(host) else f"{host}"
    return f"{protocol}://{login}{spelled}:{port}"


def without_secrets(address: str) -> str:
    """Return what was typed as an address, without what may be credentials in it.

    They may stand in any place where somebody pastes a line of a list; what is not plainly a
    host and its port is not repeated.
    """
    if not address.strip():
        return address
    scheme, mark, rest = address.strip().partition("://")
    if not mark:
        scheme, rest = "", scheme
    login, at, place = rest.removesuffix("/").rpartition("@")
    if not _is_place(place) or (at and _PLACE.fullmatch(login) and not _is_surely(place)):
        return f"{scheme}{mark}{_HIDDEN}"
    return f"{scheme}{mark}{_HIDDEN}@{place}" if at else f"{scheme}{mark}{place}"


def _is_surely(place: str) -> bool:
    """Tell whether a place has a dot or brackets, as no user has."""
    return _HOST_WITH_DOT.fullmatch(place) is not None


def _is_place(place: str) -> bool:
    try:
        return bool(_PLACE.fullmatch(place)) or bool(ip_address(place))
    except ValueError:
        return False
