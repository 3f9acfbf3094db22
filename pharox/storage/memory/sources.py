"""Sources: save and list them, claim one to refresh it, and record what was found."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from projections import SourceRow

from ...errors import PoolNotFoundError
from ...events import SourceFailed, SourceRefreshed, SourceRemoved, SourceSaved
from ...models import (
    MAX_SOURCES,
    ListOptions,
    ProxySource,
    SourceCounts,
    SourceStatus,
)
from ..sources import (
    RefreshResult,
    SourceClaim,
    check_same_pool,
    data_of,
    event_to_tell,
    source_unknown,
    too_many_sources,
)
from .source_turns import SourceTurn
from .state import State

_TOLD: dict[str, type[SourceRefreshed | SourceFailed]] = {
    "SourceRefreshed": SourceRefreshed,
    "SourceFailed": SourceFailed,
}


def save(state: State, source: ProxySource) -> bool:
    """Add a source or change its settings. Return whether that is a change."""
    pool_id = state.pool_ids.get(source.pool_name)
    if pool_id is None:
        raise PoolNotFoundError(f"Pool {source.pool_name!r} not found.", pool_name=source.pool_name)
    row = _row(state, source.name)
    if row is None and len(state.rows["sources"]) >= MAX_SOURCES:
        raise too_many_sources(source.name)
    source_id = uuid4() if row is None else row.id
    secret_id = uuid4() if row is None else row.secret_id
    if row is not None:
        check_same_pool(source, state.pool_name(row.pool_id))
        known = state.source_secrets[row.id]
        if known == source:
            return False
        if (known.url, known.headers) != (source.url, source.headers):
            secret_id = uuid4()
    state.append(
        SourceSaved,
        pool_id=pool_id,
        pool_name=source.pool_name,
        source_id=source_id,
        secret_id=secret_id,
        **source.facts(),
    )
    state.source_secrets[source_id] = source
    return True


def get(state: State, name: str) -> ProxySource:
    """Return the settings of a source."""
    return state.source_secrets[_known_row(state, name).id]


def remove(state: State, name: str) -> bool:
    """Remove a source. Return whether there was one."""
    row = _row(state, name)
    if row is None:
        return False
    state.append(
        SourceRemoved,
        pool_id=row.pool_id,
        pool_name=state.pool_name(row.pool_id),
        source=name,
        source_id=row.id,
    )
    state.source_secrets.pop(row.id, None)
    state.source_turns.pop(row.id, None)
    return True


def listed(state: State, pool_name: str | None) -> list[SourceStatus]:
    """Return all sources, or those of a pool, by name."""
    every = (_status(state, row) for row in state.rows["sources"].values())
    found = [each for each in every if pool_name in (None, each.pool_name)]
    return sorted(found, key=lambda each: each.name)


def claim(state: State, name: str, for_seconds: float, *, only_due: bool) -> SourceClaim | None:
    """Claim a source to refresh it; None if another has it, or it is not due."""
    row, now = _known_row(state, name), state.clock()
    turn = state.source_turns.setdefault(row.id, SourceTurn())
    status = _status(state, row)
    if turn.held_until is not None and turn.held_until > now:
        return None
    if only_due and not status.is_due:
        return None
    turn.holder, turn.held_until = uuid4(), now + timedelta(seconds=for_seconds)
    owning = sum(not drains for _, drains in owned(state, row.pool_id, name))
    is_known = turn.secret_id == row.secret_id and turn.owned == owning
    return SourceClaim(
        state.source_secrets[row.id],
        status,
        row.secret_id,
        turn.holder,
        now,
        owning,
        turn.validators if is_known and any(turn.validators) else None,
    )


def hold(state: State, claim: SourceClaim, for_seconds: float) -> bool:
    """Extend a claim. Return False if it was lost."""
    turn = _held(state, claim)
    if turn is not None:
        turn.held_until = state.clock() + timedelta(seconds=for_seconds)
    return turn is not None


def finish(state: State, claim: SourceClaim, result: RefreshResult | None) -> bool:
    """Record a refresh and give the claim back. Return False if the claim was lost."""
    turn = _held(state, claim)
    if turn is None:
        return False
    turn.holder = turn.held_until = None
    if result is None:
        return True
    told = event_to_tell(claim.status, result, claim.claimed_at)
    if told is not None and (claim.status.id,) in state.rows["sources"]:
        type_, data = told
        place = {"pool_id": claim.status.pool_id, "pool_name": claim.status.pool_name}
        fields: dict[str, Any] = {**place, **data_of(claim.status, data)}
        state.append(_TOLD[type_], **fields)
    turn.checked_at = state.clock()
    if result.failure is None:
        turn.succeeded_at, turn.failures = turn.checked_at, 0
        turn.secret_id, turn.owned = claim.secret_id, result.owned
        turn.validators = result.validators
    else:
        turn.failures += 1
        turn.secret_id = turn.owned = None
    return True


def owned(state: State, pool_id: UUID, source: str) -> list[tuple[UUID, bool]]:
    """Return the ids of a source's proxies, each with whether it drains."""
    members = sorted(state.pools[pool_id].members) if pool_id in state.pools else []
    return [
        (each, bool(state.availability(pool_id, each).drains))
        for each in members
        if state.proxy_row(each).source == source
    ]


def _held(state: State, claim: SourceClaim) -> SourceTurn | None:
    turn = state.source_turns.get(claim.status.id)
    return turn if turn is not None and turn.holder == claim.holder else None


def _row(state: State, name: str) -> SourceRow | None:
    rows: list[SourceRow] = list(state.rows["sources"].values())
    return next((row for row in rows if row.name == name), None)


def _known_row(state: State, name: str) -> SourceRow:
    row = _row(state, name)
    if row is None:
        raise source_unknown(name)
    return row


def _status(state: State, row: SourceRow) -> SourceStatus:
    turn = state.source_turns.get(row.id, SourceTurn())
    same: tuple[str, ...] = ("id", "name", "pool_id", "host", "every_seconds", "max_removed")
    same += ("enabled", "saved_at", "refreshed_at", "failed_at", "failure")
    fields: dict[str, Any] = {name: getattr(row, name) for name in same}
    return SourceStatus(
        **fields,
        pool_name=state.pool_name(row.pool_id),
        options=ListOptions(**row.options),
        counts=row.counts and SourceCounts(**row.counts),
        checked_at=turn.checked_at,
        succeeded_at=turn.succeeded_at,
        failures=turn.failures,
    ).due_by(state.clock())
