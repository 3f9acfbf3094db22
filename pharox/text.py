"""Names and hosts as they are shown.

They come from elsewhere: a terminal must not obey them and a page must not be
turned around by them, so what does not print is escaped.
"""

from __future__ import annotations

from contextlib import suppress

import idna


def normal_host(host: str) -> str:
    """Return a host in the one form by which it is known.

    Names have no capitals and no dot at their end, and are in ASCII as the DNS has them. What is
    no name stays, for others to refuse; addresses have a form of their own.
    """
    if not host.isascii() and host.isprintable():
        with suppress(idna.IDNAError):  # such as that of an emoji
            host = idna.encode(host, uts46=True).decode()
    return host.rstrip(".").lower()


def inert(text: str) -> str:
    """Return text with every character that is not plain print escaped, as Python writes it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def url_of(protocol: str, host: object, port: int, login: str = "") -> str:
    """Return the URL of a proxy, an IPv6 address in brackets; ``login`` ends with its ``@``."""
    spelled = f"[{host}]" if ":" in str(host) else f"{host}"
    return f"{protocol}://{login}{spelled}:{port}"
