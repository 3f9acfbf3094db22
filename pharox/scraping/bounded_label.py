"""Bound the number of a metric's series, whatever names callers use."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

OTHER = "other"
"""The label of all names beyond the first ones."""


LONGEST = 100
"""How many characters to show of a longer name, followed by a hash of it."""


class BoundedLabel:
    """Returns the first names as they are, and "other" for all later ones.

    Parameters
    ----------
    limit:
        How many names to distinguish.
    known:
        Names that were distinguished before.
    shared:
        A folder in which several processes agree on the first names, so that their
        number stays bounded however many processes come and go.
    """

    def __init__(self, limit: int, known: tuple[str, ...] = (), shared: Path | None = None) -> None:
        if limit < 0:
            raise ValueError("the number of label values must be non-negative")
        self._limit = limit
        self._known = set(known[:limit])
        self._shared = shared
        self._lock = threading.Lock()

    def or_none(self, name: str | None) -> str:
        """Return the label's value for a name, or an empty one for None."""
        return self(name) if name else ""

    def __call__(self, name: str | None) -> str:
        """Return the label's value for a name."""
        if name is None:
            return OTHER
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{sha256(name.encode()).hexdigest()[:8]}"
        if name in self._known:
            return name
        with self._lock:
            if name not in self._known and len(self._known) < self._limit:
                if self._shared is None:
                    self._known.add(name)
                else:
                    self._agree(self._shared, name)
            return name if name in self._known else OTHER

    def _agree(self, folder: Path, name: str) -> None:
        """Take the next place in the folder, and learn the names of the places before it."""
        own = folder / f".{token_hex(8)}"
        try:
            folder.mkdir(exist_ok=True)
            own.write_bytes(name.encode(errors="surrogatepass"))
            for number in range(len(self._known), self._limit):
                place = folder / str(number)
                try:
                    os.link(own, place)
                except FileExistsError:
                    self._known.add(place.read_bytes().decode(errors="surrogatepass"))
                else:
                    self._known.add(name)
                if name in self._known:
                    break
        except OSError:
            return  # Such as a full disk: the name counts as "other" until it can be stored.
        finally:
            with suppress(OSError):
                own.unlink()
