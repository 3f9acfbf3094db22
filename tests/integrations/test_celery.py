"""A task's lease is given back however the task ends; a worker that is killed lets it run out."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from pharox import (
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeaseLostError,
    OutcomeKind,
    ProxyFilters,
    ProxyManager,
    ProxyUnavailableError,
)
from pharox.events.types import AcquireMissed, LeaseAcquired, LeaseExpired, LeaseReleased
from pharox.integrations.celery import leased, leased_client
from pharox.integrations.testing import FIVE, Behaviour, ProxyLab, proxy_lab
from tests import servers
from tests.conftest import SECRET_KEY, AnyStorage, Clusters, ledger, new_database
from tests.integrations.ledgers import events_of
from tests.integrations.redis_server import running_redis
from tests.ledger.following import until

ENDS = (LeaseReleased, LeaseExpired)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def lab(any_storage: AnyStorage) -> Iterator[ProxyLab]:
    """A pool of one good proxy, on each storage."""
    with proxy_lab({"good": Behaviour()}, storage=any_storage) as lab:
        yield lab


def task(function: Callable[..., Any], **options: Any) -> Any:
    """Register a function with an application that runs tasks here."""
    app = Celery("here", set_as_current=False)
    app.conf.task_store_eager_result = False
    return app.task(name="shop.fetch", **options)(function)


def test_a_task_is_given_a_lease_that_callers_know_nothing_of(lab: ProxyLab) -> None:
    @leased("lab", manager=lab.manager)
    def fetch(url: str, *, lease: Lease, times: int = 1) -> str:
        assert [each.id for each in lab.held] == [lease.id]
        return f"{times} {url} {lab.name_of(lease)}"

    assert str(inspect.signature(fetch)) == "(url: 'str', *, times: 'int' = 1) -> 'str'"
    fetching = task(fetch)
    done = fetching.apply(("/page",), {"times": 2})
    assert done.get() == "2 /page good"
    assert lab.held == []
    with pytest.raises(TypeError, match="missing"):
        fetching.delay()
    (acquired,) = [each for each in events_of(lab) if isinstance(each, LeaseAcquired)]
    assert (acquired.consumer, acquired.correlation_id) == ("shop.fetch", done.id)


def test_a_client_reports_by_itself(any_storage: AnyStorage) -> None:
    for name, kinds in (
        ("password", [OutcomeKind.OK]),
        ("socks", [OutcomeKind.OK]),
        ("refusing", [OutcomeKind.BLOCKED]),
        ("dying", [OutcomeKind.OK, OutcomeKind.UNCLEAR]),  # its head came
    ):
        pool = f"pool of {name}"
        with proxy_lab({name: FIVE[name]}, storage=any_storage, pool_name=pool) as lab:

            @leased_client(pool, manager=lab.manager)
            def fetch(url: str, *, client: Any) -> int:
                return int(client.get(url).status_code)

            task(fetch).apply((lab.url(),))
            assert lab.held == []
            assert [told.kind for told in lab.outcomes] == kinds


def test_what_a_task_raises_gives_the_lease_back(lab: ProxyLab) -> None:
    @leased("lab", manager=lab.manager)
    def fails(*, lease: Lease) -> None:
        raise KeyError("price")

    assert isinstance(task(fails).apply().result, KeyError)
    assert lab.held == []


def test_a_retry_gives_the_lease_back_each_time(lab: ProxyLab) -> None:
    @leased("lab", manager=lab.manager)
    def again(self: Any, *, lease: Lease) -> int:
        assert len(lab.held) == 1
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    assert task(again, bind=True).apply().get() == 2
    assert lab.held == []
    assert len(lab.storage.list_leases()) == 3


def test_a_lost_lease_fails_the_task(lab: ProxyLab) -> None:
    @leased("lab", manager=lab.manager)
    def loses(*, lease: Lease) -> None:
        lab.manager.revoke_lease(lease.id, "for maintenance")

    done = task(loses).apply()
    assert isinstance(done.result, LeaseLostError)
    assert "for maintenance" in str(done.result)


def test_a_miss_is_retried_when_a_proxy_may_be_free(lab: ProxyLab) -> None:
    """As often as the task may be; with no hope, and in a plain call, it is raised."""

    @leased("lab", manager=lab.manager, wait_seconds=None)
    def fetch(*, lease: Lease) -> None: ...

    @leased("lab", manager=lab.manager, filters=ProxyFilters(country="AQ"))
    def fetch_nowhere(*, lease: Lease) -> None: ...

    @leased("lab", manager=lab.manager, wait_seconds=None, retry_misses=False)
    def fetch_once(*, lease: Lease) -> None: ...

    with lab.manager.with_lease("lab", "elsewhere", 3600):
        fetching = task(fetch, max_retries=2)
        done = fetching.apply(throw=False)
        assert isinstance(done.result, ProxyUnavailableError)
        assert len(_misses(lab)) == 3
        for other in (fetch_nowhere, fetch_once):
            before = len(_misses(lab))
            assert isinstance(task(other).apply().result, ProxyUnavailableError)
            assert len(_misses(lab)) == before + 1
        with pytest.raises(ProxyUnavailableError):
            fetching()


def _misses(lab: ProxyLab) -> list[AcquireMissed]:
    return [each for each in events_of(lab) if isinstance(each, AcquireMissed)]


def test_a_function_without_the_parameter_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="needs a parameter 'lease'"):
        leased("pool")(lambda url: None)
    with pytest.raises(InvalidInputError, match="needs a parameter 'client'"):
        leased_client("pool")(lambda lease: None)


def test_bad_arguments_are_refused_when_they_are_known() -> None:
    other: Any = InMemoryStorage()
    with pytest.raises(InvalidInputError, match="ProxyManager"):
        leased("pool", manager=other)
    with pytest.raises(InvalidInputError):
        leased("", manager=ProxyManager(InMemoryStorage()))


@dataclass
class Worker:
    """A real worker, with a lab in its ledger."""

    lab: ProxyLab
    tasks: Any
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, result: Any) -> Any:
        until(lambda: result.ready() or self.process.poll() is not None, 60)
        assert result.ready(), self.log.read_text()
        return result.result


@pytest.fixture(scope="module")
def worker(clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with two processes, on Redis and PostgreSQL."""
    folder = tmp_path_factory.mktemp("celery")
    server_url, template = clusters.get(servers.names()[0])
    with (
        running_redis(folder) as redis_url,
        new_database(server_url, f"pharox_{uuid4().hex[:12]}", template) as url,
        ledger(url) as storage,
        proxy_lab({"password": FIVE["password"]}, storage=storage, pool_name="residential") as lab,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("CELERY_BROKER_URL", redis_url)
        patch.setenv("CELERY_RESULT_BACKEND", redis_url)
        patch.setenv("PHAROX_DATABASE_URL", url)
        patch.setenv("PHAROX_SECRET_KEY", SECRET_KEY)
        from tests.integrations import celery_tasks

        log = folder / "worker.log"
        module = ["-A", "tests.integrations.celery_tasks", "worker"]
        options = ["--concurrency", "1", "--loglevel", "INFO", "--without-gossip"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", *module, *options],
                cwd=ROOT,
                env={**os.environ},
                stdout=out,
                stderr=out,
            )
        until(lambda: "ready." in log.read_text() or process.poll() is not None, 60)
        yield Worker(lab, celery_tasks, process, log)
        process.terminate()
        try:
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            celery_tasks.app.close()


def test_a_worker_leases_for_its_tasks(worker: Worker) -> None:
    """Whether they end well, are retried or fail, nothing is held afterwards."""
    lab, tasks = worker.lab, worker.tasks
    page = tasks.fetch.delay(lab.url("/page"))
    assert worker.wait_for(page) == f"password {lab.url('/page')}\n"
    assert worker.wait_for(tasks.status.delay(lab.url("/status/403"))) == 403
    assert worker.wait_for(tasks.retried.delay()) == 2
    assert "of the task" in str(worker.wait_for(tasks.fails.delay()))
    in_time = tasks.hangs.apply_async(soft_time_limit=1)
    assert worker.wait_for(in_time) == "in time"
    until(lambda: lab.held == [])
    assert [told.kind for told in lab.outcomes] == [OutcomeKind.OK, OutcomeKind.BLOCKED]
    acquired = [each for each in events_of(lab) if isinstance(each, LeaseAcquired)]
    consumers = [each.consumer.rpartition(".")[2] for each in acquired]
    assert consumers == ["fetch", "status", *["retried"] * 3, "fails", "hangs"]
    assert acquired[0].correlation_id == page.id


def test_a_process_that_is_killed_lets_its_lease_run_out(worker: Worker) -> None:
    """By the hard time limit, or by anybody; then the next task gets the proxy."""
    lab, tasks = worker.lab, worker.tasks
    limited = tasks.hangs.apply_async(time_limit=5)
    until(lambda: lab.held != [], 60)
    assert "TimeLimitExceeded" in repr(worker.wait_for(limited))
    assert worker.wait_for(tasks.retried.delay()) == 2
    hangs = tasks.hangs.delay()
    until(lambda: lab.held != [], 60)
    (child,) = _children(worker.process.pid)
    os.kill(child, signal.SIGKILL)
    assert "WorkerLostError" in repr(worker.wait_for(hangs))
    assert worker.wait_for(tasks.fetch.delay(lab.url("/after"))).startswith("password ")
    until(lambda: lab.held == [])
    ended = [each for each in events_of(lab) if isinstance(each, ENDS)]
    of_hangs = [each.type for each in ended if each.consumer == "hangs"]
    # Celery sends SIGTERM first, which a process may have a tenth of a second to obey.
    assert of_hangs[-2:] in (["LeaseReleased", "LeaseExpired"], ["LeaseExpired", "LeaseExpired"])


def _children(pid: int) -> list[int]:
    import psutil  # type: ignore[import-untyped]

    return [
        child.pid
        for child in psutil.Process(pid).children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
