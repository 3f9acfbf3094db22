"""The tasks that a real worker of the tests runs: those of the example, and some that end badly."""

from __future__ import annotations

import time
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from pharox import Lease
from pharox.integrations.celery import leased
from tests.integrations.examples import example

shown = example("celery_tasks")
app, fetch, status = shown.app, shown.fetch, shown.status


@app.task(bind=True, default_retry_delay=0)  # type: ignore[untyped-decorator]
@leased("residential")
def retried(self: Any, *, lease: Lease) -> int:
    if self.request.retries < 2:
        raise self.retry()
    return int(self.request.retries)


@app.task  # type: ignore[untyped-decorator]
@leased("residential")
def fails(*, lease: Lease) -> None:
    raise RuntimeError("of the task")


@app.task  # type: ignore[untyped-decorator]
@leased("residential", duration_seconds=3, consumer="hangs")
def hangs(*, lease: Lease) -> str:
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return "in time"
    return "never"
