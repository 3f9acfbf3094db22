"""Which limit a request has reached: the event of its miss says it, or it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from pharox.log import events

from ...models import LimitReached, MissReason
from .batch import Answer
from .driver import Program
from .sql import Query, Statement, by_schema, parameter, quoted

GIVEN = (
    "availability.proxy_id IN "
    "(SELECT id::uuid FROM jsonb_array_elements_text($5 -> 0) AS given (id))"
)
"""The condition that a proxy is one of those that are given."""


def with_limits(schema: str, answers: list[Answer]) -> Program[list[Answer]]:
    """Return answers, those of misses by a limit with the limit.

    A miss of several pools says it of each of them.
    """
    missed = [each for each in answers if each.outcome == "AcquireMissed"]
    if not missed or not any(each.reason == MissReason.LIMIT_REACHED for each in answers):
        return answers
    positions = [each.fencing_token for each in missed]
    rows = yield Query(_misses_statement(schema), {"positions": positions})
    known: dict[Any, dict[str, Any]] = {}
    for row in rows:
        known[row["position"]] = known[row["pool_id"]] = row["data"]
        known |= {UUID(other["pool_id"]): other for other in row["data"].get("fallback", ())}
    return [_with_limit(each, known) for each in answers]


def _with_limit(answer: Answer, known: dict[Any, dict[str, Any]]) -> Answer:
    """Return an answer with its limit, by the position of its event, or by its pool if passed."""
    if answer.reason != MissReason.LIMIT_REACHED:
        return answer
    of_miss = answer.outcome == "AcquireMissed"
    data = known.get(answer.fencing_token if of_miss else answer.pool_id, {})
    limit = data.get("limit")
    return answer._replace(
        limit=None if limit is None else LimitReached.model_validate(limit),
        retry_after_seconds=data.get("retry_after_seconds"),
    )


@by_schema
def _misses_statement() -> sa.Select[Any]:
    """Query what some misses say."""
    return sa.select(events.c.position, events.c.pool_id, events.c.data).where(
        events.c.position == sa.func.any(parameter("positions", ARRAY(sa.BigInteger)))
    )


def reached(
    schema: str,
    pool_name: str,
    consumer: str,
    target: str | None = None,
    needed: int = 1,
    *,
    proxy_ids: Iterable[UUID],
) -> Program[dict[str, Any]]:
    """Return the limit that a request has reached, as an outcome has it; empty if it has none.

    Of proxies, it is a limit of one of ``proxy_ids``.
    """
    ids = json.dumps([[str(each) for each in proxy_ids]])
    values = {
        "name": pool_name,
        "consumer": consumer,
        "target": target,
        "needed": needed,
        "condition": GIVEN,
        "arguments": ids,
    }
    rows = yield Query(_reached_statement(schema), values)
    if not rows or rows[0]["reached"] is None:
        return {}
    return {
        "limit": LimitReached.model_validate(rows[0]["reached"]),
        "retry_after_seconds": rows[0]["seconds"],
    }


@lru_cache(maxsize=8)
def _reached_statement(schema: str) -> Statement:
    own = quoted(schema)
    text = f"""
        SELECT found.reached, extract(epoch FROM found.frees_at - {own}.clock())::double precision
        FROM {own}.pools AS pool
        JOIN {own}.consumers AS asking ON asking.name = $1::text,
        LATERAL {own}.reached_limit_v1(
            pool.id, asking.id, $2::text, $3::integer, true, $5::text, $6::jsonb, {own}.clock()
        ) AS found
        WHERE pool.name = $4::text AND pool.limits IS NOT NULL
    """  # noqa: S608 - quoted
    names = ("consumer", "target", "needed", "name", "condition", "arguments")
    return Statement(text.encode(), names, {}, ("reached", "seconds"))
