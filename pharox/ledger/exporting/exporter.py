"""The subscription whose handler writes, and what ends it.

A file takes a batch, which is one fsync, and the checkpoint moves behind it. A pipe takes
line by line, so that a reader that stalls costs no repeats: the checkpoint has moved up
to the last line that went out, and no transaction stays open while nobody reads.

An output that fails, such as a full disk, ends the exporter: whoever runs it is to know.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from uuid import UUID

from tenacity import wait_fixed

from pharox.errors import ConflictError, InvalidInputError
from pharox.storage.interface import IStorage

from ..subscriptions import Delivery, Subscription, reset, subscriptions
from ..subscriptions.options import Start
from ..subscriptions.statements import TAKE_OVER_S
from .cloud_events import check_source, ledger_source, line_of
from .outputs import Output

NAME = "export"

_OUTPUT_FAILURES = (OSError, ConflictError, InvalidInputError)
"""What an output raises that trying again does not mend."""

_CHECK_S = 0.2
"""How often to look whether the output still takes lines while there are no events."""


class Exporter:
    """Writes the events of a ledger as CloudEvents, from the checkpoint of a name.

    Parameters
    ----------
    storage:
        The ledger, in PostgreSQL.
    output:
        Where the lines go: a :class:`LineFile`, a :class:`LinePipe`, or your own.
    name:
        The subscription's. Another selection of events wants another name.
    source:
        The ``source`` of the CloudEvents, a URI reference; that of
        :func:`ledger_source` if not given.
    start:
        Where a new name begins: "beginning", "now" or a seq. A known one continues.
    types, pool:
        Only events of these types, of this pool (its name or id).

    Raises
    ------
    InvalidInputError
        If these are not valid, or the storage is not in PostgreSQL.
    """

    def __init__(
        self,
        storage: IStorage,
        output: Output,
        *,
        name: str = NAME,
        source: str | None = None,
        start: Start = "beginning",
        types: Collection[str] | None = None,
        pool: str | UUID | None = None,
    ) -> None:
        self._storage = storage
        self._output = output
        self._subscription = Subscription(
            name,
            self._write_batch if output.batches else self._write_one,
            start=start,
            types=types,
            pool=pool,
            whole_batches=output.batches,
            attempts=None,
            pause=wait_fixed(_CHECK_S),
        )
        self._source = ledger_source(storage) if source is None else check_source(source)
        self._failure: Exception | None = None
        self._stop = threading.Event()

    def run(self, stop: threading.Event | None = None, *, follow: bool = True) -> None:
        """Write events until ``stop`` is set; without ``follow``, those that there are now.

        While another process writes under this name, it waits to take over; without
        ``follow`` it is refused.

        Raises
        ------
        ConflictError
            If another process writes under this name, without ``follow``, or writes the file.
        InvalidInputError
            If the file was replaced by one that is no export.
        OSError
            If the output fails, as of a full disk. BrokenPipeError if nobody reads it.
        ArchivedError
            If the next event has been archived.
        """
        self._failure = None
        self._stop = stop or threading.Event()
        if follow:
            self._follow()
        else:
            self._check_alone()
            self._subscription.run(self._storage, self._stop, follow=False)
        if self._failure is not None:
            raise self._failure

    def begin_again(self) -> None:
        """Set a known name back to the first event; nothing for a new one.

        Raises
        ------
        ConflictError
            If another process writes under this name.
        """
        self._check_alone()
        if any(status.name == self._subscription.name for status in subscriptions(self._storage)):
            reset(self._storage, self._subscription.name, "beginning")

    def checkpoint(self) -> int:
        """Return the last seq that was written under this name; 0 if nothing was."""
        known = subscriptions(self._storage)
        return max((e.checkpoint for e in known if e.name == self._subscription.name), default=0)

    def has_reader(self) -> bool:
        """Return whether a process writes under this name, or did so 2.5 seconds ago."""
        statuses = subscriptions(self._storage)
        return any(each.active for each in statuses if each.name == self._subscription.name)

    def _follow(self) -> None:
        with self._subscription.running(self._storage) as running:
            while running.is_alive and not self._stop.wait(_CHECK_S):
                self._output.check()

    def _check_alone(self) -> None:
        """Raise ConflictError if another process writes; one that was killed is waited for."""
        until = time.monotonic() + TAKE_OVER_S + _CHECK_S
        while self.has_reader():
            if time.monotonic() > until:
                name = self._subscription.name
                raise ConflictError(f"another process exports under the name {name!r}", name=name)
            self._stop.wait(_CHECK_S)

    def _write_one(self, delivery: Delivery) -> None:
        self._write_batch([delivery])

    def _write_batch(self, deliveries: Sequence[Delivery]) -> None:
        if self._failure is not None:  # the reader tries once more before it stops
            raise self._failure
        try:
            self._output.write([line_of(each.event, self._source) for each in deliveries])
        except _OUTPUT_FAILURES as error:
            self._failure = error
            self._stop.set()
            raise
