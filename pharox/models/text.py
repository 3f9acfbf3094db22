"""Normalize hosts, and format names and addresses for display.

They come from outside. Unprintable characters are escaped, so that a name cannot control
a terminal or reverse the text of a page: :func:`pharox.printable.escape_unprintable`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv6Address, ip_address

import idna

from ..printable import escape_unprintable as escape_unprintable  # noqa: PLC0414 - of this room
from ..printable import in_utc as in_utc  # noqa: PLC0414

_HIDDEN = "***"
_LABEL = re.compile(r"[A-Za-z0-9_-]+")
_MAX_LABEL_LENGTH = 63
_MAX_HOST_LENGTH = 253
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


def host_fault(host: str) -> str | None:
    """Return why a host in its normal form can be no host, or None if it can be one.

    Clients would refuse it with an error of their own. Underscores are none in the DNS, but
    container networks and many others have them.
    """
    if not host.isascii():
        return "a name with other letters must be one that the DNS can carry (IDNA 2008)"
    labels = host.split(".")
    if not all(labels):
        return "a name has no empty part between its dots"
    if len(host) > _MAX_HOST_LENGTH or max(map(len, labels)) > _MAX_LABEL_LENGTH:
        return (
            f"a name has at most {_MAX_HOST_LENGTH} characters, and {_MAX_LABEL_LENGTH} between "
            "its dots"
        )
    if not all(map(_LABEL.fullmatch, labels)):
        return "a name has only letters, digits, hyphens and underscores between its dots"
    if all(map(str.isdecimal, labels)):
        return "numbers with dots are an IPv4 address, and these are none"
    return None


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


def is_loopback(host: str | None) -> bool:
    """Return whether a name or an address of a host is this machine's own."""
    if host in (None, "", "localhost"):
        return host == "localhost"
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def url_of(protocol: str, host: object, port: int, login: str = "") -> str:
    """Return a proxy's URL, with an IPv6 address in brackets. ``login`` includes the ``@``."""
    return f"{protocol}://{login}{in_url(host)}:{port}"


def in_url(host: object) -> str:
    """Return a host as a URL has it: an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in str(host) else f"{host}"


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
