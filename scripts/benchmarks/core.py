"""The command core: callers of one process, floors and pharox 0.11.0, and the cost of a cycle.

A caller leases a proxy and gives it back, which is a cycle. Callers are threads or tasks of one
process that share a storage as `pharox.connect()` makes it, or processes. The floors are commits
of one single-row INSERT: two of them through bare psycopg by one caller, and two of them by
pgbench with 8 clients. Processor time is that of the callers' processes and of all processes
of the server, as the kernel counts it.

Bytes of log are those of the tables of events, seals and ticks with their indexes, once the
events are sealed. Bytes of the write-ahead log are the sizes of its records without full-page
images, as pg_waldump counts them.
"""

from __future__ import annotations

from scripts.benchmarks import core_bytes, core_long, core_partitions, core_rates
from scripts.benchmarks.parts import Bench, Part


def prepare(bench: Bench) -> list[Part]:
    """Return the parts that measure rates of callers, bytes, many partitions, and a long log."""
    return [
        core_rates.part(bench),
        core_bytes.part(bench),
        core_partitions.part(bench),
        core_long.part(bench),
    ]
