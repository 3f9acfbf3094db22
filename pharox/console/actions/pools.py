"""Change the policy of a pool: the fields that fit into a form.

What has parts of its own (paces, prices, budgets) is changed by ``pharox pools set``.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from ...errors import ConflictError
from ...models import CoolDown, PoolLimits, ProxyPool, SelectorStrategy
from ..access import Action
from .shapes import Deed, Field, Subject, Values, number_in, whole_in

_SECONDS = {
    "lease_seconds": "A lease lasts, in seconds",
    "max_held_seconds": "Renewed for at most, in seconds",
    "rest_after_release_seconds": "A proxy rests after a release, in seconds",
    "rest_after_expiry_seconds": "A proxy rests after an expiry, in seconds",
}
_LIMITS = {
    "leases_per_consumer": "Leases at once for a consumer",
    "leases_per_target": "Leases at once for a target",
}
_COOL_DOWN = {
    "base_seconds": "A refused proxy rests for the target, in seconds",
    "max_seconds": "And at most, in seconds",
}


def _shown(value: float | None) -> str:
    """Return a number as somebody would write it, and exactly."""
    return "" if value is None else str(value).removesuffix(".0")


def _seen(pool: ProxyPool) -> str:
    """Return what tells whether a pool is as it was when a form was shown."""
    return sha256(pool.model_dump_json().encode()).hexdigest()[:16]


def _find(storage: Any, name: str) -> Subject:
    pool: ProxyPool = storage.get_pool(name)
    rule = pool.cool_down or CoolDown()
    limits = pool.limits or PoolLimits()
    any_selector = ("", "As each caller says")
    fields = [
        Field("description", "Description", value=pool.description or ""),
        Field(
            "selector",
            "Proxies are chosen by",
            "choice",
            pool.selector or "",
            choices=[any_selector, *((each.value, each.value) for each in SelectorStrategy)],
        ),
        *(
            Field(field, label, "number", _shown(getattr(pool, field)), "Empty: no such rule.")
            for field, label in _SECONDS.items()
        ),
        *(
            Field(field, label, "number", _shown(getattr(limits, field)), "Empty: any number.")
            for field, label in _LIMITS.items()
        ),
        *(
            Field(field, label, "number", _shown(getattr(rule, field)))
            for field, label in _COOL_DOWN.items()
        ),
        Field("lease_slow", "Lease SLOW proxies too, after all others", "box", _box(pool)),
        Field("seen", "", "hidden", _seen(pool)),
    ]
    return Subject(pool.name, (), fields, "pool", {"pool": pool.id})


def _box(pool: ProxyPool) -> str:
    return "yes" if pool.lease_slow else ""


def _change(storage: Any, name: str, values: Values, reason: str) -> str:
    pool: ProxyPool = storage.get_pool(name)
    if values.get("seen") != _seen(pool):
        raise ConflictError("somebody else changed the pool meanwhile: look at it again", name=name)
    wanted = ProxyPool(**{**pool.model_dump(), **_wanted(pool, values)})
    if wanted == pool:
        return "Nothing differs, so nothing was changed."
    storage.record_action(Action.CHANGE_POOL.value, pool.name, reason, pool_id=pool.id)
    storage.save_pool(wanted)
    return "The pool was changed. What is leased already stays as it is."


def _wanted(pool: ProxyPool, values: Values) -> dict[str, Any]:
    """Return the fields of a pool as a form has them."""
    rule = {
        field: found
        for field, label in _COOL_DOWN.items()
        if (found := number_in(values, field, label)) is not None
    }
    limits = {field: whole_in(values, field, label) for field, label in _LIMITS.items()}
    known = (pool.limits or PoolLimits()).model_dump()
    bounds = PoolLimits(**{**known, **limits})
    cool_down = CoolDown(**{**(pool.cool_down or CoolDown()).model_dump(), **rule})
    return {
        "description": values.get("description", "").strip() or None,
        "selector": values.get("selector") or None,
        "lease_slow": "lease_slow" in values,
        "limits": None if bounds == PoolLimits() else bounds,
        "cool_down": pool.cool_down if cool_down == (pool.cool_down or CoolDown()) else cool_down,
        **{field: number_in(values, field, label) for field, label in _SECONDS.items()},
    }


DEEDS = (
    Deed(
        Action.CHANGE_POOL,
        "Change a pool",
        "From now on. What is leased already, and proxies that are there, stay as they are.",
        _find,
        _change,
    ),
)
