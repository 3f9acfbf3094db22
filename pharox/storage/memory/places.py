"""The directory of a fleet: which ledger each pool is in."""

from __future__ import annotations

from collections.abc import Collection

from projections import PoolPlaceRow

from ...events import PoolPlaced
from ...models import PoolPlace
from ..places import PlaceRequest, already_placed
from .state import State


def place_pool(state: State, request: PlaceRequest) -> bool:
    """Record which ledger a pool is in. Return whether the directory had said something else."""
    row: PoolPlaceRow | None = state.rows["pool_places"].get((request.pool_name,))
    known = None if row is None else row.ledger
    if known == request.ledger:
        return False
    if known is not None and known != request.instead_of:
        raise already_placed(request.pool_name, known)
    state.append(
        PoolPlaced,
        pool_name=request.pool_name,
        ledger=request.ledger,
        ledger_before=known or request.instead_of,
    )
    return True


def list_places(state: State, pool_names: Collection[str] | None) -> list[PoolPlace]:
    """Return where pools are, ordered by name: the named ones, or all."""
    rows: dict[tuple[str], PoolPlaceRow] = state.rows["pool_places"]
    names = {name for (name,) in rows} if pool_names is None else {*pool_names}
    found = [rows[(name,)] for name in sorted(names) if (name,) in rows]
    return [
        PoolPlace(pool_name=row.pool_name, ledger=row.ledger, placed_at=row.placed_at)
        for row in found
    ]
