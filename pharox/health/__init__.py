"""Health checks: is a proxy there, how fast is it, and if not, why not.

A :class:`HealthChecker` fetches a page through each proxy and tells what it
found; a proxy's fault is a result with its :class:`~pharox.models.CheckFailure`,
never an exception. A :class:`HealthCheckOrchestrator` keeps the results in the
ledger.
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
