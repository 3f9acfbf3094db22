"""Share the metrics of several servers through Redis.

Each server's metrics process writes all its metrics about once a second, and reads those of the
others. A scrape shows the last metrics read, and never waits. A key outlives its server by its time
to live, which each write renews:

    {prefix}:{instance}            a server's metrics, as JSON
    {prefix}:instances             the names of these keys

A server has the same name after each start, so it overwrites its earlier metrics. If two live
servers have the same name, the one that was started first adds the id of its start to its name, and
logs that. No series is lost, and none is shown twice.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry

from .environment import RedisSettings
from .family import Family

logger = logging.getLogger("pharox.gunicorn")

_EVERY_S = 1.0
_PATIENCE_S = 1.0
_STALE_S = 10.0
_TYPES = frozenset(("counter", "gauge", "histogram", "summary"))


class Other(NamedTuple):
    """Another server's metrics, and when it last wrote them."""

    heard_at: float
    beat: int
    metrics: list[Metric]


class Start(NamedTuple):
    """When a server was started, and an id that differs among servers of one name."""

    at: float
    boot_id: str


class SharedMetrics(Collector):
    """Shows a server's metrics together with those of other servers.

    Parameters
    ----------
    family:
        The processes of this server.
    own:
        Returns this server's metrics.
    settings:
        Where they are shared.
    instance:
        The name of this server.
    """

    def __init__(
        self,
        family: Family,
        own: Callable[[], Iterable[Metric]],
        settings: RedisSettings,
        instance: str,
    ) -> None:
        self._own = own
        self._instance, self._boot_id = instance, family.boot_id
        self._begun = Start(family.begun, family.boot_id)
        self._prefix, self._ttl_s = settings.key_prefix, settings.ttl_s
        self._redis = redis.Redis(
            host=settings.host,
            port=settings.port,
            db=settings.db,
            password=settings.password,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._others: dict[str, Other] = {}
        self._beat = 0
        self._is_up: bool | None = None
        self._answered_at = 0.0
        self._warned: set[str] = set()

    def describe(self) -> list[Metric]:
        """Describe no metrics in advance; ``collect`` finds them."""
        return []

    def collect(self) -> list[Metric]:
        """Return the metrics of all servers, each with its name as the label ``instance``."""
        now = time.monotonic()
        found = [(self._instance, list(self._own()))]
        for instance, other in sorted(self._others.copy().items()):
            silent_s = now - other.heard_at
            if silent_s < self._ttl_s:
                # What has gone counts no more; what it had then is not how things are.
                shown = [m for m in other.metrics if silent_s < _STALE_S or m.type != "gauge"]
                found.append((instance, shown))
        up = GaugeMetricFamily("pharox_redis_up", "Whether Redis answered the last request.")
        up.add_metric([], float(bool(self._is_up) and now - self._answered_at < _STALE_S))
        return [up, *_merged(found)]

    def run(self, stop: threading.Event) -> None:
        """Write and read about once a second until stopped; Redis may be unavailable at times."""
        while not stop.is_set():
            begun = time.monotonic()
            try:
                self._exchange()
            except Exception as error:  # It goes on, whatever the others write.
                if self._is_up is not False:
                    # Its message may quote what was sent, so only the kind of error is logged.
                    logger.warning("Redis cannot be used: %s", type(error).__name__)
                self._is_up = False
            else:
                if self._is_up is False:
                    logger.info("Redis can be used again")
                self._is_up, self._answered_at = True, time.monotonic()
            stop.wait(max(0.0, _EVERY_S - (time.monotonic() - begun)))

    def _exchange(self) -> None:
        self._keep_apart()
        own, index = f"{self._prefix}:{self._instance}", f"{self._prefix}:instances"
        with self._redis.pipeline(transaction=False) as pipeline:
            self._beat += 1
            pipeline.set(own, _encoded(self._begun, self._beat, self._own()), ex=self._ttl_s)
            pipeline.sadd(index, own)
            pipeline.expire(index, self._ttl_s)
            pipeline.smembers(index)
            names: set[bytes] = pipeline.execute()[-1]
        keys = sorted(names - {own.encode()})
        gone = []
        answers: Any = self._redis.mget(keys) if keys else []
        for key, text in zip(keys, answers, strict=True):
            instance = key.decode(errors="replace").removeprefix(f"{self._prefix}:")
            if text is None:
                gone.append(key)
                self._others.pop(instance, None)
                continue
            try:
                _, beat, metrics = _decoded(text)
                known = self._others.get(instance)
                if known is None or known.beat != beat:
                    self._others[instance] = Other(time.monotonic(), beat, metrics)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if instance not in self._warned:
                    self._warned.add(instance)
                    logger.warning(
                        "another server's metrics cannot be read: %s", type(error).__name__
                    )
        if gone:
            self._redis.srem(index, *gone)

    def _keep_apart(self) -> None:
        """Take another name if a live server with this name was started later."""
        if not self._beat:
            return  # What is there may be what this server left when it was started before.
        text: Any = self._redis.get(f"{self._prefix}:{self._instance}")
        try:
            other = _decoded(text)[0] if text is not None else self._begun
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        if other.boot_id != self._boot_id and other > self._begun:
            logger.error(
                "another server is also named %s: set PROMETHEUS_INSTANCE for each", self._instance
            )
            self._instance = f"{self._instance}:{self._boot_id}"


def _encoded(begun: Start, beat: int, metrics: Iterable[Metric]) -> str:
    metrics_shown = [
        (one.name, one.documentation, one.type, [sample[:3] for sample in one.samples])
        for one in metrics
    ]
    return json.dumps([begun, beat, metrics_shown])


def _decoded(text: bytes) -> tuple[Start, int, list[Metric]]:
    metrics = []
    (at, boot_id), beat, metrics_shown = json.loads(text)
    for name, documentation, kind, samples in metrics_shown:
        if kind not in _TYPES:
            raise ValueError("unknown type of metric")
        metric = Metric(name, str(documentation), kind)
        for sample, labels, value in samples:
            metric.add_sample(
                str(sample), {str(k): str(v) for k, v in labels.items()}, float(value)
            )
        metrics.append(metric)
    return Start(float(at), str(boot_id)), int(beat), metrics


def _merged(found: Sequence[tuple[str, list[Metric]]]) -> list[Metric]:
    """Return each metric once, with all servers' samples, as the first server describes it."""
    merged: dict[str, Metric] = {}
    for instance, metrics in found:
        for metric in metrics:
            known = merged.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type)
            )
            if known.type != metric.type:
                continue  # Two versions of an application do not agree.
            for sample in metric.samples:
                labels = dict(sample.labels)
                if "instance" in labels:  # As Prometheus does with what it scrapes.
                    labels["exported_instance"] = labels["instance"]
                known.add_sample(sample.name, {**labels, "instance": instance}, sample.value)
    return list(merged.values())
