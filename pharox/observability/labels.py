"""Keep the number of a metric's series bounded, whatever callers use as names."""

from __future__ import annotations

import threading
from hashlib import sha256

OTHER = "other"
"""What stands for all names beyond the first ones."""


LONGEST = 100
"""Of a longer name so many characters are shown, and a hash tells it from others."""


class BoundedLabel:
    """Passes the first names on as they are, and calls all later ones "other".

    Parameters
    ----------
    limit:
        How many names are told apart.
    known:
        Names that have been told apart before.
    """

    def __init__(self, limit: int, known: tuple[str, ...] = ()) -> None:
        if limit < 0:
            raise ValueError("the number of label values must be non-negative")
        self._limit = limit
        self._known = set(known[:limit])
        self._lock = threading.Lock()

    def __call__(self, name: str | None) -> str:
        """Return the label's value for a name."""
        if name is None:
            return OTHER
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{sha256(name.encode()).hexdigest()[:8]}"
        if name in self._known:
            return name
        with self._lock:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(name)
        return name
