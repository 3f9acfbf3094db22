"""Lease from a pool at a steady rate, and tell how many leases and how much processor time it took.

    console_leasing.py URL POOL RATE

Some hundreds are held at a time, each for about half a second. One of twenty is for a target, with
an outcome. Each line of the standard input is answered by a JSON object; its end ends the leasing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from types import TracebackType
from typing import NamedTuple, Self

import pharox
from pharox import AsyncProxyManager, Lease, Outcome

TASKS = 64
HELD_EACH = 8
TARGET = "shop.example"
FOR_TARGET = 20
"""One of so many leases is for the target."""


class Tally(NamedTuple):
    """What was done since the start: ``cpu_s`` is the processor time of the leasing process."""

    leases: int
    amiss: int
    cpu_s: float


class SteadyLeasing:
    """Leases in another process for a block; :meth:`look` says how far it is."""

    def __init__(self, url: str, pool: str, rate: float) -> None:
        self._command = [sys.executable, "-m", __name__, url, pool, str(rate)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.look()
        return self

    def look(self) -> Tally:
        """Return what was done up to now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("?", file=self._process.stdin, flush=True)
        return Tally(*json.loads(self._process.stdout.readline()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)


async def main() -> None:
    url, pool, rate = sys.argv[1:]
    storage = await pharox.connect_async(url)
    manager = AsyncProxyManager(storage)
    counts: Counter[str] = Counter()
    stopping = asyncio.Event()
    every_s = TASKS / float(rate)

    async def cycle(number: int, consumer: str, held: deque[Lease]) -> None:
        target = TARGET if number % FOR_TARGET == 0 else None
        lease = await manager.acquire_proxy(pool, consumer, 60, target=target)
        counts["leases" if lease else "amiss"] += 1
        if lease:
            held.append(lease)
        if len(held) > HELD_EACH:
            await release(held.popleft())

    async def release(lease: Lease) -> None:
        outcome = Outcome.ok(TARGET, status=200) if lease.target else None
        await manager.release_proxy(lease, outcome=outcome)

    async def work(task: int) -> None:
        held: deque[Lease] = deque()
        due = time.monotonic() + every_s * task / TASKS
        number = task
        while not stopping.is_set():
            # Whoever is late does not catch up: the rate is a bound.
            due = max(due + every_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            try:
                await cycle(number, f"crawler-{task}", held)
            except pharox.PharoxError:
                counts["amiss"] += 1
            number += 1
        for lease in held:
            await release(lease)

    async def answer() -> None:
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps([counts["leases"], counts["amiss"], time.process_time()]), flush=True)
        stopping.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(answer())
        for task in range(TASKS):
            group.create_task(work(task))
    await storage.close()


if __name__ == "__main__":
    asyncio.run(main())
