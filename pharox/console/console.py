"""What the handlers share: the storage, who may what, and reading in threads within a time-out.

The storage is a synchronous one, read in threads. A page is then a plain function of the storage,
which tests call without a server, and the same storage may serve the leasing of its process.

Figures that many browsers ask for at once are computed once (:meth:`Console.shared`). They are kept
for 150 times as long as computing them took, ten seconds at most, so that a page that is open costs
a database less than 1 % of one connection's time, however many look.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..effects.limiting import answers_within
from ..history.past.keyframes import Keyframes
from .access import Access, Action, Authorize
from .alerts import Watch
from .figures import Figures, figures_of
from .figures.activity import Activity
from .jobs import Jobs
from .pacing import Pacer
from .pool_view import PoolViews
from .reports import Reports
from .signing import Signer

T = TypeVar("T")

REST = 150
"""How many times as long as it took a shared figure is kept."""

FRESH_S, STALE_S = 1.0, 10.0
"""For how long a shared figure is kept at least, and at most."""

_READERS = 8
_SLOW_READERS = 2
_KEPT = 500


class Console:
    """One ledger's console.

    Attributes
    ----------
    storage:
        The storage, for pages to read.
    figures, activity, keyframes, watch, pools:
        What the pages of the console ask of it beside what every storage answers: read models,
        the last minutes, the past, since when alerts hold, and pools at any moment.
    jobs, reports:
        What runs for minutes, and the incident reports that were drawn last.
    authorize:
        Who may see and do what.
    signer, pacer:
        What signs the forms, and what bounds how often somebody acts.
    """

    def __init__(
        self,
        storage: Any,
        authorize: Authorize,
        answer_timeout_s: float,
        secret: str | bytes | None = None,
    ) -> None:
        self.storage = storage
        self.figures: Figures = figures_of(storage)
        self.activity = Activity(self.figures.log)
        self.keyframes = Keyframes(self.figures.past)
        self.watch = Watch()
        self.pools = PoolViews(storage, self.figures, self.activity, self.keyframes)
        self.jobs = Jobs()
        self.reports = Reports(self.figures.log)
        self.authorize = authorize
        self.signer = Signer(secret)
        self.pacer = Pacer(30, 60, "actions")
        self._answer_timeout_s = answer_timeout_s
        self._readers = asyncio.Semaphore(_READERS)
        self._slow_readers = asyncio.Semaphore(_SLOW_READERS)
        self._shared: dict[Hashable, tuple[float, asyncio.Future[Any]]] = {}

    async def access(self, request: Request) -> Access:
        """Return what a request may see and do."""
        access = self.authorize(request)
        return await access if inspect.isawaitable(access) else access

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that reads, in a thread, within the time-out for each statement."""
        async with self._readers:
            return await run_in_threadpool(self._within, function, *arguments)

    async def read_slowly(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do what :meth:`read` does for what may take minutes, so that other pages need not wait.

        There are two places for it: who comes later waits.
        """
        async with self._slow_readers:
            return await run_in_threadpool(self._within, function, *arguments)

    async def act(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that acts, in a thread, in the time that the storage gives it."""
        return await run_in_threadpool(function, *arguments)

    async def shared(self, key: Hashable, function: Callable[..., T], *arguments: Any) -> T:
        """Return what :meth:`read` would, or what it has just returned for the same key."""
        until, known = self._shared.get(key, (0.0, None))
        if known is not None and (not known.done() or time.monotonic() < until):
            return await asyncio.shield(known)
        # A task of the console's, which goes on if whoever asked first goes away.
        task = asyncio.create_task(self._read_shared(key, function, *arguments))
        self._make_room()
        self._shared[key] = (0.0, task)
        return await asyncio.shield(task)

    async def _read_shared(self, key: Hashable, function: Callable[..., T], *arguments: Any) -> T:
        began = time.monotonic()
        try:
            found = await self.read(function, *arguments)
        except Exception:
            self._shared.pop(key, None)
            raise
        took = time.monotonic() - began
        if key in self._shared:
            until = began + min(STALE_S, max(FRESH_S, REST * took))
            self._shared[key] = (until, self._shared[key][1])
        return found

    def _within(self, function: Callable[..., T], *arguments: Any) -> T:
        with answers_within(self._answer_timeout_s):
            return function(*arguments)

    def _make_room(self) -> None:
        """Forget what is over, or the oldest: whoever asks for many pages must not fill memory."""
        now = time.monotonic()
        for key in [
            key for key, (until, known) in self._shared.items() if known.done() and until < now
        ]:
            del self._shared[key]
        while len(self._shared) >= _KEPT:
            del self._shared[next(iter(self._shared))]


def console_of(request: Request) -> Console:
    """Return the console that answers a request."""
    console: Console = request.app.state.console
    return console


async def reader(request: Request) -> Console:
    """Return the console if the request may read, else raise 403: every page begins with it."""
    console = console_of(request)
    access = await console.access(request)
    request.state.access = access
    if not access.may_read:
        raise HTTPException(403)
    return console


async def doer(request: Request, action: Action) -> Console:
    """Return the console if the request may carry out an action, else raise 403."""
    console = await reader(request)
    access: Access = request.state.access
    if not access.may(action):
        raise HTTPException(403)
    return console
