"""``pharox replay``: show a pool as it was, play its changes, or compare two moments."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import to_jsonable_python

from ..errors import InvalidInputError
from ..history.describing import clock, day_of, describe
from ..models import utc_now
from ..models.moments import end_of, start_of
from ..models.text import escape_unprintable
from .moments import print_difference, print_moment
from .session import Archive, past
from .showing import AsJson, print_json

if TYPE_CHECKING:
    from ..history.replay import Step
    from ..history.sealed_log import SealedLog

WHEN = "TIME|SEQ"


def replay(
    context: typer.Context,
    *,
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="The pool's name at that time, or its id.")
    ],
    at: Annotated[
        str | None,
        typer.Option(metavar=WHEN, help="Show the pool as it was at this moment."),
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", metavar=WHEN, help="Play the changes from this moment on."),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", metavar=WHEN, help="Play up to this moment; to now if not given."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="N", help="Play at N times the recorded speed, not all at once."
        ),
    ] = None,
    step: Annotated[
        bool, typer.Option("--step", help="Wait for Enter before each change; q ends.")
    ] = False,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar=f"{WHEN} {WHEN}", help="Show what changed between two moments."),
    ] = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Show a pool as it was at a moment, its changes after a moment, or the difference between two.

    A moment is a seq of the log (digits alone), a time with its zone such as
    2026-01-31T12:00Z, a span before now such as 2h, or now. A time that is given to the second or
    finer includes all of that second or fraction.
    """
    if [at, begin, diff].count(None) != 2:
        raise InvalidInputError("give one of --at, --from and --diff")
    if begin is None and (end is not None or speed is not None or step):
        raise InvalidInputError("--to, --speed and --step need --from")
    if speed is not None and not math.isfinite(speed):
        raise InvalidInputError("--speed must be a number, such as 10")
    if step and not sys.stdin.isatty():
        raise InvalidInputError("--step needs a terminal to wait for Enter")
    now = utc_now()
    with past(context, archive) as log:
        if at is not None:
            _show(log, pool, end_of(at, now), as_json)
        elif diff is not None:
            _compare(log, pool, end_of(diff[0], now), end_of(diff[1], now), as_json)
        elif begin is not None:
            steps = _changes(log, pool, begin, end, now)
            _play(_one_by_one(steps) if step else steps, speed, as_json)


def _show(log: SealedLog, pool: str, at: int | datetime, as_json: bool) -> None:
    from ..history.replay import pool_at  # noqa: PLC0415 - SQLAlchemy takes a while to import

    moment = pool_at(log, pool, at)
    if as_json:
        print_json(to_jsonable_python(moment))
    else:
        print_moment(moment)


def _changes(
    log: SealedLog, pool: str, begin: str, end: str | None, now: datetime
) -> Iterator[Step]:
    from ..history.replay import changes  # noqa: PLC0415
    from ..history.sealed_log import last_seq  # noqa: PLC0415

    to = last_seq(log) if end is None else end_of(end, now)
    return changes(log, pool, start_of(begin, now), to)


def _play(steps: Iterable[Step], speed: float | None, as_json: bool) -> None:
    if speed is not None:
        steps = paced(steps, speed)
    if as_json:
        for step in steps:
            print_json(_attributes(step))
    else:
        for line in _lines(steps):
            print(escape_unprintable(line), flush=True)


def _lines(steps: Iterable[Step]) -> Iterator[str]:
    yield f"  {'time':<12}  {'seq':>7}  {'available':>11}  {'leases':>6}  what happened"
    day = None
    for step in steps:
        event = step.event
        if (today := day_of(event.recorded_at)) != day:
            day = today
            yield today
        available, leases = "-", "-"
        if step.counts is not None:
            available = f"{step.counts.available_proxies} of {step.counts.total_proxies}"
            leases = str(step.counts.total_leases)
        description = describe(event, pool=step.pool, address=step.address).sentence
        columns = f"{event.seq:>7}  {available:>11}  {leases:>6}"
        yield f"  {clock(event.recorded_at)}  {columns}  {description}"
    if day is None:
        yield "nothing happened in this time"


def _attributes(step: Step) -> dict[str, Any]:
    return {
        **step.event.model_dump(mode="json"),
        "pool": step.pool,
        "address": step.address,
        "pool_has": step.counts and step.counts.figures(),
    }


def paced(
    steps: Iterable[Step],
    speed: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Step]:
    """Yield steps at their recorded intervals, so many times faster."""
    started, first = clock(), None
    for step in steps:
        first = first or step.event.recorded_at
        due_s = (step.event.recorded_at - first).total_seconds() / speed
        sleep(max(0.0, started + due_s - clock()))
        yield step


def _one_by_one(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        print("Enter: the next one, q: end ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer or answer.strip().lower() == "q":
            return
        yield step


def _compare(
    log: SealedLog, pool: str, a: int | datetime, b: int | datetime, as_json: bool
) -> None:
    from ..history.replay import difference, pool_at  # noqa: PLC0415

    was = pool_at(log, pool, a)
    becomes = pool_at(log, was.pool.id, b)
    found = difference(was, becomes)
    if as_json:
        sides = {"from_seq": was.seq, "to_seq": becomes.seq}
        print_json({**sides, **to_jsonable_python(found)})
    else:
        print_difference(was, becomes, found)
