"""Sign what the log is, and write it where it stays.

Nothing is signed that contradicts what was signed: first the log is compared with what the key
signed last, which a file keeps, and with the last checkpoint of each place. If it is shorter or
another, whoever runs the publisher has to know, and it ends. A witness or a web server that is
away is another matter: the checkpoint goes to all other places, and the failure is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from pharox.log.tree import TreeHead

from ...errors import CheckpointError, DatabaseError, InvalidInputError, PublishingError
from ...models import check_whole
from ...models.validation import check_pause
from ...proof.checkpoints import Checkpoint, new_checkpoint
from ...proof.notes import Signature, SigningKey
from .checkpoint_file import CheckpointFile
from .web import Witness

logger = logging.getLogger("pharox")

_POLL_S = 0.5
"""How often to look whether there are enough new events."""
_RETRY_S = 60.0
"""How long at most until what a place did not take is tried again."""


class ProvableLog(Protocol):
    """A storage whose log has a tree."""

    def tree_size(self) -> int:
        """Return how many events there are."""

    def tree_head(self, size: int | None = None) -> TreeHead:
        """Return the head of the tree over the first ``size`` events, or all."""

    def prove_consistency(self, old: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the tree over ``size`` events continues that over ``old``."""


class Place(Protocol):
    """Where checkpoints are published: a file, or a web server."""

    last: Checkpoint | None
    """What is known to have been published there last."""

    def publish(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint, or raise."""


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint that was published, and what did not work, one sentence each."""

    checkpoint: Checkpoint
    failures: tuple[str, ...] = ()


class Publisher:
    """Publishes checkpoints of a log.

    Parameters
    ----------
    storage:
        The ledger.
    key:
        What signs; its name is the log's.
    places:
        Where to publish: :class:`CheckpointFile`, :class:`CheckpointUrl`, or your own.
    witnesses:
        Who is asked to cosign.
    signed:
        A file of all that the key signs, which is written before anybody else sees it. Without
        one the log is compared with what the places know, and a web server knows nothing of what
        another process has put there.

    Raises
    ------
    InvalidInputError
        If there is no place.
    """

    def __init__(
        self,
        storage: ProvableLog,
        key: SigningKey,
        places: Sequence[Place],
        witnesses: Sequence[Witness] = (),
        *,
        signed: CheckpointFile | None = None,
    ) -> None:
        if not places:
            raise InvalidInputError("give at least one place to publish to")
        self._storage, self._key = storage, key
        self._places, self._witnesses, self._signed = places, witnesses, signed

    def publish(self) -> Published | None:
        """Publish what the log is now; None if nothing is new, or there are no events.

        Raises
        ------
        CheckpointError
            If the log contradicts what was signed or published; nothing was signed then. Or if a
            witness or a web server knows another log: it has been shown what was signed.
        OSError
            If a file cannot be written.
        """
        head = self._storage.tree_head()
        self._check_grown(head)
        if head.size == 0 or all(_size(place) == head.size for place in self._known()):
            return None
        checkpoint = new_checkpoint(head, self._key)
        if self._signed is not None and _size(self._signed) < head.size:
            self._signed.publish(checkpoint)
        failures: list[str] = []
        signatures = tuple(self._cosignatures(checkpoint, failures))
        note = replace(checkpoint.note, signatures=(*checkpoint.note.signatures, *signatures))
        checkpoint = Checkpoint(note)
        for place in self._places:
            if _size(place) < head.size:
                with _noted(failures):
                    place.publish(checkpoint)
        for failure in failures:
            logger.warning("pharox.checkpoint.incomplete: %s", failure)
        return Published(checkpoint, tuple(failures))

    def run(
        self,
        stop: threading.Event | None = None,
        *,
        every_events: int | None = None,
        every_s: float | None = None,
    ) -> None:
        """Publish now, and then after so many events or seconds, until ``stop`` is set.

        While the database is away it goes on trying; so it does, less and less often, with what a
        place did not take.

        Raises
        ------
        CheckpointError, OSError
            As :meth:`publish`.
        InvalidInputError
            If neither or an impossible one is given.
        """
        if every_events is None and every_s is None:
            raise InvalidInputError("say after how many events or seconds to publish")
        if every_events is not None and check_whole(every_events, "every_events") < 1:
            raise InvalidInputError("every_events must be at least 1", value=every_events)
        if every_s is not None:
            check_pause(every_s, "every_s")
        stop = stop or threading.Event()
        published, at = 0, float("-inf")
        retry_s: float | None = None
        while True:
            try:
                size = self._storage.tree_size()
                enough = every_events is not None and size >= published + every_events
                due = every_s is not None and time.monotonic() >= at + every_s
                late = retry_s is not None and time.monotonic() >= at + retry_s
                if enough or due or late or at < 0:
                    done = self.publish()
                    published, at = size, time.monotonic()
                    failed = done is not None and bool(done.failures)
                    retry_s = min(2 * (retry_s or _POLL_S), _RETRY_S) if failed else None
            except DatabaseError as error:
                logger.warning("pharox.checkpoint.delayed: %s", error)
            if stop.wait(_POLL_S if every_s is None else min(_POLL_S, every_s)):
                return

    def _known(self) -> list[Place]:
        """Return what knows of earlier checkpoints."""
        return [*([self._signed] if self._signed else []), *self._places]

    def _check_grown(self, head: TreeHead) -> None:
        for place in self._known():
            if place.last is None:
                continue
            last = place.last.head
            if last.size > head.size:
                raise CheckpointError(
                    f"the log has {head.size} events, and {last.size} were signed: it was cut, "
                    "or restored from a backup",
                    size=last.size,
                )
            if self._storage.tree_head(last.size) != last:
                raise CheckpointError(
                    f"the log is not the one whose first {last.size} events were signed; "
                    "`pharox verify --checkpoint` shows where it differs",
                    size=last.size,
                )

    def _cosignatures(self, checkpoint: Checkpoint, failures: list[str]) -> Iterator[Signature]:
        prove = partial(self._storage.prove_consistency, size=checkpoint.head.size)
        for witness in self._witnesses:
            with _noted(failures):
                yield from witness.cosign(checkpoint, prove)


def _size(place: Place) -> int:
    return place.last.head.size if place.last else 0


@contextmanager
def _noted(failures: list[str]) -> Iterator[None]:
    """Note that a place or a witness did not answer, and go on."""
    try:
        yield
    except PublishingError as error:
        failures.append(str(error))
