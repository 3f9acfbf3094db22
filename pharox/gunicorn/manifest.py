"""A server's data about its workers besides their metrics: their number and how they ended.

It is one small file, replaced as a whole together with the archive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .family import Member


@dataclass
class Manifest:
    """The contents of the archive: the generation of its files, and the processes in them.

    Ends of workers and their CPU time are counted per seat. The CPU time of running workers is
    stored by name as soon as it is shown, so it is counted even if nothing reads it again before
    they end.
    """

    generation: int = 0
    merged: list[str] = field(default_factory=list)
    starts: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    corrupt: int = 0
    seats: dict[str, dict[str, int]] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    running: dict[str, tuple[str, float]] = field(default_factory=dict)

    def add(self, ended: list[Member]) -> None:
        """Add workers that have ended."""
        self.starts += len(ended)
        self.exits = dict(self.exits_with(ended))
        self.seats = {seat: dict(exits) for seat, exits in self.seats_with(ended).items()}
        for member in ended:
            seat, seconds = self.running.pop(member.identity, (member.seat, 0.0))
            self.cpu[seat] = self.cpu.get(seat, 0.0) + seconds

    def exits_with(self, ended: Iterable[Member]) -> Counter[str]:
        """Return how workers ended: those that were added, and these."""
        return Counter(self.exits) + Counter(member.exit for member in ended)

    def seats_with(self, ended: Iterable[Member]) -> dict[str, Counter[str]]:
        """Return how workers ended, for each seat."""
        seats = {seat: Counter(exits) for seat, exits in self.seats.items()}
        for member in ended:
            seats.setdefault(member.seat, Counter())[member.exit] += 1
        return seats

    def times(self) -> dict[str, float]:
        """Return the CPU time that workers of each seat used."""
        times = dict(self.cpu)
        for seat, seconds in self.running.values():
            times[seat] = times.get(seat, 0.0) + seconds
        return times
