"""Record a health check: appended always, applied only if it is the newest.

Newest is judged by ``checked_at`` against the proxy's last probe, under the
proxy's lock. A ban is a person's decision: no probe lifts it.
"""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import (
    Boolean,
    DateTime,
    Uuid,
    case,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from .appending import append, event_row, fold_into, json_object, state
from .reading import a
from .sql import POOL_ID, Statement, compiled, parameter, word


@lru_cache(maxsize=8)
def record_health_statement(schema: str) -> Statement:
    """Return the statement that records the check in ``details`` for one proxy.

    ``decides`` says whether its status becomes the proxy's.
    """
    checked_at = parameter("checked_at", DateTime(timezone=True))
    proxy = (
        select(a)
        .where(a.c.pool_id == POOL_ID, a.c.proxy_id == parameter("proxy_id", Uuid))
        .with_for_update()
        .cte("proxy")
    )
    newest = or_(proxy.c.probed_at.is_(None), proxy.c.probed_at < checked_at)
    decides = newest & parameter("decides", Boolean) & (proxy.c.status != word("banned"))
    after = case((decides, parameter("status")), else_=proxy.c.status)
    facts = json_object(
        before=state(proxy.c.status, proxy.c.current_leases, proxy.c.max_concurrency),
        after=state(after, proxy.c.current_leases, proxy.c.max_concurrency),
        applied=newest,
    )
    row = event_row(
        "HealthChecked",
        proxy_id=proxy.c.proxy_id,
        data=parameter("details", JSONB).concat(facts),
    )
    appended = append(select(*row).select_from(proxy))
    result = select(
        appended.c.data["applied"].astext.cast(Boolean).label("applied"),
        appended.c.data["after"]["status"].astext.label("status"),
    )
    return compiled(fold_into(result, appended, {"HealthChecked"}, at_most_one=True), schema)
