"""The ledger itself: seals, verification, subscriptions, read models, parts of the log, checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...incident.wording import count
from ...models import PoolMove
from ...storage.moving import move_command
from ..access import Access
from ..condition import Condition, checks_of, condition_of
from ..console import reader
from ..figures import figures_of
from ..jobs import Job, Jobs, Outcome, Progress
from ..live import stream
from ..rendering import render, render_text, url

if TYPE_CHECKING:
    from ...ledger.subscriptions import ParkedEvent, SubscriptionStatus

FINDINGS = 100
"""How many findings of a verification are listed."""

PARKED = 50
"""How many parked events are listed."""

_FOLD = "fold"
"""What a storage says it does while it folds the log."""

VERIFY = "verify"
"""The kind of the job that verifies."""


class UnfinishedMove(NamedTuple):
    """A move of a pool that has not ended, and the command that goes on with it."""

    move: PoolMove
    command: str


@dataclass(frozen=True, slots=True)
class LedgerPage:
    """What the page shows.

    ``parked`` are the parked events of the subscription ``of``, the first :data:`PARKED`, if it
    was asked for. ``verify``, ``sweep`` and ``rebuild`` are jobs that run here, or ran last.
    """

    condition: Condition
    subscriptions: Sequence[SubscriptionStatus]
    verify: Job | None
    sweep: Job | None
    rebuild: Job | None
    of: str = ""
    parked: Sequence[ParkedEvent] = ()
    has_more: bool = False
    moves: Sequence[UnfinishedMove] = ()


def data(storage: Any, jobs: Jobs, of: str = "") -> LedgerPage:
    """Return what the page shows.

    Raises
    ------
    SubscriptionNotFoundError
        If parked events of a subscription are asked for that does not exist.
    """
    # First, as listing subscriptions seals: the page shows what stood before anybody looked.
    condition = condition_of(storage)
    listed, events = _subscriptions(storage, of) if condition.has_parts else ([], [])
    return LedgerPage(
        condition,
        listed,
        jobs.of(VERIFY),
        jobs.of("sweep"),
        jobs.of("rebuild"),
        of,
        events[:PARKED],
        len(events) > PARKED,
        [
            UnfinishedMove(move, move_command(move.pool_name, move.ledger))
            for move in figures_of(storage).moves()
        ],
    )


def _subscriptions(
    storage: Any, of: str
) -> tuple[Sequence[SubscriptionStatus], Sequence[ParkedEvent]]:
    from ...ledger.subscriptions import parked, subscriptions  # noqa: PLC0415 - with an extra

    return subscriptions(storage), parked(storage, of) if of else []


def verify(storage: Any, progress: Progress) -> Outcome:
    """Verify a ledger, and return what was found."""

    def told(what: str, done: int, total: int) -> None:
        if what == _FOLD:
            progress(f"folding the log: {done:,} of {count(total, 'event')}", done, total)
        else:
            progress(f"checking {what.replace('_', ' ')}", done, total)

    if "progress" in signature(storage.verify).parameters:
        findings = storage.verify(limit=FINDINGS + 1, progress=told)
    else:  # in memory, where it takes a moment
        findings = storage.verify()
    if not findings:
        return Outcome(
            "Nothing is wrong: the log is what was sealed, and all tables are what it says."
        )
    more = "More than " if len(findings) > FINDINGS else ""
    return Outcome(
        f"{more}{count(min(len(findings), FINDINGS), 'difference')} found.",
        is_good=False,
        findings=[str(finding) for finding in findings[:FINDINGS]],
    )


async def page(request: Request) -> Response:
    """Answer with the page."""
    console = await reader(request)
    of = request.query_params.get("parked", "")
    shown = await console.read(data, console.storage, console.jobs, of)
    return render(request, "ledger.html", shown=shown)


async def live(request: Request) -> Response:
    """Answer with the stream of how far the verification is."""
    console = await reader(request)

    async def fragment() -> str:
        return render_text(request, "parts/verify.html", job=console.jobs.of(VERIFY))

    return await stream(request, fragment)


async def sweeps_live(request: Request) -> Response:
    """Answer with the stream of the sweeps: how far they are."""
    console = await reader(request)

    async def fragment() -> str:
        checks = await console.shared("checks", checks_of, console.storage)
        sweep = console.jobs.of("sweep")
        return render_text(request, "parts/sweeps.html", checks=checks, job=sweep)

    return await stream(request, fragment)


async def rebuild_live(request: Request) -> Response:
    """Answer with the stream of how far a rebuild is that was begun here."""
    console = await reader(request)

    async def fragment() -> str:
        return render_text(request, "parts/job.html", job=console.jobs.of("rebuild"))

    return await stream(request, fragment)


async def start_verify(request: Request) -> Response:
    """Start a verification, unless one runs; it only reads, so whoever may read may start it."""
    console = await reader(request)
    refuse_others(request)
    access: Access = request.state.access
    console.jobs.start(VERIFY, partial(verify, console.storage), actor=access.actor)
    return RedirectResponse(url(request, "ledger") + "#verify", 303)


def refuse_others(request: Request) -> None:
    """Raise 403 if a request was sent by another site's page in somebody's browser."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    is_ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if site not in ("same-origin", "none") or not is_ours:
        raise HTTPException(403, "This can be started from a page of the console only.")
