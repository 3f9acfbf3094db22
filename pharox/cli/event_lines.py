"""Format an event as one line: when, what, its subject, and the attributes that matter.

Words are ``name=value``, quoted where they have spaces, so lines can be searched
and cut. All fields of an event are in its JSON.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

from ..events import (
    AcquireMissed,
    Event,
    HealthChecked,
    LeaseAcquired,
    LeaseEnd,
    PoolChanged,
    PoolRegistered,
    ProxiesChecked,
    ProxyChanged,
    ProxyRegistered,
    held,
    named_pool,
)
from ..models import GatewayExit, PoolMissed, SourceCounts
from ..models.ids import NIL
from ..models.text import escape_unprintable, url_of
from .showing import in_utc

_ASKED = ("selector", "filters", "predicate")
_PRICES = ("cost_per_gb", "cost_per_lease")
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
    "limits",
    *_PRICES,
    "reported_failures",
    "rotation",
)
_DESCRIBED = ("country", "city", "isp", "source")
_ATTRIBUTES = {
    "PoolRegistered": _POOL,
    "PoolChanged": _POOL,
    "ConsumerRegistered": ("consumer_id",),
    "ProxyRegistered": (*_DESCRIBED, *_PRICES, "placeholders", "weight"),
    "ProxyChanged": (
        *_DESCRIBED,
        *_PRICES,
        "placeholders",
        "weight",
        "reason",
        "drains",
        "until",
        "returns_to",
    ),
    "LeaseAcquired": (
        "expires_at",
        "target",
        "session",
        "exit",
        "limited",
        "paced_seconds",
        "fallback_from",
        "cost",
        *_ASKED,
    ),
    "LeaseRenewed": ("expires_at", "reason"),
    "LeaseReleased": ("reason", "rests_until"),
    "LeaseExpired": ("rests_until",),
    "LeaseRevoked": ("reason", "rests_until"),
    "LeasesPruned": ("ended_before",),
    "AcquireMissed": (
        "reason",
        "limit",
        "retry_after_seconds",
        "target",
        "session",
        "session_proxy_id",
        "fallback",
        *_ASKED,
    ),
    "OutcomeReported": (
        "outcome",
        "target",
        "count",
        "status",
        "retry_after_seconds",
        "bytes",
        "cost",
        "note",
        "cools_until",
    ),
    "CoolDownSet": ("target", "cools_until", "reason"),
    "TargetTroubled": ("target", "proxies", "failed"),
    "TargetRecovered": ("target",),
    "TargetRulesSet": ("target", "rules"),
    "PoolPlaced": ("ledger", "ledger_before"),
    "PoolMoveBegan": ("ledger", "move_id"),
    "PoolStateCarried": ("ledger", "read_model", "arrived"),
    "PoolDeparted": ("ledger", "last_seq", "root", "last_position", "move_id"),
    "PoolArrived": ("ledger", "last_seq", "root", "last_position", "move_id"),
    "PoolMoved": ("ledger", "last_seq", "root", "last_position", "move_id"),
    "PoolMoveCancelled": ("ledger", "move_id"),
    "SourceSaved": ("source", "host", "every_seconds", "max_removed", "enabled", "options"),
    "SourceRemoved": ("source",),
    "SourceRefreshed": ("source", "counts", "reasons"),
    "SourceFailed": ("source", "reason"),
    "ApiTokenIssued": ("token_id", "rights", "pools", "token_expires_at"),
    "ApiTokenWithdrawn": ("token_id",),
    "ActionTaken": ("action", "subject", "reason"),
    "SessionBound": (
        "key",
        "expires_at",
        "target",
        "exit",
        "replaced",
        "because",
        "inherited_from",
    ),
    "ExitRotated": ("session_before", "session_after", "session"),
    "RotationBegan": ("because", "calls_at", "ends_at", "rests_until"),
    "RotationCalled": ("because", "claimed_until"),
    "RotationAnswered": ("failure", "status", "exit_ip", "calls_at", "ends_at", "rests_until"),
    "SessionForgotten": ("key", "inherited_by"),
    "CursorMoved": ("selector",),
    "HealthChecked": ("latency_ms", "status_code", "exit_ip", "failure", "error", "lease_ids"),
}
_PLAIN = re.compile(r"[^\s\"=]+")


class PoolNames:
    """The names of pools, by id and by the place in the log.

    Parameters
    ----------
    names:
        The names that pools had at first, or have now, by their ids.
    namings:
        The events of the log that name a pool, in order.
    """

    def __init__(self, names: Mapping[UUID, str], namings: Iterable[Event] = ()) -> None:
        self._others = names
        self._named: dict[UUID, list[tuple[int, str]]] = {}
        for event in namings:
            self._take(event)

    def of(self, event: Event) -> str:
        """Return the name of an event's pool then, or its id, or "" for an event without a pool."""
        name = named_pool(event)
        if event.pool_id == NIL:
            return name or ""
        self._take(event)
        if name is not None:
            return name
        named = self._named.get(event.pool_id, [])
        place = bisect_right(named, event.seq, key=itemgetter(0))
        if place:
            return named[place - 1][1]
        return self._others.get(event.pool_id, str(event.pool_id))

    def _take(self, event: Event) -> None:
        if isinstance(event, PoolRegistered | PoolChanged):
            named = self._named.setdefault(event.pool_id, [])
            if not named or named[-1][0] < event.seq:
                named.append((event.seq, event.name))


def line_of(event: Event, pool: str) -> str:
    """Return the line of an event in the pool of this name."""
    words: list[tuple[str, Any]] = [
        ("pool", pool),
        ("proxy", event.proxy_id),
        ("consumer", event.consumer),
        ("lease", event.lease_id),
        *_attributes(event),
        ("actor", event.actor),
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
    if isinstance(event, ProxyChanged) and event.stays_banned:
        yield "status", event.after.status
        yield "until", None if event.until else "never"
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
    if isinstance(value, PoolMissed):
        value = f"{value.pool_name}:{value.reason.value}"
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
    if isinstance(value, GatewayExit):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, SourceCounts):
        value = value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        return escape_unprintable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    text = str(value)
    return escape_unprintable(
        text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
    )
