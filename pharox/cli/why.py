"""``pharox why``: why a consumer got no proxy, and who held what at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from pydantic_core import to_jsonable_python

from ..history.describing import clock, counted, describe, shown_status
from ..models import utc_now
from ..models.moments import end_of
from .paging import print_lines
from .session import Archive, past
from .showing import AsJson, in_utc, print_json
from .story import Line, Tone

if TYPE_CHECKING:
    from ..history.why import Explanation, Holder, Unusable

LISTED = 5
"""How many holders are named, and how many proxies of each."""

MINUTES = 10
"""Of how many minutes the misses are counted one by one."""


def why(
    context: typer.Context,
    consumer: Annotated[
        str, typer.Argument(metavar="NAME", help="The consumer's name, or its id.")
    ],
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME|SEQ",
            help="The last miss up to a time (2026-01-31T12:00Z), so long ago (2h), or a seq.",
        ),
    ] = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Show why a consumer got no proxy: the reason of its last miss, and who held what then."""
    from ..history.why import why as explained  # noqa: PLC0415 - SQLAlchemy takes a while

    moment = None if at is None else end_of(at, utc_now())
    with past(context, archive) as log:
        found = explained(log, consumer, at=moment)
        if as_json:
            print_json({"consumer": consumer, "missed": None} if found is None else _summary(found))
            return
        lines = [_never(consumer, at)] if found is None else _lines(found)
        print_lines(map(_line, lines), paged=False)


def _line(text: str) -> Line:
    """Return a line whose further lines on a terminal are indented as it is."""
    bare = text.lstrip()
    return Line(bare, " " * (len(text) - len(bare)), Tone.PLAIN if bare != text else Tone.HEADING)


def _never(consumer: str, at: str | None) -> str:
    up_to = "" if at is None else f" up to {at}"
    return f"{consumer} got a proxy each time that it asked for one{up_to}, or never asked"


def _summary(found: Explanation) -> dict[str, Any]:
    """Return an explanation as one object for scripts."""
    summary = {
        "consumer": found.miss.consumer,
        "missed": found.miss,
        "in_a_row": found.in_a_row,
        "since": found.since,
        "is_cut": found.is_cut,
        "minutes": [minute._asdict() for minute in found.minutes],
        "pool_had": found.counts and found.counts.figures(),
        "holders": [
            {
                "consumer": holder.consumer,
                "leases": [
                    {
                        "lease_id": lease.id,
                        "proxy_id": lease.proxy_id,
                        "address": found.address_of(lease.proxy_id),
                        "acquired_at": lease.acquired_at,
                        "expires_at": lease.expires_at,
                    }
                    for lease in holder.leases
                ],
            }
            for holder in found.holders
        ],
        "unusable": [
            {
                "proxy_id": each.id,
                "address": each.address,
                "status": each.status,
                "since": each.change and each.change.recorded_at,
                "by": each.change and each.change.actor,
                "reason": each.change and each.change.reason,
            }
            for each in found.unusable
        ],
        "then": found.then,
    }
    return cast("dict[str, Any]", to_jsonable_python(summary))


def _lines(found: Explanation) -> Iterator[str]:
    miss = found.miss
    told = describe(
        miss,
        pool=miss.pool_name,
        address=None,
        pool_had=found.counts,
    )
    yield f"{told.sentence}{_culprit(found)}"
    yield f"  at {in_utc(miss.recorded_at)}, event {miss.seq}{_in_a_row(found)}"
    if found.in_a_row > 1:
        yield f"  missed {_minutes(found)}"
    for line in (told.asked, *told.details, told.by):
        if line:
            yield f"  {line}"
    if found.holders:
        yield "who held proxies of the pool:"
    for holder in found.holders[:LISTED]:
        yield from _held(found, holder)
    if len(found.holders) > LISTED:
        rest = found.holders[LISTED:]
        leases = sum(len(holder.leases) for holder in rest)
        yield f"  {len(rest)} more, {counted(leases, 'lease', 'leases')}"
    if found.unusable:
        yield "what nobody could lease:"
    for unusable in found.unusable[:LISTED]:
        yield f"  {_unusable(unusable)}"
    if len(found.unusable) > LISTED:
        yield f"  {counted(len(found.unusable) - LISTED, 'proxy', 'proxies')} more"
    if found.then is None:
        yield "it has got none since"
    else:
        yield f"it got one again at {in_utc(found.then.recorded_at)}, event {found.then.seq}"


def _in_a_row(found: Explanation) -> str:
    if found.in_a_row == 1 and not found.is_cut:
        return ""
    least, earlier = ("at least ", " or earlier") if found.is_cut else ("", "")
    since = f"{in_utc(found.since)}{earlier}"
    return f": its last of {least}{found.in_a_row} misses in a row, since {since}"


def _culprit(found: Explanation) -> str:
    """Return who held most, or which limit it is, as the end of the sentence."""
    from ..history.why import culprit  # noqa: PLC0415 - as above

    blamed = culprit(found)
    if blamed and blamed.limit:
        return f"; the limit is {blamed.limit.name}, of {blamed.limited}"
    if not (blamed and blamed.holders):
        return ""
    most = blamed.holders[0]
    leases = sum(len(holder.leases) for holder in blamed.holders)
    return f"; {most.consumer} held {len(most.leases)} of {counted(leases, 'lease', 'leases')}"


def _minutes(found: Explanation) -> str:
    """Return the misses in a row by minute, the last ones, and by reason if there are several."""
    has_several = len({minute.reason for minute in found.minutes}) > 1
    shown = [
        f"{minute.misses} at {clock(minute.minute)[:5]}"
        + (f" ({minute.reason.value})" if has_several else "")
        for minute in found.minutes[-MINUTES:]
    ]
    before = sum(minute.misses for minute in found.minutes[:-MINUTES])
    return ", ".join([*([f"{before} before"] if before else []), *shown])


def _held(found: Explanation, holder: Holder) -> Iterator[str]:
    yield f"  {holder.consumer}, {counted(len(holder.leases), 'lease', 'leases')}"
    for lease in holder.leases[:LISTED]:
        span = f"from {clock(lease.acquired_at)} until {clock(lease.expires_at)}"
        yield f"    {found.address_of(lease.proxy_id)} {span}"
    if len(holder.leases) > LISTED:
        yield f"    {len(holder.leases) - LISTED} more"


def _unusable(found: Unusable) -> str:
    change, check = found.change, found.check
    status = shown_status(found.status, drains=found.drains, until=found.until)
    parts = [f"{found.address}: {status}"]
    if change is not None:
        parts.append(f", since {in_utc(change.recorded_at)}")
        parts.append(f" by {change.actor}" if change.actor else "")
        parts.append(f": {change.reason}" if change.reason else "")
    elif check is not None:
        parts.append(f", checked at {in_utc(check.checked_at)}")
        parts.append(f": {check.error}" if check.error else "")
    return "".join(parts)
