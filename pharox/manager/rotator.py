"""Have the links of proxies called in the background, by the process that gave them back.

    released ──> due in the ledger ──> claimed by one process ──> called ──> recorded
                                   └──> `pharox sweep`, if the process that released is gone

One rotator per storage has a thread, or a task, for each proxy that takes another exit. It calls
the link again after a failure, until the bound. What others have left due is called on that
occasion. A process that is killed leaves a claim that runs out, and a rest that ends at the bound.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any
from uuid import UUID
from weakref import ref

from pydantic import SecretStr

from ..effects import Calls, call, call_async, run, run_async
from ..errors import PharoxError
from ..models import (
    MAX_ROTATION_S,
    DueRotation,
    RotationAnswer,
    RotationClaims,
    RotationFailure,
)
from ..storage.closing import before_close
from .per_storage import PerStorage

LINK_S = 30.0
"""How long a link may take to answer: a modem takes 10 to 30 seconds to have another exit."""

CLAIM_S = LINK_S + 5
"""For how long links are claimed: their calls are over by then."""

MOST = 32
"""How many proxies take another exit at once in one process. `pharox sweep` sees to others."""

_BATCH = 100
"""How many links that are due one process calls at once."""

_LONGEST_PAUSE_S = 5.0
_SHORTEST_PAUSE_S = 0.05
_LOOK_S = 0.2
"""How often who pauses looks whether the end has come."""

logger = logging.getLogger("pharox")

Fetch = Callable[[Sequence[SecretStr | None]], Any]
Pause = Callable[[float], Any]
"""Waits for so many seconds. It returns, or its awaitable does, whether to give up."""


def fetch_in_thread(links: Sequence[SecretStr | None]) -> list[RotationAnswer]:
    """Call links from a thread, and return what came of each."""
    from .links import call_links_in_thread  # noqa: PLC0415 - httpx takes a while to import

    return call_links_in_thread(links)


async def fetch_in_loop(links: Sequence[SecretStr | None]) -> list[RotationAnswer]:
    """Call links in the event loop, and return what came of each."""
    from .links import call_links  # noqa: PLC0415 - httpx takes a while to import

    return await call_links(links)


def rotating(
    storage: Any, fetch: Fetch, pause: Pause, proxy_id: UUID
) -> Calls[RotationAnswer | None]:
    """Call a proxy's link until it gives another exit or the rotation is over.

    Return what came of it last; None if the link was not called, by anybody.
    """
    last: RotationAnswer | None = None
    before: Any = ...
    until = time.monotonic() + MAX_ROTATION_S
    while True:
        claims: RotationClaims = yield partial(
            storage.claim_rotations, [proxy_id], seconds=CLAIM_S, most=1
        )
        if before is ...:
            before = claims.rotated_at
        _warn_of_unreadable(claims)
        if claims.unreadable:  # Another process may call it; this one has nothing to wait for.
            return last or RotationAnswer(RotationFailure.UNREADABLE)
        if claims.due:
            (last,) = yield from _calling(storage, fetch, claims.due)
            continue
        if claims.next_in_seconds is None or time.monotonic() > until:
            # Another process may have called it.
            if last is None and claims.rotated_at != before:
                return RotationAnswer()
            return last or claims.failed
        seconds = min(max(claims.next_in_seconds, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
        if (yield partial(pause, seconds)):
            return last


def calling_due(
    storage: Any, fetch: Fetch, is_over: Callable[[], bool] = lambda: False
) -> Calls[list[RotationAnswer]]:
    """Call the links that are due now, and return what came of them.

    A link that fails may be due again before all were called: it is left to the next time. No
    others are called once ``is_over`` says so.
    """
    answers: list[RotationAnswer] = []
    called: set[UUID] = set()
    while not is_over():
        claims: RotationClaims = yield partial(
            storage.claim_rotations, seconds=CLAIM_S, most=_BATCH
        )
        if not called:
            _warn_of_unreadable(claims)
        if not claims.due:
            break
        answers += yield from _calling(storage, fetch, claims.due)
        known = {each.proxy_id for each in claims.due}
        if len(claims.due) < _BATCH or known & called:
            break
        called |= known
    return answers


def _warn_of_unreadable(claims: RotationClaims) -> None:
    for proxy_id in claims.unreadable:
        logger.warning(
            "pharox.rotation.unreadable: the link of proxy %s is left to others: this process "
            "cannot decrypt it (PHAROX_SECRET_KEY)",
            proxy_id,
        )


def _calling(
    storage: Any, fetch: Fetch, due: Collection[DueRotation]
) -> Calls[list[RotationAnswer]]:
    answers: list[RotationAnswer] = yield partial(fetch, [each.url for each in due])
    for each, answer in zip(due, answers, strict=True):
        recorded = yield partial(storage.answer_rotation, each, answer)
        if not recorded:
            logger.warning(
                "pharox.rotation.late: the link of proxy %s answered after its claim", each.proxy_id
            )
        elif not answer.is_rotated:
            logger.warning(
                "pharox.rotation.failed: the link of proxy %s gave no other exit: %s%s",
                each.proxy_id,
                answer.failure,
                f" with {answer.status}" if answer.status else "",
            )
    return answers


class Rotator(ABC):
    """What rotators of threads and of event loops have in common."""

    def __init__(self, storage: Any) -> None:
        self._storage = ref(storage)
        self.start_empty()
        before_close(storage, partial(_finishing, ref(self)))

    def start_empty(self) -> None:
        """Have nothing under way."""
        self._running: dict[UUID, Any] = {}
        self._again: set[UUID] = set()

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended."""
        return False

    @abstractmethod
    def _is_ending(self) -> bool:
        """Return whether the storage is being closed, or the program ends."""

    @abstractmethod
    def note(self, proxy_id: UUID) -> None:
        """See to a proxy that may be to take another exit; never raises."""

    @abstractmethod
    def finishing(self) -> Calls[None]:
        """Wait for the calls that are under way, and begin no others."""

    def _program(self, storage: Any, fetch: Fetch, pause: Pause, proxy_id: UUID) -> Calls[None]:
        try:
            yield from rotating(storage, fetch, pause, proxy_id)
            # what processes that are gone have left
            yield from calling_due(storage, fetch, self._is_ending)
        except PharoxError as error:
            logger.warning("pharox.rotation.failed: of proxy %s: %s", proxy_id, error)
        except Exception:
            logger.exception("pharox.rotation.failed: of proxy %s", proxy_id)


class ThreadRotator(Rotator):
    """The rotator of threads. The end of a program waits for them, as they are no daemons."""

    def start_empty(self) -> None:
        """Have nothing under way, with a lock of its own."""
        self._lock = threading.Lock()
        self._ends = threading.Event()
        super().start_empty()

    def _is_ending(self) -> bool:
        # Whoever waits for this thread at the end of the program has no other way to say so.
        return self._ends.is_set() or not threading.main_thread().is_alive()

    def _pause(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._is_ending() and (left := until - time.monotonic()) > 0:
            self._ends.wait(min(left, _LOOK_S))
        return self._is_ending()

    def note(self, proxy_id: UUID) -> None:
        """See to a proxy in a thread of its own."""
        with self._lock:
            if proxy_id in self._running:
                self._again.add(proxy_id)
                return
            if len(self._running) >= MOST or self._ends.is_set():
                return
            thread = threading.Thread(
                target=self._run, args=(proxy_id,), name="pharox-rotation", daemon=False
            )
            self._running[proxy_id] = thread
        try:
            thread.start()
        except RuntimeError:  # The process may have no more.
            with self._lock:
                del self._running[proxy_id]

    def finishing(self) -> Calls[None]:
        """Wait for the threads that call links."""
        yield self.finish

    def finish(self) -> None:
        """Wait for the threads, but for this one."""
        self._ends.set()
        with self._lock:
            threads = [*self._running.values()]
        until = time.monotonic() + CLAIM_S
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        self._ends.clear()

    def _run(self, proxy_id: UUID) -> None:
        while (storage := self._storage()) is not None:
            run(self._program(storage, fetch_in_thread, self._pause, proxy_id), call)
            with self._lock:
                if proxy_id not in self._again or self._is_ending():
                    self._running.pop(proxy_id, None)
                    return
                self._again.discard(proxy_id)


class TaskRotator(Rotator):
    """The rotator of one event loop."""

    def __init__(self, storage: Any) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(storage)

    def start_empty(self) -> None:
        """Have nothing under way."""
        self._ends = False
        super().start_empty()

    def _is_ending(self) -> bool:
        return self._ends

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended."""
        return self._loop is not None and self._loop.is_closed()

    def note(self, proxy_id: UUID) -> None:
        """See to a proxy in a task of its own."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.start_empty()
            self._loop = loop
        if proxy_id in self._running:
            self._again.add(proxy_id)
        elif len(self._running) < MOST and not self._ends:
            task = loop.create_task(self._run(proxy_id))
            self._running[proxy_id] = task

    def finishing(self) -> Calls[None]:
        """Wait for the tasks that call links."""
        yield self._finish

    async def _finish(self) -> None:
        self._ends = True
        tasks = {each for each in self._running.values() if each is not asyncio.current_task()}
        if tasks and not self.is_over:
            await asyncio.wait(tasks, timeout=CLAIM_S)
        self._ends = False

    async def _pause(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._ends and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_S))
        return self._ends

    async def _run(self, proxy_id: UUID) -> None:
        try:
            while (storage := self._storage()) is not None:
                program = self._program(storage, fetch_in_loop, self._pause, proxy_id)
                await run_async(program, call_async)
                if proxy_id not in self._again or self._ends:
                    return
                self._again.discard(proxy_id)
        finally:
            self._running.pop(proxy_id, None)


_known: PerStorage[Rotator] = PerStorage()


def rotator_of(storage: Any, kind: Callable[[Any], Rotator]) -> Rotator:
    """Return the rotator of a storage, made when it is first needed."""
    return _known.of(storage, kind)


def _finishing(rotator_ref: Callable[[], Rotator | None]) -> Calls[None]:
    """Wait for the calls under way, before the storage is closed."""
    rotator = rotator_ref()
    if rotator is not None:
        yield from rotator.finishing()
