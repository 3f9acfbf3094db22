"""Read lists of proxies, and keep pools in step with the URLs that hand them out.

:func:`open_source` and :func:`read_proxies` read a list's proxies one by one.
:func:`refresh_sources` fetches the lists of a ledger's sources, and writes what differs.

A source is a file, standard input or a URL. Its first characters show its format. Only
a buffer of fixed size is kept, so a list may be larger than memory. An entry that is not
a proxy is yielded as a :class:`BadEntry` with its place and reason, and reading
continues. A reason never quotes the source, which contains passwords.

Not known here: a proxy's id, and whether a pool knows it already. That is the storage's
``import_proxies``, and its ``sync_source``.
"""

from .entries import BadEntry, Defaults, Entry
from .formats import Format, read_proxies
from .opening import OpenedSource, open_source
from .refreshing import SourceRefresh, refresh_sources, refresh_sources_async

__all__ = [
    "BadEntry",
    "Defaults",
    "Entry",
    "Format",
    "OpenedSource",
    "SourceRefresh",
    "open_source",
    "read_proxies",
    "refresh_sources",
    "refresh_sources_async",
]
