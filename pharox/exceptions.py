"""The errors under the module name that 0.11.0 gave them."""

from .errors import (
    ConsumerNotFoundError,
    InvalidLeaseError,
    PharoxError,
    PoolNotFoundError,
    ProxyNotFoundError,
    ProxyUnavailableError,
)

__all__ = [
    "ConsumerNotFoundError",
    "InvalidLeaseError",
    "PharoxError",
    "PoolNotFoundError",
    "ProxyNotFoundError",
    "ProxyUnavailableError",
]
