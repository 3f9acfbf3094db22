"""Read lists of proxies: open a source, and read the proxies in it one by one.

A source is a file, standard input or a URL. Its first characters show its format. Only
a buffer of fixed size is kept, so a list may be larger than memory. An entry that is not
a proxy is yielded as a :class:`BadEntry` with its place and reason, and reading
continues. A reason never quotes the source, which contains passwords.

Not known here: a proxy's id, and whether a pool knows it already. That is the storage's
``import_proxies``.
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
