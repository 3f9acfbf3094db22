"""Lists of proxies: open a source, and read the proxies in it one by one.

A source is a file, standard input or a URL; its format shows in its first
characters. Nothing is held but a buffer of fixed size, so a list may be
longer than memory. What cannot be read as a proxy is handed on as a
:class:`BadEntry` with its place and reason, and reading goes on; a reason never
quotes the source, as passwords stand there.

What is not here: a proxy's id and whether a pool knows it already. That is the
storage's ``import_proxies``.
"""

from .entries import BadEntry, Defaults, Entry
from .formats import Format, read_proxies
from .opening import OpenedSource, open_source

__all__ = [
    "BadEntry",
    "Defaults",
    "Entry",
    "Format",
    "OpenedSource",
    "open_source",
    "read_proxies",
]
