"""Health checks: whether a proxy works, how fast it is, and why it fails.

A :class:`HealthChecker` fetches a page through each proxy and returns a result. A
failing proxy is a result with a :class:`~pharox.models.CheckFailure`, never an
exception. A :class:`HealthCheckOrchestrator` records the results in the ledger.
"""

from .checker import HealthChecker
from .orchestrator import HealthCheckOrchestrator
from .pausing import AcquisitionRate
from .probing import HealthCheckStrategy, HTTPHealthCheckStrategy
from .summary import SweepSummary

__all__ = [
    "AcquisitionRate",
    "HTTPHealthCheckStrategy",
    "HealthCheckOrchestrator",
    "HealthCheckStrategy",
    "HealthChecker",
    "SweepSummary",
]
