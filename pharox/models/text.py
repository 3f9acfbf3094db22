"""Normalize hosts, and format names and addresses for display.

They come from outside. Unprintable characters are escaped, so that a name cannot control
a terminal or reverse the text of a page.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv6Address, ip_address

import idna

_HIDDEN = "***"
_PLACE = re.compile(r"(\[[^\[\]]*\]|[^\s:/@\[\]]+)(:[0-9]{1,5})?")
_HOST_WITH_DOT = re.compile(r"(\[.*\]|[^:]*[.][^:]*)(:[0-9]{1,5})?")


def normal_host(host: str) -> str:
    """Return a host in its normal form.

    Names are lower case, without a trailing dot, and ASCII as in the DNS. Other texts
    are returned unchanged, and rejected elsewhere; addresses have a normal form of their own.
    """
    if not host.isascii() and host.isprintable():
        with suppress(idna.IDNAError):  # such as for an emoji
            host = idna.encode(host, uts46=True).decode()
    return host.rstrip(".").lower()


def normal_ip(address: object) -> str | None:
    """Return the text of an IPv4 or IPv6 address in its normal form; None if it is not one.

    Spaces around it are ignored. An IPv4 address that is written as an IPv6 one is the IPv4 one.
    """
    if not isinstance(address, str):
        return None
    try:
        found = ip_address(address.strip())
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            return None
        found = found.ipv4_mapped or found
    return str(found)


def escape_unprintable(text: str) -> str:
    """Return text with every unprintable character escaped as in a Python literal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def url_of(protocol: str, host: object, port: int, login: str = "") -> str:
    """Return a proxy's URL, with an IPv6 address in brackets. ``login`` includes the ``@``."""
    spelled = f"[{host}]" if ":" in str(host) else f"{host}"
    return f"{protocol}://{login}{spelled}:{port}"


def without_secrets(address: str) -> str:
    """Return an address as it was typed, without parts that may be credentials.

    Somebody may paste a line of a proxy list, with credentials in any position. Only what is
    clearly a host and its port is repeated.
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
    """Return whether a text has a dot or brackets, so that it is a host and no user name."""
    return _HOST_WITH_DOT.fullmatch(place) is not None


def _is_place(place: str) -> bool:
    try:
        return bool(_PLACE.fullmatch(place)) or bool(ip_address(place))
    except ValueError:
        return False
