"""Leases with eventsourcing 9.5.6, built as in its documentation; runs in its environment.

    ledger_eventsourcing.py append URL CLIENTS SECONDS
    ledger_eventsourcing.py project URL EVENTS

A proxy is an aggregate with an event for each acquisition and release. The projection has the same
data as our two busiest read models: the proxies that can be leased, and the pool's counters. Its
runner has no batches: each event is a transaction, so one prepared statement writes both tables,
besides the tracking record. Prints one JSON object: events and seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.sql import SQL

PROXIES = 100


class Proxy(Aggregate):
    """A proxy that one worker can hold."""

    def __init__(self) -> None:
        self.lease_id: UUID | None = None

    @event("Acquired")
    def acquire(self, lease_id: UUID, consumer: str, pool_name: str) -> None:
        self.lease_id = lease_id

    @event("Released")
    def release(self, lease_id: UUID, consumer: str, pool_name: str) -> None:
        self.lease_id = None


class Leases(Application[UUID]):
    """The application that stores proxies."""


class Availability(PostgresTrackingRecorder):
    """The read models: available proxies, and the pool's counters."""

    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        self.sql_create_statements += [
            SQL(
                "CREATE TABLE IF NOT EXISTS available ("
                "proxy_id uuid PRIMARY KEY, leases int NOT NULL) WITH (fillfactor = 70)"
            ),
            SQL(
                "CREATE TABLE IF NOT EXISTS counters (pool text PRIMARY KEY, total bigint NOT NULL,"
                " available bigint NOT NULL, leased bigint NOT NULL) WITH (fillfactor = 50)"
            ),
        ]

    def register(self, proxy_id: UUID, tracking: Tracking) -> None:
        self._write(
            "WITH one AS (INSERT INTO available VALUES (%s, 0)) "
            "INSERT INTO counters AS c VALUES ('bench', 1, 1, 0) "
            "ON CONFLICT (pool) DO UPDATE SET total = c.total + 1, available = c.available + 1",
            (proxy_id,),
            tracking,
        )

    def lease(self, proxy_id: UUID, leases: int, tracking: Tracking) -> None:
        self._write(
            "WITH one AS (UPDATE available SET leases = leases + %s WHERE proxy_id = %s) "
            "UPDATE counters SET available = available - %s, leased = leased + %s "
            "WHERE pool = 'bench'",
            (leases, proxy_id, leases, leases),
            tracking,
        )

    def _write(self, statement: str, values: tuple[Any, ...], tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(statement, values, prepare=True)


class KeepAvailability(Projection[Availability]):
    """Folds the events of proxies into the read models."""

    name = "availability"

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        raise NotImplementedError(type(domain_event))

    @process_event.register
    def registered(self, domain_event: Proxy.Created, tracking: Tracking) -> None:
        self.view.register(domain_event.originator_id, tracking)

    @process_event.register
    def acquired(self, domain_event: Proxy.Acquired, tracking: Tracking) -> None:
        self.view.lease(domain_event.originator_id, 1, tracking)

    @process_event.register
    def released(self, domain_event: Proxy.Released, tracking: Tracking) -> None:
        self.view.lease(domain_event.originator_id, -1, tracking)


def environment(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path.removeprefix("/"),
        "POSTGRES_HOST": query["host"][0],
        "POSTGRES_PORT": query["port"][0],
        "POSTGRES_USER": parts.username or "postgres",
        "POSTGRES_PASSWORD": "",
    }


def lease_once(proxy: Proxy) -> None:
    lease_id = uuid4()
    proxy.acquire(lease_id, consumer="worker-1", pool_name="bench")
    proxy.release(lease_id, consumer="worker-1", pool_name="bench")


def project(url: str, events: int) -> dict[str, float]:
    """Save a number of events, one proxy at a time, and let the runner fold them."""
    env = environment(url)
    with Leases(env=env) as application:
        for _ in range(PROXIES):
            proxy = Proxy()
            for _ in range(events // PROXIES // 2):
                lease_once(proxy)
            application.save(proxy)
        last = application.recorder.max_notification_id()
    began = time.monotonic()
    with ProjectionRunner(
        application_class=Leases,
        projection_class=KeepAvailability,
        view_class=Availability,
        env=env,
    ) as runner:
        while not runner.view.has_tracking_id(runner.app_name, last):
            if runner.is_interrupted.wait(0.02):  # the runner's own wait() looks less often
                runner.run_forever()  # raises what ended it
        seconds = time.monotonic() - began
    return {"events": last or 0, "seconds": seconds}


def append(url: str, clients: int, seconds: float) -> dict[str, float]:
    with Leases(env=environment(url)):
        pass  # its tables are there before the clients come
    context = multiprocessing.get_context("spawn")
    with context.Manager() as shared:
        ready = shared.Barrier(clients)
        with context.Pool(clients) as pool:
            asked = [(url, ready, seconds)] * clients
            return {"events": sum(pool.starmap(append_one_by_one, asked)), "seconds": seconds}


def append_one_by_one(url: str, ready: Any, seconds: float) -> int:
    """Save events of this process's own proxy one by one, and return their number."""
    with Leases(env={**environment(url), "CREATE_TABLE": "no"}) as application:
        proxy = Proxy()
        application.save(proxy)
        ready.wait(60)
        saved, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            lease_id = uuid4()
            proxy.acquire(lease_id, consumer="worker-1", pool_name="bench")
            application.save(proxy)
            proxy.release(lease_id, consumer="worker-1", pool_name="bench")
            application.save(proxy)
            saved += 2
    return saved


def main() -> None:
    task, url, *asked = sys.argv[1:]
    if task == "append":
        told = append(url, int(asked[0]), float(asked[1]))
    else:
        told = project(url, int(asked[0]))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
