"""Cycles a second of every kind of caller, with its floor and its peer."""

from __future__ import annotations

from scripts.benchmarks import goals, lease
from scripts.benchmarks.core_callers import (
    HAS_SETS,
    INSERT,
    Run,
    in_processes,
    inserts,
    make_floor,
    sets,
    tasks,
    threads,
)
from scripts.benchmarks.health_process import in_new_process
from scripts.benchmarks.parts import Bench, Figures, Line, Part, Series
from scripts.benchmarks.peers import OURS, PHAROX_0_11, seed_0_11, told_by
from scripts.benchmarks.server import connected, new_database, new_ledger, pgbench, settled

POOL, PROXIES = "hundred", 100
CALLERS = (8, 16, 32, 64)
PROCESSES = 8
SET = 64
PEER_TASKS, PEER_CONNECTIONS = 64, 16
TASKS_RATE = 5_000
"""What 64 tasks are to reach, unless the disk of the machine is too slow for it."""

HOT = ("available_proxies", "pool_stats", "selector_cursors")
"""The read models whose few rows every lease updates."""


def _flat(kind: str) -> tuple[Line, ...]:
    """Return lines for callers of one process, each number beside the fewest."""
    few, *more = CALLERS
    return (
        Line(f"{few} {kind}", f"{kind} {few}"),
        *(
            line
            for number in more
            for line in (
                Line(f"{number} {kind}", f"{kind} {number}"),
                Line(f"  of {few}", f"{kind} {number}", per=f"{kind} {few}", goal=goals.CORE_FLAT),
            )
        ),
    )


_LONE_LINES = (
    Line("floor: two commits through bare psycopg", "insert2"),
    Line("a lone caller", "lone"),
    Line("  of the floor", "lone", per="insert2", goal=goals.CORE_LONE_FLOOR),
    Line("pharox 0.11.0", "peer"),
    Line("  ours, of that", "lone", per="peer", goal=goals.CORE_LONE_PEER),
    Line("one commit of the floor, p50", "insert2 p50", "ms"),
    Line("one commit of the floor, p99", "insert2 p99", "ms"),
    Line("an acquisition, p50", "lone p50", "ms"),
    Line("  of one commit of the floor", "lone p50", per="insert2 p50", goal=goals.CORE_LONE_P50),
    Line("an acquisition, p99", "lone p99", "ms"),
    Line("misses and errors of ours, any callers", "amiss", "", goal=goals.NO_ERRORS),
)
_SHARING_LINES = (
    Line("floor, 8 clients: two commits (pgbench)", "floor 8"),
    *_flat("tasks"),
    Line("  of the floor", "tasks 64", per="floor 8"),
    Line(
        f"  of {TASKS_RATE:,}/s or 0.7 of the floor, whichever is less",
        "tasks 64",
        per="tasks bar",
        goal=goals.CORE_TASKS,
    ),
    Line("pharox 0.11.0's asyncpg adapter, 64 tasks", "peer tasks"),
    Line("  ours, of that", "tasks 64", per="peer tasks", goal=goals.CORE_TASKS_PEER),
    Line("an acquisition of 64 tasks, p50", "tasks 64 p50", "ms"),
    Line("an acquisition of 64 tasks, p99", "tasks 64 p99", "ms"),
    *_flat("threads"),
    Line("64 threads, as they are meant to be", "threads 64", goal=goals.CORE_THREADS),
    Line("an acquisition of 64 threads, p50", "threads 64 p50", "ms"),
    Line("an acquisition of 64 threads, p99", "threads 64 p99", "ms"),
    Line(f"one caller, leases in sets of {SET}", "sets"),
    Line("  of the floor", "sets", per="floor 8", goal=goals.CORE_SETS),
)
_PROCESSES_LINES = (
    Line(f"floor, {PROCESSES} processes: two commits through bare psycopg", "insert2 8"),
    Line(f"{PROCESSES} processes", "processes"),
    Line("  of the floor", "processes", per="insert2 8"),
    Line(f"pharox 0.11.0, {PROCESSES} processes", "peer processes"),
    Line("  ours, of that", "processes", per="peer processes", goal=goals.CORE_PROCESSES_PEER),
    Line("in memory, a lone caller", "memory", goal=goals.MEMORY_RATE),
)
_KINDS = {
    "insert2": "two commits through bare psycopg",
    "lone": "a lone caller",
    "tasks 64": "64 tasks",
    "threads 64": "64 threads",
    "sets": f"sets of {SET}",
    "insert2 8": f"two commits through bare psycopg, {PROCESSES} processes",
    "processes": f"{PROCESSES} processes",
}
_PROCESSOR_LINES = (
    *(
        line
        for name, label in _KINDS.items()
        for line in (
            Line(f"{label}: callers", f"{name} cpu", "ms"),
            Line("  the server", f"{name} server", "ms"),
        )
    ),
    Line("a lone caller without logs and metrics", "observe off", "ms"),
    Line("a lone caller with logs and metrics", "observe on", "ms"),
    Line("  logs and metrics alone", "observe", "ms", goal=goals.CORE_OBSERVE),
)
_HOT_LINES = tuple(Line(table, f"{table} size", "kB") for table in HOT)
_GROWTH = Series(
    "Lease cycles by callers of one process",
    "callers",
    CALLERS,
    {kind: tuple(f"{kind} {number}" for number in CALLERS) for kind in ("tasks", "threads")},
)


def part(bench: Bench) -> Part:
    """Return the part that measures callers, in a database of ours and one of the peer."""
    if not HAS_SETS:
        bench.left_out.append(
            f"sets of {SET} by acquire_proxies(), which does not exist: they were leased one by one"
        )
    url = new_ledger(bench.url, "callers", {POOL: PROXIES})
    peer_url = new_database(bench.url, "peer")
    make_floor(url)
    seed_0_11(peer_url, POOL, PROXIES, *(f"worker-{number}" for number in range(PEER_TASKS)))
    settled(url)

    def measure() -> Figures:
        figures = {
            **_ours(url, bench.seconds),
            **_peers(peer_url, bench.seconds),
            **_observed(url, bench.seconds),
            "memory": lease.in_memory(PROXIES, bench.seconds),
            **_sizes(url),
        }
        figures["tasks bar"] = min(TASKS_RATE, 0.7 * figures["floor 8"])
        return figures

    tables = {
        "1. A lone caller": _LONE_LINES,
        "2. Callers of one process": _SHARING_LINES,
        "3. Processes, and in memory": _PROCESSES_LINES,
        "4. Processor time of a cycle": _PROCESSOR_LINES,
        "5. Hot tables after the load, 100 proxies": _HOT_LINES,
    }
    return Part("callers", tables, measure, series=(_GROWTH,))


def _ours(url: str, seconds: float) -> Figures:
    """Measure floors and our callers; those that are compared run next to each other."""
    runs = {
        "insert2": in_new_process(inserts, url, seconds),
        "lone": in_new_process(threads, url, POOL, 1, seconds),
    }
    for number in CALLERS:
        runs[f"tasks {number}"] = in_new_process(tasks, url, POOL, number, seconds)
    floor = pgbench(url, INSERT, clients=8, seconds=seconds) / 2
    runs["sets"] = in_new_process(sets, url, POOL, SET, seconds)
    for number in CALLERS:
        runs[f"threads {number}"] = in_new_process(threads, url, POOL, number, seconds)
    runs["insert2 8"] = in_processes(PROCESSES, inserts, url, seconds)
    runs["processes"] = in_processes(PROCESSES, threads, url, POOL, 1, seconds)
    figures: Figures = {"floor 8": floor, "amiss": sum(run.amiss for run in runs.values())}
    for name, run in runs.items():
        figures |= _figures(name, run)
    return figures


def _figures(name: str, run: Run) -> Figures:
    return {
        name: run.rate,
        f"{name} cpu": run.cpu_ms,
        f"{name} server": run.server_ms,
        f"{name} p50": run.p50_ms,
        f"{name} p99": run.p99_ms,
    }


def _peers(url: str, seconds: float) -> Figures:
    in_tasks = (PEER_TASKS, PEER_CONNECTIONS, seconds)
    return {
        "peer": lease.cycles(PHAROX_0_11, url, POOL, 1, seconds)["cycles"] / seconds,
        "peer processes": lease.cycles(PHAROX_0_11, url, POOL, PROCESSES, seconds)["cycles"]
        / seconds,
        "peer tasks": told_by(PHAROX_0_11, "async_cycles.py", url, POOL, *in_tasks)["cycles"]
        / seconds,
    }


def _observed(url: str, seconds: float) -> Figures:
    figures = {}
    for how in ("off", "on"):
        told = told_by(OURS, "observe_cycles.py", url, POOL, seconds, how)
        figures[f"observe {how}"] = 1000 * told["cpu_s"] / told["cycles"]
    return {**figures, "observe": figures["observe on"] - figures["observe off"]}


def _sizes(url: str) -> Figures:
    with connected(url) as connection:
        rows = connection.execute(
            "SELECT name, pg_total_relation_size(format('pharox.%%I', name)::regclass) "
            "FROM unnest(%s::text[]) AS name",
            [list(HOT)],
        ).fetchall()
    return {f"{name} size": size / 1000 for name, size in rows}
