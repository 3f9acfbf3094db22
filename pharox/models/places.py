"""Which ledger of a fleet a pool is in, as the directory in the home ledger says it."""

from __future__ import annotations

from pydantic import ConfigDict

from .model import Model
from .validation import UtcDatetime


class PoolPlace(Model):
    """The ledger that a pool was placed in, by the name that the fleet's settings give it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_name: str
    ledger: str
    placed_at: UtcDatetime
