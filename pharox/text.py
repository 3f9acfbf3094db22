"""Text from elsewhere, made harmless before it is shown.

Names and hosts come from elsewhere. A terminal must not obey them and a page
must not be turned around by them, so what does not print is escaped.
"""

from __future__ import annotations


def inert(text: str) -> str:
    """Return text with every character that is not plain print escaped, as Python writes it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
