"""Print texts and moments: escape what a terminal would interpret, and show times in UTC.

Names and hosts come from outside. It stands here and not beside the models, whose import takes
a while: whatever prints a text needs it, and a command's help needs no more.
"""

from __future__ import annotations

from datetime import UTC, datetime


def escape_unprintable(text: str) -> str:
    """Return text with every unprintable character escaped as in a Python literal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_utc(moment: datetime) -> str:
    """Return a moment as ISO 8601 with milliseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
