"""Register a recorder with a manager once, however often this is called.

A recorder that is registered twice counts everything twice. Recorders have an identity
that says which of them record the same: those that count into one registry, write to
one logger, or use one tracer.
"""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from ..manager.leasing import Leasing

_registered: WeakKeyDictionary[Leasing[Any], set[Hashable]] = WeakKeyDictionary()
_lock = Lock()
_KINDS = ("acquire", "release", "expire", "revoke", "health", "lost", "outcome", "failure")


def register_once(manager: Leasing[Any], identity: Hashable, recorder: object) -> bool:
    """Register a recorder with a manager, unless the manager has one of the same identity.

    Return whether it was registered.

    Parameters
    ----------
    recorder:
        Its callbacks are its methods ``handle_acquire``, ``handle_release``, ``handle_expire``,
        ``handle_revoke``, ``handle_health``, ``handle_lost``, ``handle_outcome`` and
        ``handle_failure``, as far as it has them.
    """
    with _lock:
        known = _registered.setdefault(manager, set())
        if identity in known:
            return False
        known.add(identity)
    for kind in _KINDS:
        if handler := getattr(recorder, f"handle_{kind}", None):
            getattr(manager, f"register_{kind}_callback")(handler)
    return True
