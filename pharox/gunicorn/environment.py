"""Read settings from environment variables, and write gunicorn's settings into them.

An empty variable counts as not set. Errors name the variable, never its value, which may be a
secret.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from prometheus_client import Histogram

from ..errors import InvalidInputError
from ..scraping.server import Certificates

T = TypeVar("T")

_MOST_BUCKETS = 50  # Each is a series of its own, by method.

VARIABLES = (
    "PROMETHEUS_METRICS_PORT",
    "PROMETHEUS_BIND_ADDRESS",
    "PROMETHEUS_INSTANCE",
    "PROMETHEUS_LEGACY_NAMES",
    "PROMETHEUS_DURATION_BUCKETS",
    "PROMETHEUS_SIZE_BUCKETS",
    "PROMETHEUS_SSL_CERTFILE",
    "PROMETHEUS_SSL_KEYFILE",
    "PROMETHEUS_SSL_CLIENT_CAFILE",
    "PROMETHEUS_SSL_CLIENT_CAPATH",
    "PROMETHEUS_SSL_CLIENT_AUTH_REQUIRED",
    "REDIS_ENABLED",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_DB",
    "REDIS_PASSWORD",
    "REDIS_KEY_PREFIX",
    "REDIS_TTL_SECONDS",
)
"""What may change while a server runs: read again when it reloads its configuration."""


def gunicorn_log() -> logging.Logger:
    """Return gunicorn's logger, which needs no server object."""
    return logging.getLogger("gunicorn.error")


@dataclass(frozen=True)
class RedisSettings:
    """Where servers share their metrics."""

    host: str = "127.0.0.1"
    port: int = 6379
    db: int = 0
    password: str | None = field(default=None, repr=False)
    key_prefix: str = "pharox"
    ttl_s: int = 300


@dataclass(frozen=True)
class RequestSettings:
    """How to count requests: the buckets of histograms, and the names of metrics.

    Parameters
    ----------
    duration_buckets:
        Upper limits in seconds; prometheus_client's own for web requests.
    size_buckets:
        Upper limits in bytes.
    legacy_names:
        Whether to show the metrics of gunicorn-prometheus-exporter too.
    """

    duration_buckets: tuple[float, ...] = Histogram.DEFAULT_BUCKETS[:-1]
    size_buckets: tuple[float, ...] = tuple(float(4**power) for power in range(5, 12))
    legacy_names: bool = False


@dataclass(frozen=True)
class MetricsSettings:
    """Where to serve metrics, the server's name, and whether to include other servers.

    Parameters
    ----------
    port, address:
        Where to listen.
    instance:
        The server's name among others; its host and port if None.
    """

    port: int = 9091
    address: str = "127.0.0.1"
    certificates: Certificates = field(default_factory=Certificates)
    redis: RedisSettings | None = None
    instance: str | None = None
    requests: RequestSettings = field(default_factory=RequestSettings)


class EnvironmentManager:
    """Reads the environment, and writes gunicorn's settings into it.

    Parameters
    ----------
    logger:
        Where to log; gunicorn's log if None.
    environment:
        The variables to read; those of this process if None.
    """

    def __init__(self, logger: Any = None, *, environment: Mapping[str, str] | None = None) -> None:
        self.logger = logger or gunicorn_log()
        self._environment = os.environ if environment is None else environment

    def settings(self) -> MetricsSettings:
        """Return the settings for serving metrics.

        Raises
        ------
        InvalidInputError
            If a variable is not valid.
        """
        known = MetricsSettings()
        return MetricsSettings(
            port=self._get("PROMETHEUS_METRICS_PORT", _port, known.port),
            address=self._get("PROMETHEUS_BIND_ADDRESS", str, known.address),
            certificates=Certificates(
                certfile=self._get("PROMETHEUS_SSL_CERTFILE", str, None),
                keyfile=self._get("PROMETHEUS_SSL_KEYFILE", str, None),
                client_cafile=self._get("PROMETHEUS_SSL_CLIENT_CAFILE", str, None),
                client_capath=self._get("PROMETHEUS_SSL_CLIENT_CAPATH", str, None),
                client_auth_required=self._get("PROMETHEUS_SSL_CLIENT_AUTH_REQUIRED", _flag, False),
            ),
            redis=self._redis() if self._get("REDIS_ENABLED", _flag, False) else None,
            instance=self._get("PROMETHEUS_INSTANCE", str, None),
            requests=self.requests(),
        )

    def requests(self) -> RequestSettings:
        """Return the settings for counting requests.

        Raises
        ------
        InvalidInputError
            If a variable is not valid.
        """
        known = RequestSettings()
        return RequestSettings(
            duration_buckets=self._get(
                "PROMETHEUS_DURATION_BUCKETS", _buckets, known.duration_buckets
            ),
            size_buckets=self._get("PROMETHEUS_SIZE_BUCKETS", _buckets, known.size_buckets),
            legacy_names=self._get("PROMETHEUS_LEGACY_NAMES", _flag, known.legacy_names),
        )

    def _redis(self) -> RedisSettings:
        known = RedisSettings()
        return RedisSettings(
            host=self._get("REDIS_HOST", str, known.host),
            port=self._get("REDIS_PORT", _port, known.port),
            db=self._get("REDIS_DB", _number(0, 1_000_000), known.db),
            password=self._get("REDIS_PASSWORD", str, None),
            key_prefix=self._get("REDIS_KEY_PREFIX", str, known.key_prefix),
            ttl_s=self._get("REDIS_TTL_SECONDS", _number(2, 10**9), known.ttl_s),
        )

    @property
    def workers(self) -> int:
        """The number of workers in ``GUNICORN_WORKERS``, else in ``WEB_CONCURRENCY``, else 1."""
        count = _number(1, 10_000)
        return self._get("GUNICORN_WORKERS", count, self._get("WEB_CONCURRENCY", count, 1))

    def update_from_cli(self, cfg: Any) -> None:
        """Write gunicorn's settings to the variables that the application reads.

        Parameters
        ----------
        cfg:
            Gunicorn's configuration, merged from the command line and the file.
        """
        os.environ["GUNICORN_WORKERS"] = str(cfg.workers)
        os.environ["GUNICORN_BIND"] = ",".join(cfg.bind)
        os.environ["GUNICORN_WORKER_CLASS"] = str(cfg.worker_class_str)
        os.environ["GUNICORN_TIMEOUT"] = str(cfg.timeout)

    def _get(self, name: str, read: Callable[[str], T], default: T) -> T:
        text = self._environment.get(name, "").strip()
        if not text:
            return default
        try:
            return read(text)
        except ValueError as error:
            raise InvalidInputError(f"{name} {error}", variable=name) from None


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"must be a number from {least} to {most}")
        return int(text)

    return read


_port = _number(1, 65535)


def _buckets(text: str) -> tuple[float, ...]:
    try:
        limits = [float(part) for part in text.split(",")]
    except ValueError:
        limits = []
    if limits and limits[-1] == math.inf:
        limits.pop()  # It is always there.
    rises = all(low < high for low, high in pairwise(limits))
    if not (0 < len(limits) <= _MOST_BUCKETS and rises and all(map(math.isfinite, limits))):
        raise ValueError(f"must be 1 to {_MOST_BUCKETS} ascending numbers, separated by commas")
    return tuple(limits)


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError('must be "true" or "false"')
