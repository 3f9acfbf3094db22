"""pharox: an event-sourced lease ledger for proxy pools.

Every acquisition, miss, release, expiry and health result is an immutable event
in a log; a pool's current state is folded from it. Start with :func:`connect`
(PostgreSQL) or :class:`InMemoryStorage`, and put a :class:`ProxyManager` on top.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_helpers import acquire_proxy_async as acquire_proxy_async
    from .async_helpers import acquire_proxy_with_retry_async as acquire_proxy_with_retry_async
    from .async_helpers import release_proxy_async as release_proxy_async
    from .async_helpers import with_lease_async as with_lease_async
    from .async_helpers import with_retrying_lease_async as with_retrying_lease_async
    from .connecting import connect as connect
    from .connecting import connect_async as connect_async
    from .connecting.bootstrap import bootstrap_consumer as bootstrap_consumer
    from .connecting.bootstrap import bootstrap_consumer_async as bootstrap_consumer_async
    from .connecting.bootstrap import bootstrap_pool as bootstrap_pool
    from .connecting.bootstrap import bootstrap_pool_async as bootstrap_pool_async
    from .connecting.bootstrap import bootstrap_proxy as bootstrap_proxy
    from .connecting.bootstrap import bootstrap_proxy_async as bootstrap_proxy_async
    from .errors import AnswerTimeoutError as AnswerTimeoutError
    from .errors import ConflictError as ConflictError
    from .errors import ConsumerNotFoundError as ConsumerNotFoundError
    from .errors import DatabaseError as DatabaseError
    from .errors import DatabaseUnavailableError as DatabaseUnavailableError
    from .errors import DirectoryUnavailableError as DirectoryUnavailableError
    from .errors import InvalidInputError as InvalidInputError
    from .errors import InvalidLeaseError as InvalidLeaseError
    from .errors import LeaseBusyError as LeaseBusyError
    from .errors import LeaseEndedError as LeaseEndedError
    from .errors import LeaseLostError as LeaseLostError
    from .errors import MoveTimeoutError as MoveTimeoutError
    from .errors import OutcomeUnknownError as OutcomeUnknownError
    from .errors import OutOfResourcesError as OutOfResourcesError
    from .errors import PharoxError as PharoxError
    from .errors import PoolMovedError as PoolMovedError
    from .errors import PoolNotFoundError as PoolNotFoundError
    from .errors import ProxyNotFoundError as ProxyNotFoundError
    from .errors import ProxyUnavailableError as ProxyUnavailableError
    from .errors import QueueFullError as QueueFullError
    from .errors import ReadOnlyDatabaseError as ReadOnlyDatabaseError
    from .errors import SchemaError as SchemaError
    from .errors import SecretKeyError as SecretKeyError
    from .errors import SubscriptionNotFoundError as SubscriptionNotFoundError
    from .events.attribution import attributed as attributed
    from .fleet import AsyncFleet as AsyncFleet
    from .fleet import Fleet as Fleet
    from .health import AcquisitionRate as AcquisitionRate
    from .health import HealthChecker as HealthChecker
    from .health import HealthCheckOrchestrator as HealthCheckOrchestrator
    from .health import HealthCheckStrategy as HealthCheckStrategy
    from .health import HTTPHealthCheckStrategy as HTTPHealthCheckStrategy
    from .health import SweepSummary as SweepSummary
    from .ledger.subscriptions import Delivery as Delivery
    from .ledger.subscriptions import Subscription as Subscription
    from .manager import AsyncProxyManager as AsyncProxyManager
    from .manager import ProxyManager as ProxyManager
    from .manager.clients import AsyncLeasedClient as AsyncLeasedClient
    from .manager.clients import LeasedClient as LeasedClient
    from .manager.options import LeaseOptions as LeaseOptions
    from .manager.options import OnLost as OnLost
    from .manager.options import PoolOptions as PoolOptions
    from .manager.pool_handle import AsyncPoolHandle as AsyncPoolHandle
    from .manager.pool_handle import PoolHandle as PoolHandle
    from .models import AcquireEventPayload as AcquireEventPayload
    from .models import ApiRight as ApiRight
    from .models import ApiToken as ApiToken
    from .models import CallbackFailurePayload as CallbackFailurePayload
    from .models import CarriedBan as CarriedBan
    from .models import CheckFailure as CheckFailure
    from .models import Consumer as Consumer
    from .models import CoolDown as CoolDown
    from .models import DefaultSeconds as DefaultSeconds
    from .models import ExpireEventPayload as ExpireEventPayload
    from .models import GatewayExit as GatewayExit
    from .models import HealthCheckOptions as HealthCheckOptions
    from .models import HealthCheckResult as HealthCheckResult
    from .models import HealthEventPayload as HealthEventPayload
    from .models import HealthPolicy as HealthPolicy
    from .models import HeldLease as HeldLease
    from .models import KnownTargetRules as KnownTargetRules
    from .models import Lease as Lease
    from .models import LeasedProxy as LeasedProxy
    from .models import LeaseStatus as LeaseStatus
    from .models import LimitReached as LimitReached
    from .models import ListOptions as ListOptions
    from .models import LostEventPayload as LostEventPayload
    from .models import MissReason as MissReason
    from .models import MoveStage as MoveStage
    from .models import Outcome as Outcome
    from .models import OutcomeEventPayload as OutcomeEventPayload
    from .models import OutcomeKind as OutcomeKind
    from .models import Pace as Pace
    from .models import PoolLimits as PoolLimits
    from .models import PoolMissed as PoolMissed
    from .models import PoolMove as PoolMove
    from .models import PoolPlace as PoolPlace
    from .models import PoolStatsSnapshot as PoolStatsSnapshot
    from .models import Proxy as Proxy
    from .models import ProxyCredentials as ProxyCredentials
    from .models import ProxyFilters as ProxyFilters
    from .models import ProxyHealthRecord as ProxyHealthRecord
    from .models import ProxyPool as ProxyPool
    from .models import ProxyProtocol as ProxyProtocol
    from .models import ProxySource as ProxySource
    from .models import ProxyStatus as ProxyStatus
    from .models import QueueStats as QueueStats
    from .models import ReleaseEventPayload as ReleaseEventPayload
    from .models import RetryConfig as RetryConfig
    from .models import RevokeEventPayload as RevokeEventPayload
    from .models import RotationAnswer as RotationAnswer
    from .models import RotationFailure as RotationFailure
    from .models import RotationPolicy as RotationPolicy
    from .models import SelectorStrategy as SelectorStrategy
    from .models import SourceCounts as SourceCounts
    from .models import SourceState as SourceState
    from .models import SourceStatus as SourceStatus
    from .models import Sticky as Sticky
    from .models import StickyPolicy as StickyPolicy
    from .models import StickySession as StickySession
    from .models import TargetOutcomes as TargetOutcomes
    from .models import TargetRules as TargetRules
    from .models import TargetSummary as TargetSummary
    from .models import Usage as Usage
    from .models.ids import new_lease_id as new_lease_id
    from .observability import DEFAULT_LATENCY_BUCKETS as DEFAULT_LATENCY_BUCKETS
    from .observability import DEFAULT_QUANTILES as DEFAULT_QUANTILES
    from .observability import OpenTelemetryMetricsRecorder as OpenTelemetryMetricsRecorder
    from .observability import PrometheusMetricsRecorder as PrometheusMetricsRecorder
    from .observability import StructuredLogger as StructuredLogger
    from .observability import TracingRecorder as TracingRecorder
    from .observability import register_opentelemetry_metrics as register_opentelemetry_metrics
    from .observability import register_prometheus_metrics as register_prometheus_metrics
    from .observability import register_structured_logging as register_structured_logging
    from .observability import register_tracing as register_tracing
    from .outcomes import outcome_of_error as outcome_of_error
    from .storage.async_in_memory import AsyncInMemoryStorage as AsyncInMemoryStorage
    from .storage.async_interface import IAsyncStorage as IAsyncStorage
    from .storage.in_memory import InMemoryStorage as InMemoryStorage
    from .storage.interface import IStorage as IStorage
    from .storage.requests import HealthOutcome as HealthOutcome

_HOME = {
    ".async_helpers": (
        "acquire_proxy_async",
        "acquire_proxy_with_retry_async",
        "release_proxy_async",
        "with_lease_async",
        "with_retrying_lease_async",
    ),
    ".events.attribution": ("attributed",),
    ".connecting.bootstrap": (
        "bootstrap_consumer",
        "bootstrap_consumer_async",
        "bootstrap_pool",
        "bootstrap_pool_async",
        "bootstrap_proxy",
        "bootstrap_proxy_async",
    ),
    ".manager.clients": ("AsyncLeasedClient", "LeasedClient"),
    ".manager.options": ("LeaseOptions", "OnLost", "PoolOptions"),
    ".manager.pool_handle": ("AsyncPoolHandle", "PoolHandle"),
    ".connecting": ("connect", "connect_async"),
    ".errors": (
        "AnswerTimeoutError",
        "ConflictError",
        "ConsumerNotFoundError",
        "DatabaseError",
        "DatabaseUnavailableError",
        "DirectoryUnavailableError",
        "InvalidInputError",
        "InvalidLeaseError",
        "LeaseBusyError",
        "LeaseEndedError",
        "LeaseLostError",
        "MoveTimeoutError",
        "OutOfResourcesError",
        "OutcomeUnknownError",
        "PharoxError",
        "PoolMovedError",
        "PoolNotFoundError",
        "ProxyNotFoundError",
        "ProxyUnavailableError",
        "QueueFullError",
        "ReadOnlyDatabaseError",
        "SchemaError",
        "SecretKeyError",
        "SubscriptionNotFoundError",
    ),
    ".fleet": ("AsyncFleet", "Fleet"),
    ".health": (
        "AcquisitionRate",
        "HealthCheckOrchestrator",
        "HealthCheckStrategy",
        "HealthChecker",
        "HTTPHealthCheckStrategy",
        "SweepSummary",
    ),
    ".models.ids": ("new_lease_id",),
    ".ledger.subscriptions": ("Delivery", "Subscription"),
    ".manager": ("AsyncProxyManager", "ProxyManager"),
    ".models": (
        "AcquireEventPayload",
        "ApiRight",
        "ApiToken",
        "CallbackFailurePayload",
        "CarriedBan",
        "CheckFailure",
        "Consumer",
        "CoolDown",
        "DefaultSeconds",
        "ExpireEventPayload",
        "GatewayExit",
        "HealthCheckOptions",
        "HealthCheckResult",
        "HealthEventPayload",
        "HealthPolicy",
        "HeldLease",
        "KnownTargetRules",
        "Lease",
        "LeasedProxy",
        "LeaseStatus",
        "LimitReached",
        "ListOptions",
        "LostEventPayload",
        "MissReason",
        "MoveStage",
        "Outcome",
        "OutcomeEventPayload",
        "OutcomeKind",
        "Pace",
        "PoolLimits",
        "PoolMissed",
        "PoolPlace",
        "PoolMove",
        "PoolStatsSnapshot",
        "Proxy",
        "ProxyCredentials",
        "ProxyFilters",
        "ProxyHealthRecord",
        "ProxyPool",
        "ProxyProtocol",
        "ProxySource",
        "ProxyStatus",
        "QueueStats",
        "ReleaseEventPayload",
        "RetryConfig",
        "RevokeEventPayload",
        "RotationAnswer",
        "RotationFailure",
        "RotationPolicy",
        "SelectorStrategy",
        "SourceCounts",
        "SourceState",
        "SourceStatus",
        "Sticky",
        "StickyPolicy",
        "StickySession",
        "TargetOutcomes",
        "TargetRules",
        "TargetSummary",
        "Usage",
    ),
    ".observability": (
        "DEFAULT_LATENCY_BUCKETS",
        "DEFAULT_QUANTILES",
        "OpenTelemetryMetricsRecorder",
        "PrometheusMetricsRecorder",
        "StructuredLogger",
        "TracingRecorder",
        "register_opentelemetry_metrics",
        "register_prometheus_metrics",
        "register_structured_logging",
        "register_tracing",
    ),
    ".outcomes": ("outcome_of_error",),
    ".storage.async_in_memory": ("AsyncInMemoryStorage",),
    ".storage.async_interface": ("IAsyncStorage",),
    ".storage.in_memory": ("InMemoryStorage",),
    ".storage.interface": ("IStorage",),
    ".storage.requests": ("HealthOutcome",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 - a list, made of the table above


def __getattr__(name: str) -> object:
    """Import a public name on first access, so that ``import pharox`` stays fast."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
