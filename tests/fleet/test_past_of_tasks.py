"""A fleet for tasks reads the past of its ledgers as one for threads does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from pharox import (
    AsyncFleet,
    AsyncInMemoryStorage,
    ConsumerNotFoundError,
    DatabaseUnavailableError,
    Fleet,
)
from pharox.fleet import past
from tests.fleet.conftest import stocked


def two_fleets(kind: str, urls: Callable[[], dict[str, str]]) -> tuple[dict[str, Any], Fleet]:
    """Return the settings of a fleet for tasks, and the same fleet for threads."""
    if kind == "servers":
        settings: dict[str, Any] = {"home": "near", "ledgers": urls()}
        return settings, Fleet.connect(settings)
    ledgers = {name: AsyncInMemoryStorage() for name in ("near", "far")}
    memory = {name: each.memory for name, each in ledgers.items()}
    return {"home": "near", "ledgers": ledgers}, Fleet.connect({"home": "near", "ledgers": memory})


@pytest.mark.parametrize("kind", ["memory", "servers"])
def test_log_and_audit_are_those_of_threads(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pages of a few rows; one that is left off keeps no connection."""
    monkeypatch.setattr(past, "PAGE", 3)
    settings, threads = two_fleets(kind, lambda: request.getfixturevalue("urls"))
    with threads:
        stocked(threads, "a", "near", 2)
        stocked(threads, "b", "far", 2)
        for pool in "abab":
            lease = threads.manager.acquire_proxy(pool, "w")
            assert lease is not None
            threads.manager.release_proxy(lease)
        asyncio.run(_compared(settings, threads))


async def _compared(settings: dict[str, Any], threads: Fleet) -> None:
    async with await AsyncFleet.connect(settings) as tasks:
        for of_tasks, of_threads in (
            (await tasks.log(), threads.log()),
            (await tasks.audit_consumer("w"), threads.audit_consumer("w")),
        ):
            rows = [row async for row in of_tasks[0]]
            assert rows == [*of_threads[0]]
            assert of_tasks[1] == of_threads[1] == {}
        assert (await tasks.moves()).rows == threads.moves().rows == []
        with pytest.raises(ConsumerNotFoundError):
            await tasks.audit_consumer("nobody")
        for _ in range(20):
            events, _ = await tasks.log()
            async with aclosing(cast("Any", events)) as left_off:
                async for _row in left_off:
                    break


def test_what_was_read_before_a_ledger_fails_is_yielded() -> None:
    """Also if it fails within a page, as threads have it."""
    error = DatabaseUnavailableError("it is down")

    def rows() -> Iterator[int]:
        yield from range(past.PAGE + 3)
        raise error

    found: list[int] = []

    async def read() -> None:
        async for row in past.in_threads(rows()):
            found.append(row)

    with pytest.raises(DatabaseUnavailableError) as raised:
        asyncio.run(read())
    assert raised.value is error
    assert found == [*range(past.PAGE + 3)]
