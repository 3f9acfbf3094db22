"""Acquire and release as fast as possible, with or without logs and metrics.

    observe_cycles.py URL POOL SECONDS on|off

Lines go through the standard library to a file that discards them. Prints one
JSON object: cycles, and the seconds of processor time that they took.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

import pharox


def main() -> None:
    url, pool, seconds, how = sys.argv[1:]
    manager = pharox.ProxyManager(pharox.connect(url))
    if how == "on":
        logging.basicConfig(level=logging.INFO, stream=open(os.devnull, "w"))  # noqa: SIM115
        pharox.register_structured_logging(manager)
        pharox.register_prometheus_metrics(manager)

    def cycle() -> None:
        lease = manager.acquire_proxy(pool, "worker")
        assert lease is not None
        manager.release_proxy(lease)

    for _ in range(100):  # plans are prepared, caches filled
        cycle()
    began_cpu = time.process_time()
    cycles, end = 0, time.perf_counter() + float(seconds)
    while time.perf_counter() < end:
        cycle()
        cycles += 1
    print(json.dumps({"cycles": cycles, "cpu_s": time.process_time() - began_cpu}))


if __name__ == "__main__":
    main()
