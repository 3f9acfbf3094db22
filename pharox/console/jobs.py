"""Work that takes minutes, such as a verification: in a thread of its own, one of a kind at a time.

A page starts a job and is answered at once; it then shows how far the job is. A job's state is a
value that the thread replaces, so whoever looks sees one moment of it. The last job of each kind
stays known until the console ends, which no job outlives.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import datetime

from ..errors import PharoxError
from ..models import utc_now

logger = logging.getLogger("pharox")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to, in a sentence, and its findings; ``is_good`` if nothing is wrong."""

    sentence: str
    is_good: bool = True
    findings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now: ``done`` of ``total`` parts, and ``what`` it does at the moment.

    ``total`` is 0 if nobody knows how much there is to do. ``outcome`` is None while it runs.
    """

    kind: str
    started_at: datetime
    actor: str | None = None
    what: str = ""
    done: int = 0
    total: int = 0
    ended_at: datetime | None = None
    outcome: Outcome | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.outcome is None

    @property
    def percent(self) -> int:
        """How much of it is done."""
        return 100 * min(self.done, self.total) // self.total if self.total else 0


Progress = Callable[[str, int, int], None]
"""Called by a job with what it does, and how many of how many parts are done."""

Work = Callable[[Progress], Outcome]
"""What a job does."""


class Jobs:
    """The jobs of a console, the last one of each kind."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def of(self, kind: str) -> Job | None:
        """Return the job of a kind that runs, or the last one; None if there was none."""
        return self._jobs.get(kind)

    def start(
        self,
        kind: str,
        work: Work,
        *,
        actor: str | None = None,
        before: Callable[[], None] | None = None,
    ) -> bool:
        """Start a job, unless one of its kind is running; return whether it was started.

        Parameters
        ----------
        before:
            Called once the job's place is taken, and before it runs, such as to record that it
            begins. If it raises, no job is started.
        """
        with self._lock:
            known = self._jobs.get(kind)
            if known is not None and known.is_running:
                return False
            self._jobs[kind] = Job(kind, utc_now(), actor)
        try:
            if before is not None:
                before()
        except BaseException:
            self._put_back(kind, known)
            raise
        # A daemon: a console that is told to stop does not wait for it.
        run = copy_context().run  # what it records has the actor of whoever started it
        thread = threading.Thread(target=run, args=(self._run, kind, work), daemon=True)
        thread.name = f"pharox-console-{kind}"
        thread.start()
        return True

    def _put_back(self, kind: str, known: Job | None) -> None:
        with self._lock:
            del self._jobs[kind]
            if known is not None:
                self._jobs[kind] = known

    def _run(self, kind: str, work: Work) -> None:
        def progress(what: str, done: int, total: int) -> None:
            self._jobs[kind] = replace(self._jobs[kind], what=what, done=done, total=total)

        try:
            outcome = work(progress)
        except PharoxError as error:
            outcome = Outcome(str(error), is_good=False)
        except Exception:  # the page says that it failed, and the log of the process why
            logger.exception("a job of the console failed: %s", kind)
            why = "It failed. The log of the console's process says why."
            outcome = Outcome(why, is_good=False)
        self._jobs[kind] = replace(self._jobs[kind], ended_at=utc_now(), outcome=outcome)
