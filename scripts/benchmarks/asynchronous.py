"""Lease cycles in one event loop: ours, a process of ours that blocks, and pharox 0.11.0's asyncpg.

64 tasks share 16 connections; a cycle is an acquisition and a release.
"""

from __future__ import annotations

from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.peers import OURS, PHAROX_0_11, seed_0_11, told_by
from scripts.benchmarks.server import new_database, new_ledger, settled

TASKS, CONNECTIONS = 64, 16

LINES = (
    Line("one process of ours that blocks, 1 connection", "blocking"),
    Line(f"{TASKS} tasks of ours, {CONNECTIONS} connections", "tasks"),
    Line("  of the process that blocks", "tasks", per="blocking", goal=goals.ASYNC_BLOCKING),
    Line(f"pharox 0.11.0's asyncpg adapter, {TASKS} tasks", "peer tasks"),
    Line("  our tasks, of that", "tasks", per="peer tasks", goal=goals.ASYNC_PEER),
    Line("processor in our process, for a cycle of a task", "tasks cpu", "ms"),
    Line("processor in our process, for a cycle that blocks", "blocking cpu", "ms"),
    Line("misses and errors of ours", "amiss", "", goal=goals.NO_ERRORS),
    Line("misses and errors of pharox 0.11.0", "peer amiss", ""),
)


def prepare(bench: Bench) -> list[Part]:
    """Return the part that compares tasks with a blocking process and with the peer's tasks."""
    url = new_ledger(bench.url, "tasks", {"hundred": 100})
    peer_url = new_database(bench.url, "peer")
    seed_0_11(peer_url, "hundred", 100, *(f"worker-{number}" for number in range(TASKS)))
    settled(url)
    in_tasks = ("hundred", TASKS, CONNECTIONS, bench.seconds)

    def measure() -> Figures:
        blocking = told_by(OURS, "cycles.py", url, "hundred", 1, bench.seconds)
        tasks = told_by(OURS, "async_cycles.py", url, *in_tasks)
        peer = told_by(PHAROX_0_11, "async_cycles.py", peer_url, *in_tasks)
        return {
            "blocking": blocking["cycles"] / bench.seconds,
            "tasks": tasks["cycles"] / bench.seconds,
            "peer tasks": peer["cycles"] / bench.seconds,
            "blocking cpu": 1000 * blocking["cpu_s"] / blocking["cycles"],
            "tasks cpu": 1000 * tasks["cpu_s"] / tasks["cycles"],
            "amiss": sum(told["misses"] + told["errors"] for told in (blocking, tasks)),
            "peer amiss": peer["misses"] + peer["errors"],
        }

    return [Part("tasks", {"1. Lease cycles in one event loop, 100 proxies": LINES}, measure)]
