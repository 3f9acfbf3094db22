"""Many writers, slow ones among them, and many sealers: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pharox.storage.postgres import PostgresStorage

from .sealing import append, check_seal, connected, seal, sealed_names

STRESS_S = float(os.environ.get("PHAROX_STRESS_SECONDS", "20"))
WRITERS = 8


def write(url: str, name: str, end: float) -> list[str]:
    """Append in transactions of random length, a tenth of them undone; return what was kept."""
    choose, kept = random.Random(name), list[str]()
    with connected(url, autocommit=False) as connection:
        while time.monotonic() < end:
            names = [f"{name} {len(kept)} {n}" for n in range(choose.randint(1, 4))]
            for consumer in names:
                append(connection, consumer)
                time.sleep(choose.choice([0, 0, 0, 0.001, 0.02]))
            if choose.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()
                kept += names
    return kept


def seal_until(url: str, is_over: threading.Event, *, wait: bool) -> None:
    """Seal again and again, sometimes in a transaction that then fails."""
    choose = random.Random(wait)
    with connected(url) as connection:
        while not is_over.is_set():
            with connection.transaction():
                seal(connection, wait=wait)
                if choose.random() < 0.1:
                    raise psycopg.Rollback
            time.sleep(choose.choice([0, 0.001, 0.005]))


def read_until(storage: PostgresStorage, is_over: threading.Event) -> list[tuple[int, str | None]]:
    """Read the log as a subscriber does: what comes after the last seq, again and again."""
    read: list[tuple[int, str | None]] = []
    while not is_over.is_set():
        after = read[-1][0] if read else 0
        read += [(event.seq, event.consumer) for event in storage.events(after=after)]
    return read


@pytest.mark.stress
def test_every_committed_event_is_sealed_once(
    postgres: PostgresStorage, database_url: str, server_url: str
) -> None:
    """Writers, sealers and a reader at once, with transactions held open here and elsewhere."""
    is_over, end = threading.Event(), time.monotonic() + STRESS_S
    with (
        connected(database_url) as sealer,
        connected(database_url, autocommit=False) as held,
        connected(server_url, autocommit=False) as foreign,
        ThreadPoolExecutor(WRITERS + 4) as pool,
    ):
        foreign.execute("SELECT pg_current_xact_id()")
        append(held, "held")
        try:
            others: list[Callable[[], Any]] = [
                lambda: seal_until(database_url, is_over, wait=False),
                lambda: seal_until(database_url, is_over, wait=False),
                lambda: seal_until(database_url, is_over, wait=True),
                lambda: read_until(postgres, is_over),
            ]
            doing = [pool.submit(other) for other in others]
            writing = [pool.submit(write, database_url, f"w{n}", end) for n in range(WRITERS)]
            committed = [name for writer in writing for name in writer.result()]
        finally:
            is_over.set()
        read = [done.result() for done in doing][-1]

        seal(sealer, wait=True)
        assert sorted(sealed_names(sealer)) == sorted(committed)
        held.commit()
        assert seal(sealer, wait=True) == len(committed) + 1
        assert [row["consumer"] for row in check_seal(sealer)][-1] == "held"
    read += [(event.seq, event.consumer) for event in postgres.events(after=len(read))]
    assert [seq for seq, _ in read] == list(range(1, len(committed) + 2))
    assert sorted(str(name) for _, name in read) == sorted([*committed, "held"])
    assert len(committed) > WRITERS
