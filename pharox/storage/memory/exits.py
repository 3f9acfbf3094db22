"""Exits of gateways: the one that a lease of a template asks for, and another in its place.

It is what ``sql/0006/gateways.sql`` does.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from projections import LeaseRow, ProxyRow, SessionRow

from ...errors import LeaseEndedError
from ...events import ExitRotated
from ...models import GatewayExit, LeaseStatus, ProxyFilters, Sticky
from ...models.gateway import SESSION, exit_for_lease, next_session_id, wished_country
from ..requests import ending_of, no_lease
from ..validation import no_session_id
from .release import ACTIVE, lease_fields
from .state import State, lease_from_row


def exit_for(
    state: State,
    proxy: ProxyRow,
    lease_id: UUID,
    now: datetime,
    until: datetime,
    filters: ProxyFilters | None,
    sticky: Sticky | None,
) -> GatewayExit | None:
    """Return the exit that a new lease asks for, or None if the proxy is no template.

    It is asked for ``until`` the lease is over, or the binding of its key that is made with it.
    """
    if proxy.placeholders is None:
        return None
    wished = wished_country(filters)
    bound = None if sticky is None else living_binding(state, proxy.pool_id, sticky.key, now)
    if sticky is not None:
        is_here = bound is not None and bound.proxy_id == proxy.id
        if bound is not None and is_here and bound.exit is not None and fits(bound, wished):
            return GatewayExit(**bound.exit)
    country = wished or proxy.country
    return exit_for_lease(proxy.placeholders.split(), lease_id, country, until - now)


def fits(bound: SessionRow, wished: str | None) -> bool:
    """Return whether the exit of a session is one in the country that is wished for."""
    country = None if bound.exit is None else bound.exit.get("country")
    return wished is None or country in (None, wished)


def living_binding(state: State, pool_id: UUID, key: str, now: datetime) -> SessionRow | None:
    """Return the binding of a key, unless it is over."""
    row: SessionRow | None = state.rows["sessions"].get((pool_id, key))
    return row if row is not None and row.expires_at > now else None


def is_template_with_sessions(state: State, pool_id: UUID, proxy_id: UUID) -> bool:
    """Return whether each lease of a proxy can have an exit of its own."""
    row: ProxyRow | None = state.rows["proxies"].get((proxy_id, pool_id))
    return row is not None and SESSION in (row.placeholders or "")


def rotate(state: State, lease_id: UUID) -> GatewayExit:
    """Have a lease take another exit, and so the session that keeps its exit."""
    now = state.clock()
    pool_id = state.pool_of_lease.get(lease_id)
    row: LeaseRow | None = None
    if pool_id is not None:
        row = state.rows["leases"].get((lease_id, pool_id))
    if row is None:
        raise no_lease(lease_id)
    if row.status != ACTIVE or row.expires_at <= now:
        lease = lease_from_row(row)
        if row.status == ACTIVE:
            lease.status = LeaseStatus.EXPIRED
        raise LeaseEndedError(ending_of(lease), lease_id=lease_id)
    before: dict[str, Any] = row.exit or {}
    if SESSION not in before:
        raise no_session_id(lease_id)
    bound = _session_of(state, row, now)
    event = state.append(
        ExitRotated,
        now,
        **{name: x for name, x in lease_fields(row).items() if name != "acquired_at"},
        session_before=before[SESSION],
        session_after=next_session_id(before[SESSION], lease_id),
        session=bound and bound.key,
    )
    return GatewayExit(**{**before, SESSION: event.session_after})


def _session_of(state: State, row: LeaseRow, now: datetime) -> SessionRow | None:
    """Return the sticky session that keeps the exit of a lease, if one does."""
    mine = (row.exit or {}).get(SESSION)
    for bound in state.sessions.of(row.pool_id, row.proxy_id):
        if bound.expires_at > now and (bound.exit or {}).get(SESSION) == mine:
            return bound
    return None
