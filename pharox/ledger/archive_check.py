"""Check an archive without a database by computing every digest and every root again.

This proves that nothing in the files was changed, cut or swapped after sealing, if
one root is known from elsewhere: the last root covers everything before it. Without
another copy of the root, compare it with the ledger, whose ``ticks`` are never removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, islice, pairwise
from operator import itemgetter
from pathlib import Path

from pharox.log.canonical import DIGEST_VERSION, digest, root

from ..errors import ArchiveFileError
from .archive.files import EVENTS, TICKS, Files, Row, all_files_in, read

LIMIT = 100
"""How many differences to report at most."""


@dataclass(slots=True)
class Checked:
    """What was checked, and the differences, one sentence each.

    ``gaps`` are the first and last seqs of ranges between the ticks here. Events in
    a gap were sealed late and belong to parts of the log that are not here. ``root``
    is that of the last tick.
    """

    events: int = 0
    ticks: int = 0
    last_seq: int = 0
    root: bytes = b""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def check(*folders: Path | str) -> Checked:
    """Check all files of an archive against each other.

    Parameters
    ----------
    folders:
        The folders of the archive; several if parts were archived to different ones.

    Raises
    ------
    ArchiveFileError
        If a folder holds no archive. A single broken file is a difference.
    """
    files = sorted(
        (files for folder in folders for files in all_files_in(Path(folder))),
        key=lambda files: files.events.name,
    )
    checked = Checked()
    try:
        found = chain(_missing_parts(files), _differences(files, checked))
        checked.differences.extend(islice(found, LIMIT))
    except ArchiveFileError as error:
        checked.differences.append(f"{error}; events after it were not checked")
    return checked


def _missing_parts(files: Sequence[Files]) -> Iterator[str]:
    for one, following in pairwise(files):
        if one.end != following.first:
            yield f"positions {one.end} to {following.first - 1} are missing"


def _differences(files: Sequence[Files], checked: Checked) -> Iterator[str]:
    events = merge(*(_authenticated(one) for one in files), key=lambda pair: pair[0]["seq"])
    ticks = merge(*(read(one.ticks, TICKS) for one in files), key=itemgetter("first_seq"))
    waiting = next(events, None)
    for row in ticks:
        tick = _Tick(row)
        while waiting is not None and waiting[0]["seq"] <= row["last_seq"]:
            checked.events += 1
            yield from tick.take(*waiting)
            waiting = next(events, None)
        yield from tick.differences(files, checked)
    for event, _ in chain((waiting,) if waiting else (), events):
        yield f"event {event['seq']} is in no tick of these files"


def _authenticated(files: Files) -> Iterator[tuple[Row, bool]]:
    """Yield each event, and whether its digest matches and its position is in this part."""
    for row in read(files.events, EVENTS):
        belongs = files.first <= row["position"] < files.end
        authentic = row["version"] == DIGEST_VERSION and digest(row) == row["digest"]
        yield row, belongs and authentic


class _Tick:
    """A tick and the data of its events, from the tick itself and from their files."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._first, self._last = row["first_seq"], row["last_seq"]
        seqs, positions, digests = (
            row[name] or () for name in ("other_seqs", "other_positions", "other_digests")
        )
        self._ragged = not len(seqs) == len(positions) == len(digests)
        self._digests = dict(zip(seqs, digests, strict=False))
        self._positions = dict(zip(seqs, positions, strict=False))
        self._here: set[int] = set()

    def take(self, event: Row, authentic: bool) -> Iterator[str]:
        """Add an event that is not later than the tick, and yield what is wrong with it."""
        seq = event["seq"]
        if not authentic:
            yield f"event {seq} differs from its seal"
        if seq in self._here:
            yield f"event {seq} appears twice"
        elif seq < self._first:
            yield f"event {seq} is in no tick of these files"
        elif self._digests.setdefault(seq, event["digest"]) != event["digest"]:
            yield f"event {seq} does not match the digest in its tick"
        self._here.add(seq)

    def differences(self, files: Sequence[Files], checked: Checked) -> Iterator[str]:
        """Yield what is wrong with the tick, after all its events here have been added."""
        name = f"the tick of events {self._first} to {self._last}"
        if self._ragged:
            yield f"{name} has seqs, positions and digests of different events"
        if self._first <= checked.last_seq:
            yield f"{name} appears twice"
        elif self._first > checked.last_seq + 1:
            checked.gaps.append((checked.last_seq + 1, self._first - 1))
        elif self._row["before"] != checked.root:
            yield f"{name} does not follow the root before it"
        for seq, position in self._positions.items():
            if seq not in self._here and any(one.first <= position < one.end for one in files):
                yield f"event {seq} is missing"
        digests = [
            self._digests[seq] for seq in range(self._first, self._last + 1) if seq in self._digests
        ]
        if len(digests) != self._last - self._first + 1:
            yield f"only {len(digests)} digests were found for {name}"
        elif root(self._row["before"], self._row, digests) != self._row["root"]:
            yield f"{name} does not match its root"
        checked.ticks += 1
        checked.last_seq, checked.root = self._last, self._row["root"]
