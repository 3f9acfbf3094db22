"""The error of all readers of entries."""

from __future__ import annotations


class Unreadable(ValueError):
    """The entry is not a proxy.

    The message is a sentence without a subject ("has no port"), and quotes nothing of
    the entry, as its parts may be credentials in the wrong place.
    """
