"""Format an event as one line: when, what, its subject, and the attributes that matter.

Words are ``name=value``, quoted where they have spaces, so lines can be searched
and cut. All fields of an event are in its JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from typing import Any

from ..events import (
    AcquireMissed,
    Event,
    HealthChecked,
    LeaseAcquired,
    LeaseEnd,
    ProxiesChecked,
    ProxyChanged,
    ProxyRegistered,
    held,
    named_pool,
)
from ..models import ProxyPool
from ..models.ids import NIL
from ..models.text import escape_unprintable, url_of
from .showing import in_utc

_ASKED = ("selector", "filters", "predicate")
_POOL = (
    "description",
    "lease_slow",
    "rest_after_release_seconds",
    "rest_after_expiry_seconds",
    "max_held_seconds",
    "cool_down",
    "selector",
    "lease_seconds",
    "max_concurrency",
)
_ATTRIBUTES = {
    "PoolRegistered": _POOL,
    "PoolChanged": _POOL,
    "ConsumerRegistered": ("consumer_id",),
    "ProxyRegistered": ("country", "city", "isp", "source"),
    "ProxyChanged": ("country", "city", "isp", "source", "reason", "drains", "until", "returns_to"),
    "LeaseAcquired": ("expires_at", "target", "session", *_ASKED),
    "LeaseRenewed": ("expires_at", "reason"),
    "LeaseReleased": ("reason", "rests_until"),
    "LeaseExpired": ("rests_until",),
    "LeaseRevoked": ("reason", "rests_until"),
    "LeasesPruned": ("ended_before",),
    "AcquireMissed": ("reason", "target", "session", "session_proxy_id", *_ASKED),
    "OutcomeReported": (
        "outcome",
        "target",
        "count",
        "status",
        "retry_after_seconds",
        "bytes",
        "note",
        "cools_until",
    ),
    "CoolDownSet": ("target", "cools_until", "reason"),
    "TargetTroubled": ("target", "proxies", "failed"),
    "TargetRecovered": ("target",),
    "SessionBound": ("key", "expires_at", "target", "replaced", "because", "inherited_from"),
    "SessionForgotten": ("key", "inherited_by"),
    "CursorMoved": ("selector",),
    "HealthChecked": ("latency_ms", "status_code", "exit_ip", "failure", "error", "lease_ids"),
}
_PLAIN = re.compile(r"[^\s\"=]+")


class PoolNames:
    """The names of pools by id, from the ledger and from the events seen so far."""

    def __init__(self, pools: Iterable[ProxyPool]) -> None:
        self._names = {pool.id: pool.name for pool in pools}

    def of(self, event: Event) -> str:
        """Return the name of an event's pool, or its id, or "" for an event without a pool."""
        name = named_pool(event)
        if event.pool_id == NIL:
            return name or ""
        if name is not None:
            self._names[event.pool_id] = name
        return self._names.get(event.pool_id, str(event.pool_id))


def line_of(event: Event, pool: str) -> str:
    """Return the line of an event in the pool of this name."""
    words: list[tuple[str, Any]] = [
        ("pool", pool),
        ("proxy", event.proxy_id),
        ("consumer", event.consumer),
        ("lease", event.lease_id),
        *_attributes(event),
        ("job", event.correlation_id),
    ]
    description = [
        f"{name}={_word(value)}" for name, value in words if value not in (None, "", False, ())
    ]
    return " ".join((str(event.seq), in_utc(event.recorded_at), event.type, *description))


def _attributes(event: Event) -> Iterator[tuple[str, Any]]:
    if isinstance(event, ProxyRegistered | ProxyChanged):
        yield "address", url_of(event.protocol, event.host, event.port)
    before, after = getattr(event, "before", None), getattr(event, "after", None)
    if after is not None and before is None:
        yield from (("status", after.status), ("max_concurrency", after.max_concurrency))
    if after is not None and before is not None:
        for field in fields(before):
            was, becomes = getattr(before, field.name), getattr(after, field.name)
            if was != becomes:
                yield field.name, f"{_word(was)}->{_word(becomes)}"
    if isinstance(event, LeaseAcquired | AcquireMissed) and event.waited_ms is not None:
        yield "waited", f"{event.waited_ms / 1000:.3f}s"
    if isinstance(event, LeaseEnd):
        yield "held", f"{held(event).total_seconds():.3f}s"
    for name in _ATTRIBUTES.get(event.type, ()):
        yield name, getattr(event, name)
    if isinstance(event, ProxiesChecked):
        yield "proxies", len(event.proxy_ids)
    if isinstance(event, HealthChecked) and not event.applied:
        yield "applied", "no"


def _word(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return in_utc(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
    if isinstance(value, dict):
        return escape_unprintable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    text = str(value)
    return escape_unprintable(
        text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
    )
