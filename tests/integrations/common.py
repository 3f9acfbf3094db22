"""What tests of the integrations share: which proxy is leased, and what was reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from pharox import PoolOptions, ProxyFilters
from pharox.integrations.testing import ProxyLab
from tests.ledger.following import until

__all__ = ["in_thread", "kinds", "only", "told", "until"]


def only(lab: ProxyLab, *names: str, **options: Any) -> PoolOptions:
    """Return options with which one of the proxies of these names is leased."""
    wanted = {lab.proxies[name].id for name in names}
    filters = ProxyFilters(predicate=lambda proxy: proxy.id in wanted)
    return cast("PoolOptions", {"filters": filters, "duration_seconds": 60, **options})


def told(lab: ProxyLab) -> list[tuple[str, str, str | None]]:
    """Return what was reported: of which proxy what kind of outcome, at which host."""
    return [(each.proxy, each.kind.value, each.target) for each in lab.outcomes]


def kinds(lab: ProxyLab) -> list[str]:
    """Return what kinds of outcomes were reported."""
    return [each.kind.value for each in lab.outcomes]


@contextmanager
def in_thread(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Do work in a thread meanwhile; yields a list that has its answer, or its exception, after."""
    answer: list[Any] = []

    def main() -> None:
        try:
            answer.append(work())
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        yield answer
    finally:
        thread.join(20)
        assert not thread.is_alive()
