"""``pharox.lease.*``: metrics as those of connection pools, read with OpenTelemetry's real SDK."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from pharox import (
    AsyncProxyManager,
    InMemoryStorage,
    InvalidInputError,
    OpenTelemetryMetricsRecorder,
    Outcome,
    ProxyManager,
    register_opentelemetry_metrics,
)
from pharox.models import LostEventPayload
from tests.conftest import AnyStorage, Broken, breaks, clock_of, fill, for_tasks
from tests.ledger.following import until

WAITING = {"wait_seconds": 30}


class Sdk:
    """A provider whose metrics can be read at any moment."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        self.meter = self.provider.get_meter("tests")

    def metrics(self) -> dict[str, Any]:
        """Return all metrics by name, without ``pharox.lease.``."""
        data = self.reader.get_metrics_data()
        return {
            metric.name.removeprefix("pharox.lease."): metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str) -> dict[str, Any]:
        """Return the values of a metric, or the counts of a histogram, by its attributes."""
        metric = self.metrics().get(name)
        return {
            ",".join(str(value) for _, value in sorted(point.attributes.items())): getattr(
                point, "value", getattr(point, "count", None)
            )
            for point in (metric.data.data_points if metric else ())
        }


@pytest.fixture
def sdk() -> Sdk:
    return Sdk()


def test_a_pool_is_told_of_as_a_pool_of_connections(any_storage: AnyStorage, sdk: Sdk) -> None:
    """Used and idle, waits, uses, misses, waits in vain and outcomes; names and units too."""
    clock = clock_of(any_storage)
    fill(any_storage, 2)
    manager = ProxyManager(any_storage)
    register_opentelemetry_metrics(manager, meter=sdk.meter)
    first, second = (manager.acquire_proxy("pool", duration_seconds=60) for _ in range(2))
    assert first is not None
    assert second is not None
    assert sdk.values("count") == {"used,pool": 2, "idle,pool": 0}
    assert manager.acquire_proxy("pool") is None
    assert manager.acquire_proxy("pool", wait_seconds=0.01) is None
    assert manager.acquire_proxy("misspelled") is None
    manager.release_proxy(first, Outcome.blocked(status=429, count=3))
    clock.advance(61)
    manager.cleanup_expired_leases()
    assert sdk.values("count") == {"used,pool": 0, "idle,pool": 2}
    assert sdk.values("max") == {"pool": 2}
    assert sdk.values("wait_time") == {"pool": 2}
    assert sdk.values("use_time") == {"released,pool": 1, "expired,pool": 1}
    assert sdk.values("misses") == {"at_capacity,pool": 2, "unknown_pool,other": 1}
    assert sdk.values("timeouts") == {"pool": 1}
    assert sdk.values("outcomes") == {"blocked,pool": 3}
    assert set(sdk.values("pending_requests").values()) == {0}
    assert {name: metric.unit for name, metric in sdk.metrics().items()} == {
        "count": "{lease}",
        "max": "{lease}",
        "wait_time": "s",
        "use_time": "s",
        "misses": "{request}",
        "timeouts": "{timeout}",
        "outcomes": "{request}",
        "pending_requests": "{request}",
    }
    (used,) = [
        point
        for point in sdk.metrics()["use_time"].data.data_points
        if point.attributes["pharox.ended"] == "expired"
    ]
    assert used.explicit_bounds == (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
    assert used.sum >= 60


@pytest.mark.parametrize("form", ["thread", "task"])
def test_who_waits_is_pending(any_storage: AnyStorage, sdk: Sdk, form: str) -> None:
    """While a request waits; when it is answered, cancelled or fails, it is pending no more."""
    fill(any_storage)
    holder = ProxyManager(any_storage)
    lease = holder.acquire_proxy("pool")
    assert lease is not None
    if form == "thread":
        manager = ProxyManager(any_storage)
        register_opentelemetry_metrics(manager, meter=sdk.meter)
        thread = threading.Thread(target=manager.acquire_proxy, args=("pool",), kwargs=WAITING)
        thread.start()
        until(lambda: sdk.values("pending_requests") == {"pool": 1})
        holder.release_proxy(lease)
        thread.join()
        assert sdk.values("wait_time") == {"pool": 1}
    else:
        asyncio.run(_wait_in_a_task(any_storage, sdk))
    assert sdk.values("pending_requests") == {"pool": 0}


async def _wait_in_a_task(storage: AnyStorage, sdk: Sdk) -> None:
    """Wait until a task waits, and cancel it."""
    kept = for_tasks(storage)
    manager = AsyncProxyManager(kept)
    register_opentelemetry_metrics(manager, meter=sdk.meter)
    task = asyncio.create_task(manager.acquire_proxy("pool", wait_seconds=30))
    while sdk.values("pending_requests") != {"pool": 1}:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await kept.close()


def test_recorders_of_a_meter_share_what_they_record(sdk: Sdk) -> None:
    """Two managers of a process are added up, a manager that is registered twice counts once."""
    storage = InMemoryStorage()
    fill(storage, 2)
    for _ in range(2):
        manager = ProxyManager(storage)
        for _ in range(2):
            register_opentelemetry_metrics(manager, meter=sdk.meter)
        manager.acquire_proxy("pool")
    assert sdk.values("wait_time") == {"pool": 2}
    assert sdk.values("pending_requests") == {"pool": 0}
    assert sdk.values("count") == {"used,pool": 2, "idle,pool": 0}
    with pytest.raises(InvalidInputError, match="max_pools=1000"):
        OpenTelemetryMetricsRecorder(meter=sdk.meter, max_pools=3)


def test_names_are_bounded(sdk: Sdk) -> None:
    """Of pools beyond the first ones, and of names that are misspelled, there is one series."""
    storage = InMemoryStorage()
    for name in "abc":
        fill(storage, name=name)
    manager = ProxyManager(storage)
    register_opentelemetry_metrics(manager, meter=sdk.meter, max_pools=2)
    for name in ("x", "y", "z", "a", "b", "c"):
        manager.acquire_proxy(name)
    assert sdk.values("wait_time") == {"a": 1, "b": 1, "other": 1}
    assert sdk.values("misses") == {"unknown_pool,other": 3}
    assert sdk.values("max") == {"a": 1, "b": 1}
    assert len(sdk.values("pending_requests")) == 3


def test_a_lost_lease_and_a_failing_callback_are_no_trouble(sdk: Sdk) -> None:
    """A lease that was lost is counted; when another callback raises, nothing stays pending."""
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    recorder = register_opentelemetry_metrics(manager, meter=sdk.meter)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    recorder.handle_lost(LostEventPayload(lease=lease, pool_name="pool", reason="revoked"))
    assert sdk.values("lost") == {"pool": 1}
    manager.release_proxy(lease)
    manager.register_acquire_callback(breaks)
    with pytest.raises(Broken):
        manager.acquire_proxy("pool")
    assert sdk.values("pending_requests") == {"pool": 0}


CODE = """
import sys
{block}
import pharox
storage = pharox.InMemoryStorage()
manager = pharox.ProxyManager(storage)
pharox.register_opentelemetry_metrics(manager)
pool = pharox.bootstrap_pool(storage, name="p")
pharox.bootstrap_proxy(storage, pool=pool, host="a.test", port=1)
with manager.with_lease("p") as lease:
    assert lease is not None
assert "opentelemetry.sdk" not in sys.modules
{later}
"""
LATER = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
with manager.with_lease("p"):
    pass
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
assert scope.scope.name == "pharox"
assert {"pharox.lease.wait_time", "pharox.lease.count"} <= {each.name for each in scope.metrics}
"""


@pytest.mark.parametrize(
    ("block", "later"),
    [("sys.modules['opentelemetry'] = None", ""), ("", LATER)],
    ids=["without the API", "with a provider that is set later"],
)
def test_what_is_not_there_does_no_harm(block: str, later: str) -> None:
    """Without the API, or without a provider, nothing is recorded, until there is one."""
    code = CODE.replace("{block}", block).replace("{later}", later)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
