"""The one error of everything that reads an entry."""

from __future__ import annotations


class Unreadable(ValueError):
    """An entry that is no proxy.

    The message is a sentence without a subject ("has no port"), and quotes nothing of
    the entry, as its parts may be credentials in the wrong place.
    """
