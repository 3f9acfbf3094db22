"""Register a recorder with a manager once, however often that is asked for.

A recorder that hears of everything twice counts everything twice. Which two would
record the same is for the recorders to say, by an identity: it is the same where
they count into one registry, write to one logger, or use one tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from ..manager.leasing import Leasing

_registered: WeakKeyDictionary[Leasing[Any], set[Hashable]] = WeakKeyDictionary()
_lock = Lock()


def register_once(
    manager: Leasing[Any], identity: Hashable, **handlers: Callable[[Any], None]
) -> None:
    """Have a manager tell a recorder, unless it tells one of the same identity already.

    Parameters
    ----------
    handlers:
        By what they are told of: acquire, release, expire, health, failure.
    """
    with _lock:
        known = _registered.setdefault(manager, set())
        if identity in known:
            return
        known.add(identity)
    for told, handler in handlers.items():
        getattr(manager, f"register_{told}_callback")(handler)
