"""The console of a fleet: an overview of its ledgers, and the console of each under a path.

The application is the console of the home ledger, with ``/fleet`` beside its pages and the consoles
of all ledgers below ``/ledgers/NAME``. Whoever has signed in at its root has signed in to them all.
The overview needs no database to know who may see it, and names the ledgers that do not answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from ..fleet.merging import LedgerStatus, Merged
from ..models import PoolStatsSnapshot
from .access import Authorize
from .app import application
from .console import reader
from .rendering import render

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..fleet import Fleet


@dataclass(frozen=True, slots=True)
class FleetView:
    """What the overview of a fleet shows: its ledgers, and the pools of each."""

    ledgers: Sequence[LedgerStatus]
    pools: Mapping[str, Sequence[PoolStatsSnapshot]]


def data(fleet: Fleet) -> FleetView:
    """Return what the overview shows now."""
    return FleetView(fleet.status(), _by_ledger(fleet.stats()))


def fleet_application(
    fleet: Fleet, authorize: Authorize, answer_timeout_s: float, secret: str | bytes | None
) -> Starlette:
    """Return the application; see :func:`pharox.console.create_fleet_app`."""
    given: tuple[Any, ...] = (authorize, answer_timeout_s, secret or secrets.token_bytes(32))
    app = application(fleet.home.storage, *given)
    app.state.fleet, app.state.mounted_at = fleet, ""
    mounts: list[BaseRoute] = [Route("/fleet", page, name="fleet")]
    for name, ledger in fleet.ledgers.items():
        below = application(ledger.storage, *given)
        below.state.fleet, below.state.mounted_at = fleet, f"/ledgers/{name}"
        below.state.ledger = name
        mounts.append(Mount(f"/ledgers/{name}", below, name=f"ledger-{name}"))
    app.router.routes[:0] = mounts
    return app


async def page(request: Request) -> Response:
    """Answer with the overview."""
    console = await reader(request)
    view = await console.shared("fleet", data, request.app.state.fleet)
    return render(request, "fleet.html", view=view, root=request.scope.get("root_path", ""))


def _by_ledger(stats: Merged[PoolStatsSnapshot]) -> dict[str, list[PoolStatsSnapshot]]:
    found: dict[str, list[PoolStatsSnapshot]] = {}
    for ledger, each in stats:
        found.setdefault(ledger, []).append(each)
    return found
