"""Names and hosts as they are shown.

They come from elsewhere: a terminal must not obey them and a page must not be
turned around by them, so what does not print is escaped.
"""

from __future__ import annotations


def inert(text: str) -> str:
    """Return text with every character that is not plain print escaped, as Python writes it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def host_and_port(host: str, port: int) -> str:
    """Return a host with its port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
