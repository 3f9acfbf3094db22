"""Report outcomes, up to 500 in one statement and one commit, and set rests by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from projections.proxies import proxies

from ...errors import PharoxError, ProxyNotFoundError
from ...events.attribution import current_attribution
from ...models import Outcome
from ...models.gateway import SESSION
from ..reports import CoolDownRequest, Reported, ReportRequest, report_rounds
from ..requests import no_lease
from ..validation import rests_no_gateway
from .driver import Program
from .sql import PROXY_ID, Query, Statement, by_schema, call_of

_ORIGIN = {"own_slot": "smallint", "actor": "text", "correlation_id": "text"}
_REPORTS = _ORIGIN | {
    "asked_ids": "uuid[]",
    "targets": "text[]",
    "outcomes": "text[]",
    "counts": "integer[]",
    "statuses": "integer[]",
    "asked_seconds": "double precision[]",
    "details": "jsonb[]",
}
_COOL_DOWN = _ORIGIN | {
    "proxy_id": "uuid",
    "target": "text",
    "seconds": "double precision",
    "reason": "text",
}


class _Answer(NamedTuple):
    """A row of ``report_outcomes_v1``."""

    is_known: bool
    target: str | None
    cools_until: datetime | None
    streak: int | None


def report_outcomes(
    schema: str, requests: Sequence[ReportRequest]
) -> Program[list[Reported | PharoxError]]:
    """Report outcomes, several of one pair one after the other."""
    outcomes: dict[int, Reported | PharoxError] = {}
    for places in report_rounds(requests):
        asked = [requests[place] for place in places]
        rows = yield Query(_report_statement(schema), _values(asked))
        for place, request, row in zip(places, asked, rows, strict=True):
            outcomes[place] = _outcome(request, _Answer(*row))
    return [outcomes[place] for place in range(len(requests))]


def set_cool_down(schema: str, request: CoolDownRequest) -> Program[datetime | None]:
    """Have a proxy rest for a target, or end that. Return until when it rests."""
    if request.seconds is not None:
        rows = yield Query(_placeholders_statement(schema), {"proxy_id": request.proxy_id})
        if any(SESSION in (row["placeholders"] or "") for row in rows):
            raise rests_no_gateway(request.proxy_id)
    actor, correlation_id = current_attribution()
    values = {
        "actor": actor,
        "correlation_id": correlation_id,
        "proxy_id": request.proxy_id,
        "target": request.target,
        "seconds": request.seconds,
        "reason": request.reason,
    }
    rows = yield Query(_cool_down_statement(schema), values)
    for (until,) in rows:
        return in_utc(until)
    raise ProxyNotFoundError(f"Proxy {request.proxy_id} not found.", proxy_id=request.proxy_id)


def in_utc(moment: datetime | None) -> datetime | None:
    """Return a moment of the database in UTC."""
    return moment and moment.astimezone(UTC)


def _values(asked: Sequence[ReportRequest]) -> dict[str, Any]:
    actor, correlation_id = current_attribution()
    outcomes = [request.outcome for request in asked]
    return {
        "actor": actor,
        "correlation_id": correlation_id,
        "asked_ids": [request.lease.id for request in asked],
        "targets": [request.target for request in asked],
        "outcomes": [outcome.kind.value for outcome in outcomes],
        "counts": [outcome.count for outcome in outcomes],
        "statuses": [outcome.status for outcome in outcomes],
        "asked_seconds": [outcome.retry_after_seconds for outcome in outcomes],
        "details": [_details(outcome) for outcome in outcomes],
    }


def _details(outcome: Outcome) -> str:
    """Return what the event says of an outcome, beside the record of the pair."""
    known = outcome.model_dump(mode="json", exclude_none=True, exclude={"kind", "target"})
    return json.dumps({"outcome": outcome.kind.value, **known})


def _outcome(request: ReportRequest, answer: _Answer) -> Reported | PharoxError:
    if not answer.is_known:
        return no_lease(request.lease.id)
    return Reported(answer.target, in_utc(answer.cools_until), answer.streak or 0)


@lru_cache(maxsize=8)
def _report_statement(schema: str) -> Statement:
    statement = call_of(schema, "report_outcomes_v1", _REPORTS)
    return statement._replace(columns=_Answer._fields, writes=True, is_bare=True)


@by_schema
def _placeholders_statement() -> sa.Select[Any]:
    """Query what is filled in a proxy's credentials."""
    return sa.select(proxies.c.placeholders).where(proxies.c.id == PROXY_ID)


@lru_cache(maxsize=8)
def _cool_down_statement(schema: str) -> Statement:
    statement = call_of(schema, "set_cool_down_v1", _COOL_DOWN)
    return statement._replace(columns=("cools_until",), writes=True, is_bare=True)
