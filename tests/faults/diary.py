"""What a worker was told, in a file that outlives it, and what the log says of that.

A worker writes a line after each answer and before it goes on. A line is one
``write`` on a descriptor with O_APPEND, so a worker that is killed leaves whole
lines behind.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from pharox import Lease
from pharox.events import Event, LeaseAcquired, LeaseEnd, LeaseReleased
from pharox.storage.postgres import PostgresStorage

HELD, RELEASED, DOUBTED = "held", "released", "doubted"


class Diary:
    """A worker's own file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, lease_id: UUID | None) -> None:
        """Write what the worker was told of a lease."""
        self._write(f"{what} {lease_id}")

    def hold(self, lease: Lease) -> None:
        """Write that the worker holds a lease, and under which fencing token."""
        self._write(f"{HELD} {lease.id} {lease.fencing_token}")

    def _write(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\n".encode())


def told(folder: Path) -> dict[str, dict[UUID, int | None]]:
    """Return the leases of all diaries in a folder, with their fencing tokens, by what was told."""
    leases: dict[str, dict[UUID, int | None]] = defaultdict(dict)
    for path in folder.glob("*.diary"):
        for line in path.read_text().splitlines():
            what, lease_id, *token = line.split()
            if lease_id != "None":
                leases[what][UUID(lease_id)] = int(token[0]) if token else None
    return leases


@dataclass
class Account:
    """What became of what workers were told; all but the first two are to be empty or nothing."""

    acknowledged: int = 0
    in_doubt: int = 0
    lost: list[UUID] = field(default_factory=list)
    doubled: list[UUID] = field(default_factory=list)
    unreleased: list[UUID] = field(default_factory=list)
    held_twice: list[UUID] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def assert_clean(self) -> None:
        """Fail if anything was lost, doubled or wrong."""
        wrong = (self.lost, self.doubled, self.unreleased, self.held_twice, self.findings)
        assert wrong == ([], [], [], [], []), self


def account(storage: PostgresStorage, folder: Path) -> Account:
    """Hold the diaries of a folder against the log, and the log against its read models."""
    events, leases = list(storage.events()), told(folder)
    tokens = {
        event.lease_id: event.position for event in events if isinstance(event, LeaseAcquired)
    }
    granted = Counter(event.lease_id for event in events if isinstance(event, LeaseAcquired))
    ended = Counter(event.lease_id for event in events if isinstance(event, LeaseEnd))
    released = {event.lease_id for event in events if isinstance(event, LeaseReleased)}
    return Account(
        acknowledged=len(leases[HELD]),
        in_doubt=len(leases[DOUBTED]),
        lost=[each for each in leases[HELD] if granted[each] == 0],
        doubled=[each for each, times in (granted + ended).items() if times > 2]
        + [each for each, times in granted.items() if times > 1],
        unreleased=[each for each in leases[RELEASED] if each not in released],
        held_twice=_held_twice(events),
        findings=[str(finding) for finding in storage.verify()]
        + [
            f"lease {each} was told with the fencing token {token}, not {tokens[each]}"
            for each, token in leases[HELD].items()
            if token is not None and token != tokens.get(each, token)
        ],
    )


def _held_twice(events: Iterable[Event]) -> list[UUID]:
    """Return the leases of exclusive proxies that were granted while another one was active."""
    holder: dict[UUID, UUID] = {}
    found: list[UUID] = []
    for event in sorted(events, key=lambda event: event.position):
        if isinstance(event, LeaseAcquired):
            if event.proxy_id in holder:
                found.append(event.lease_id)
            holder[event.proxy_id] = event.lease_id
        if isinstance(event, LeaseEnd):
            holder.pop(event.proxy_id, None)
    return found
