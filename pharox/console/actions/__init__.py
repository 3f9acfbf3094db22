"""What the console can do: one table. Each action has a page that asks for a reason."""

from __future__ import annotations

from ..access import Action
from . import leases, ledger, pools, proxies
from .shapes import Deed, Field, Subject

__all__ = ["DEEDS", "Deed", "Field", "Subject"]

DEEDS: dict[Action, Deed] = {
    deed.action: deed for deed in (*proxies.DEEDS, *leases.DEEDS, *pools.DEEDS, *ledger.DEEDS)
}
