"""Run a subscription beside a test, in a thread or in an event loop, until something holds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pharox import Subscription
from pharox.ledger.subscriptions import SubscriptionStatus, subscriptions
from pharox.storage.postgres import PostgresStorage

BOTH = ("thread", "asyncio")
"""The two drivers, for tests of what both must do."""


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait until a condition holds, and fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def status_of(storage: PostgresStorage, name: str) -> SubscriptionStatus:
    """Return the status of one subscription."""
    return next(status for status in subscriptions(storage) if status.name == name)


def is_level(storage: PostgresStorage, name: str) -> bool:
    """Return whether a subscription exists and has no event after its checkpoint."""
    lags = {status.name: status.lag_events for status in subscriptions(storage)}
    return lags.get(name) == 0


@contextmanager
def following(
    subscription: Subscription, storage: PostgresStorage, driver: str = "thread"
) -> Iterator[None]:
    """Read a subscription for a block; what ends the reader early is raised at its end."""
    if driver == "thread":
        with subscription.running(storage):
            yield
        return
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(subscription.run_async(storage, stop))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    for error in errors:
        raise error
