"""Every lease is accounted for: what workers were told, against what the log says.

The log is read once, each time from where it was left; what is kept of it is only
what is still open, so an account of hours fits in memory.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from pharox.events import LeaseAcquired, LeaseEnd
from pharox.storage.postgres import PostgresStorage

_TOLD = 5


class Accounts:
    """Compares journals with the log.

    Attributes
    ----------
    acknowledged:
        How many acquisitions and releases workers were told of.
    lost:
        How many of these the log does not have.
    held_twice:
        How often a proxy that takes one lease was leased while it was held.
    errors:
        How often a worker met a lost connection.
    unexplained:
        The first few other errors, in words.
    """

    def __init__(self, journals: Path) -> None:
        self._journals = journals
        self._offsets: dict[Path, int] = {}
        self._told: list[str] = []
        self._seq = 0
        self._holders: dict[UUID, UUID] = {}
        self._untold: dict[str, set[str]] = {"A": set(), "R": set()}
        self.leases = self.acknowledged = self.lost = self.held_twice = self.errors = 0
        self.unexplained: list[str] = []

    @property
    def open_leases(self) -> int:
        """How many leases have not ended, as far as the log was read."""
        return len(self._holders)

    @property
    def last_seq(self) -> int:
        """How far the log was read."""
        return self._seq

    def settle(self, storage: PostgresStorage) -> None:
        """Take in what is new; the journals first, so that the log has all that they tell.

        What they told stays to be compared if the log cannot be read to its end.
        """
        for path in sorted(self._journals.iterdir()):
            self._told += self._new(path)
        for event in storage.events(after=self._seq):
            self._seq = event.seq
            if isinstance(event, LeaseAcquired):
                self._began(event)
            elif isinstance(event, LeaseEnd):
                self._ended(event)
        for line in self._told:
            self._compare(*line.split(" ", 1))
        self._told.clear()

    def _new(self, path: Path) -> list[str]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            whole = file.read().rpartition(b"\n")[0]
        self._offsets[path] = self._offsets.get(path, 0) + (len(whole) + 1 if whole else 0)
        return whole.decode().splitlines()

    def _began(self, event: LeaseAcquired) -> None:
        self.leases += 1
        self.held_twice += event.proxy_id in self._holders
        self._holders[event.proxy_id] = event.lease_id
        self._untold["A"].add(str(event.lease_id))

    def _ended(self, event: LeaseEnd) -> None:
        if self._holders.get(event.proxy_id) == event.lease_id:
            del self._holders[event.proxy_id]
        else:
            self.held_twice += 1
        self._untold["R"].add(str(event.lease_id))

    def _compare(self, kind: str, what: str) -> None:
        if kind in self._untold:
            self.acknowledged += 1
            self.lost += what not in self._untold[kind]
            self._untold[kind].discard(what)
        elif kind == "E":
            self.errors += 1
        elif len(self.unexplained) < _TOLD:
            self.unexplained.append(what)
