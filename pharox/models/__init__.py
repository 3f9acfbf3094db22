"""Pydantic models of proxies, pools, leases and filters.

They have the names and defaults of pharox 0.11.0 and are validated on creation.
Datetimes need a time zone and are converted to UTC, texts must fit every storage, and
passwords are secrets. ``docs/switching.md`` lists the differences from 0.11.0.
"""

from .filters import MAX_FILTER_DEPTH, MAX_FILTERS, ProxyFilters, check_filters, qualified_name
from .health import (
    CheckFailure,
    HealthCheckOptions,
    HealthCheckResult,
    HealthPolicy,
    ProxyHealthRecord,
)
from .lease import Consumer, Lease, LeaseStatus, MissReason, RetryConfig, SelectorStrategy
from .payloads import (
    AcquireEventPayload,
    CallbackFailurePayload,
    ExpireEventPayload,
    HealthEventPayload,
    LostEventPayload,
    PoolStatsSnapshot,
    ReleaseEventPayload,
)
from .proxy import (
    LEASABLE,
    PROTOCOL_ALIASES,
    Proxy,
    ProxyCredentials,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
)
from .validation import (
    MAX_DURATION_S,
    MAX_NAME_LENGTH,
    MAX_TEXT_LENGTH,
    Asn,
    Latitude,
    Longitude,
    MaxConcurrency,
    Name,
    Text,
    UtcDatetime,
    check_aware,
    check_duration,
    check_name,
    check_pause,
    check_text,
    check_whole,
    utc_now,
)

__all__ = [
    "LEASABLE",
    "MAX_DURATION_S",
    "MAX_FILTERS",
    "MAX_FILTER_DEPTH",
    "MAX_NAME_LENGTH",
    "MAX_TEXT_LENGTH",
    "PROTOCOL_ALIASES",
    "AcquireEventPayload",
    "Asn",
    "CallbackFailurePayload",
    "CheckFailure",
    "Consumer",
    "ExpireEventPayload",
    "HealthCheckOptions",
    "HealthCheckResult",
    "HealthEventPayload",
    "HealthPolicy",
    "Latitude",
    "Lease",
    "LeaseStatus",
    "Longitude",
    "LostEventPayload",
    "MaxConcurrency",
    "MissReason",
    "Name",
    "PoolStatsSnapshot",
    "Proxy",
    "ProxyCredentials",
    "ProxyFilters",
    "ProxyHealthRecord",
    "ProxyPool",
    "ProxyProtocol",
    "ProxyStatus",
    "ReleaseEventPayload",
    "RetryConfig",
    "SelectorStrategy",
    "Text",
    "UtcDatetime",
    "check_aware",
    "check_duration",
    "check_filters",
    "check_name",
    "check_pause",
    "check_text",
    "check_whole",
    "qualified_name",
    "utc_now",
]
