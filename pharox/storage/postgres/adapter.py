"""PostgresStorage: the ledger itself.

Each method is one command; what a command asks the database stands in the
modules beside this one. The storage keeps no state but the engine, so any
number of threads and processes can share a ledger, and it survives a fork as
far as its engine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from sqlalchemy.engine import Engine

import projections
from pharox.log import Extract, event_from_row
from projections import Finding, State

from ...errors import (
    DatabaseError,
    PoolNotFoundError,
    ProxyNotFoundError,
)
from ...events import Event
from ...ids import NIL, following
from ...models import (
    Consumer,
    HealthCheckResult,
    HealthPolicy,
    Lease,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    check_aware,
    check_duration,
    check_name,
)
from ...settings import Settings
from ..interface import (
    AcquireRequest,
    Acquisition,
    Ending,
    HealthOutcome,
    IStorage,
    Return,
    check_age,
    check_reason,
    check_status,
    check_statuses,
    checked_model,
    copy_ending,
    id_from_text,
    log_late_release,
    record_of_check,
    result_of_record,
)
from ..judging import Observation
from . import reading, snapshots, verifying
from . import schema as migrations
from .commands import Commands
from .driver import Driver, Program, Session
from .folding import read_states
from .history import history_statement, seal_statement, seq_at_statement
from .retention import archived_error, archived_statement, parts_needed, refuse_archived
from .sql import Query, Statement
from .vault import Vault

T = TypeVar("T")
_PAGE = 1000


class PostgresStorage(IStorage):
    """The ledger in one schema of a PostgreSQL database, version 14 or later.

    Parameters
    ----------
    engine:
        An engine of SQLAlchemy with the psycopg driver
        (``postgresql+psycopg://``). Its pool bounds the connections.
    schema:
        Where all tables are. :meth:`upgrade_schema` creates it.
    secret_keys:
        Fernet keys for proxies' credentials, the encrypting one first;
        if None, those of ``PHAROX_SECRET_KEY``.

    Raises
    ------
    SecretKeyError
        If a key is none.

    Notes
    -----
    Every method raises :class:`SchemaError` when the schema is missing or of
    another version, and :class:`DatabaseUnavailableError` when there is no
    database to be reached.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        schema: str = "pharox",
        secret_keys: Sequence[str] | None = None,
    ) -> None:
        if engine.dialect.driver != "psycopg":
            raise ValueError(
                f"the engine uses the driver {engine.dialect.driver!r}; "
                "make it with a postgresql+psycopg:// URL"
            )
        self.engine = engine
        self.schema = schema
        keys = Settings().secret_keys() if secret_keys is None else secret_keys
        self._commands = Commands(schema, Vault(keys))
        self._driver = Driver(engine, schema)
        self._checked = False

    def __repr__(self) -> str:
        return f"PostgresStorage({self.engine.url!r}, schema={self.schema!r})"

    # The schema

    def upgrade_schema(self) -> None:
        """Create the schema or bring it up to date; safe from many processes at once."""
        migrations.upgrade(self.engine, self.schema)

    def schema_version(self) -> str | None:
        """Return the schema's version, or None if the database has none."""
        with self._driver.connection() as connection:
            return migrations.current_version(connection, self.schema)

    def rotate_secrets(self) -> int:
        """Encrypt every proxy's credentials anew with the first key, and return how many."""
        return self._run(self._commands.rotate_secrets())

    def close(self) -> None:
        """Close the engine's idle connections."""
        self.engine.dispose()

    # Leasing

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Lease a proxy, or record why none was to be had: one statement, one commit."""
        check_duration(request.duration_seconds)
        check_name(request.pool_name, "pool")
        check_name(request.consumer_name, "consumer")
        return self._run(self._commands.acquire(request))

    def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> Return:
        check_reason(reason)
        program = self._commands.release(lease, reason, with_stats=with_stats)
        released, recorded, expired = self._run(program)
        if released is None:
            log_late_release(lease, recorded)
            copy_ending(recorded, lease)
            return Return(None, expired)
        copy_ending(released.lease, lease)
        return Return(Ending(lease, released.stats, reason), expired)

    def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[Ending]]:
        expired = self._run(self._commands.expire(with_stats=with_stats))
        return len(expired), expired

    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        check_name(pool_name, "pool")
        strategy = SelectorStrategy(selector or SelectorStrategy.FIRST_AVAILABLE)
        return self._run(self._commands.find(pool_name, strategy, filters))

    def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        check_duration(duration_seconds)
        check_name(consumer_name, "consumer")
        return self._run(self._commands.lease_one(proxy.id, consumer_name, duration_seconds))

    def release_lease(self, lease: Lease) -> None:
        self.return_lease(lease)

    def cleanup_expired_leases(self) -> int:
        return self.expire_leases()[0]

    def get_lease(self, lease_id: str) -> Lease | None:
        uuid = id_from_text(lease_id)
        return None if uuid is None else self._run(self._commands.lease(uuid))

    def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        uuid = None
        if consumer_id is not None and (uuid := id_from_text(consumer_id)) is None:
            return []
        rows = self._rows(reading.leases_statement, consumer_id=uuid)
        return [reading.lease_from_row(row) for row in rows]

    def prune_leases(self, ended_before: datetime) -> int:
        """Forget the leases that ended before a moment, in the read model only.

        The log keeps every one of them, and a ``LeasesPruned`` beside them. What
        ended in the last minute stays in any case.

        Returns
        -------
        int
            How many leases were forgotten.

        Raises
        ------
        InvalidInputError
            If the moment has no time zone.
        """
        return self._run(self._commands.prune(check_aware(ended_before)))

    # Consumers, pools and proxies

    def ensure_consumer(self, consumer_name: str) -> UUID:
        return self._run(self._commands.ensure_consumer(check_name(consumer_name, "consumer")))

    def add_consumer(self, consumer: Consumer) -> Consumer:
        """Register a consumer and return it, with the id it has if its name was known."""
        uuid = self._run(self._commands.ensure_consumer(consumer.name, consumer.id))
        return Consumer(id=uuid, name=consumer.name)

    def save_pool(self, pool: ProxyPool) -> None:
        self._run(self._commands.save_pool(checked_model(pool)))

    def add_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one of this id."""
        self.save_pool(pool)

    def get_pool(self, pool_id: str) -> ProxyPool:
        rows = self._rows(reading.pool_statement, pool_id=id_from_text(pool_id) or NIL)
        if not rows:
            raise PoolNotFoundError(f"Pool {pool_id!r} not found.", pool_id=pool_id)
        return reading.pool_from_row(rows[0])

    def get_pool_by_name(self, name: str) -> ProxyPool | None:
        """Return the pool of this name, or None."""
        rows = self._rows(reading.pool_by_name_statement, name=check_name(name, "pool"))
        return reading.pool_from_row(rows[0]) if rows else None

    def list_pools(self) -> Sequence[ProxyPool]:
        return [reading.pool_from_row(row) for row in self._rows(reading.pools_statement)]

    def delete_pool(self, pool_id: str) -> None:
        self._run(self._commands.delete_pool(id_from_text(pool_id) or NIL))

    def save_proxy(self, proxy: Proxy) -> None:
        self._run(self._commands.save_proxies([checked_model(proxy)], change=True))

    def add_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one of this id."""
        self.save_proxy(proxy)

    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        checked = [checked_model(proxy) for proxy in proxies]
        return self._run(self._commands.save_proxies(checked, change=False)) if checked else 0

    def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> int:
        """Register the proxies whose identity the pool does not know, and return how many.

        A proxy's identity is its pool, protocol, host, port and user. It gets an
        id made of these, so two imports at once register it once.
        """
        if not proxies:
            self.get_pool(str(pool_id))
            return 0
        checked = [checked_model(proxy) for proxy in proxies]
        return self._run(self._commands.import_proxies(pool_id, checked))

    def get_proxy(self, proxy_id: str) -> Proxy:
        uuid = id_from_text(proxy_id)
        proxy = None if uuid is None else self.get_proxy_by_id(uuid)
        if proxy is None:
            raise ProxyNotFoundError(f"Proxy {proxy_id!r} not found.", proxy_id=proxy_id)
        return proxy

    def get_proxy_by_id(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy, or None."""
        rows = self._rows(reading.proxy_statement, proxy_id=proxy_id)
        return reading.proxy_from_row(rows[0], self._commands.vault) if rows else None

    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        pool = self.get_pool(pool_id)
        return list(self.iter_proxies(pool.id))

    def iter_proxies(self, pool_id: UUID, *, with_credentials: bool = True) -> Iterator[Proxy]:
        """Yield a pool's proxies by id, a page at a time, however many there are."""
        vault = self._commands.vault if with_credentials else None
        return self._paged(reading.proxies_statement, vault, pool_id=pool_id)

    def _paged(
        self, statement: Callable[[str], Statement], vault: Vault | None, **values: Any
    ) -> Iterator[Proxy]:
        first = NIL
        while True:
            rows = self._rows(statement, from_id=first, limit=_PAGE, **values)
            for row in rows:
                yield reading.proxy_from_row(row, vault)
            if len(rows) < _PAGE:
                return
            first = following(rows[-1]["id"])

    def delete_proxy(self, proxy_id: str) -> None:
        self._run(self._commands.delete_proxy(id_from_text(proxy_id) or NIL))

    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        rows = self._rows(reading.stats_statement, name=check_name(pool_name, "pool"))
        if not rows:
            return None
        return reading.stats_from_row(pool_name, rows[0], rows[0]["collected_at"])

    def list_pool_stats(self) -> Sequence[PoolStatsSnapshot]:
        """Return every pool in numbers, by name."""
        return [
            reading.stats_from_row(row["name"], row, row["collected_at"])
            for row in self._rows(reading.stats_statement, name=None)
        ]

    # Health

    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        (outcome,) = self.record_health_checks([result])
        if not outcome.known:
            return None
        return self._run(self._commands.proxy_as_it_stands(result.proxy_id))

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        seen = [Observation(result, result.healthy) for result in map(checked_model, results)]
        return self._record(seen, policy)

    def _record(
        self, seen: Sequence[Observation], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        return self._run(self._commands.record_health_checks(seen, policy or HealthPolicy()))

    def set_status(
        self, proxy_id: UUID, status: ProxyStatus, *, reason: str | None = None
    ) -> Proxy:
        check_reason(reason)
        uuid = id_from_text(proxy_id) or NIL
        return self._run(self._commands.set_status(uuid, check_status(status), reason))

    def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> Iterator[Proxy]:
        values = {"age": check_age(stale_after), "statuses": list(check_statuses(statuses))}
        pools = self._pools_named(pool_name)
        return chain.from_iterable(
            self._paged(
                reading.due_proxies_statement, self._commands.vault, pool_id=pool.id, **values
            )
            for pool in pools
        )

    def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        rows = self._rows(reading.last_health_statement, proxy_id=proxy_id)
        return reading.health_from_row(rows[0]) if rows else None

    def save_health_record(self, record: ProxyHealthRecord) -> None:
        seen = Observation(result_of_record(record), record.reachable, counts=False)
        if not self._record([seen])[0].known:
            raise ProxyNotFoundError(
                f"Proxy {record.proxy_id} not found.", proxy_id=record.proxy_id
            )

    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        bounded = min(max(limit, 0), 2**31 - 1)
        rows = self._rows(reading.health_records_statement, proxy_id=proxy_id, limit=bounded)
        return [record_of_check(event_from_row(row)) for row in rows]

    # The log

    def seal(self) -> int:
        """Give every committed event its place in the order, and return the last one's seq.

        Whatever reads the log does so first; nobody needs to call it.
        """
        return self._seal(wait=True)

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """Yield the log in its sealed order, up to what was committed before the call.

        Parameters
        ----------
        after:
            Yield only events of later ``seq``.
        """
        return self.history(Extract(after=after))

    def history(self, extract: Extract, *, live_only: bool = False) -> Iterator[Event]:
        """Yield those events of the log that an extract means, in its sealed order.

        Parameters
        ----------
        extract:
            Which events.
        live_only:
            Leave out what was archived, instead of refusing.

        Raises
        ------
        ArchivedError
            If an event of the extract may be in an archived part of the log.
        """
        last = self.seal()
        values = extract._replace(upto=min(extract.upto, last)).given()
        statement = history_statement(self.schema, frozenset(values))
        with self._driver.session() as session:
            rows = session.stream(statement, few=extract.is_narrow, **values)
            begun = list(islice(rows, 1))
            if not live_only:
                refuse_archived(session, self.schema, extract)
            for row in chain(begun, rows):
                yield event_from_row(row)

    def follow(self, after: int | None = None, *, poll_s: float = 0.1) -> Iterator[Event]:
        """Yield events as they are committed, in their sealed order, without end.

        Parameters
        ----------
        after:
            Begin with what the log has after this ``seq``; None for new events only.
        poll_s:
            How many seconds to wait where nothing is new.

        Raises
        ------
        ArchivedError
            If the next event may have been archived.
        """
        seq = self.seal() if after is None else after
        while True:
            upto = self._seal(wait=False)
            values = {"after": seq, "upto": upto}
            statement = history_statement(self.schema, frozenset(values), limited=True)
            rows = self._ask(statement, **values, limit=_PAGE) if upto > seq else []
            if upto > seq:
                with self._driver.session() as session:
                    refuse_archived(session, self.schema, Extract(seq, upto))
            for row in rows:
                seq = row["seq"]
                yield event_from_row(row)
            if not rows:
                time.sleep(poll_s)

    def seq_at(self, moment: datetime) -> int:
        """Return the seq of the last event recorded at or before a moment; 0 if there is none.

        What lies before that event in the sealed order belongs to the moment's past.

        Raises
        ------
        ArchivedError
            If that event may have been archived.
        """
        self.seal()
        rows = self._rows(seq_at_statement, moment=check_aware(moment))
        archived = self.archived_parts(Extract())
        if later := [part for part in archived if moment < part["last_recorded_at"]]:
            raise archived_error(later)
        last_archived = max((part["last_seq"] for part in archived), default=0)
        return max(rows[0]["seq"] if rows else 0, last_archived)

    def archived_parts(self, extract: Extract) -> Sequence[Mapping[str, Any]]:
        """Return the archived parts of the log that may hold events of an extract, oldest first.

        Each is a row of the table ``partitions``; ``archive`` is the file of its events.
        """
        return parts_needed(self._rows(archived_statement), extract)

    def state_at(self, seq: int) -> dict[str, State]:
        """Return every read model as it was after the event of this seq.

        The log is folded from the last stored snapshot before it, and leaves
        further ones behind on the way, so a long way is gone once.

        Returns
        -------
        dict
            For each projection's name, its rows by key. Of leases only those
            that were active then.
        """
        wanted = projections.registered()
        seq = min(seq, self.seal())
        with self._driver.session() as session:
            folder = snapshots.fold_to(session, self.schema, wanted, seq)
            states = folder.states()
            folder.drop()
        return projections.standing(states, wanted)

    def take_snapshot(self, seq: int) -> None:
        """Store every read model as it was after the event of this seq."""
        self.seal()
        with self._driver.session() as session:
            folder = snapshots.fold_to(session, self.schema, projections.registered(), seq)
            folder.store()
            folder.drop()

    def own_session(self) -> AbstractContextManager[Session]:
        """Open a connection beside the engine's pool, in which each statement is a transaction."""
        self._check_schema()
        return self._driver.own_session()

    def live_states(self) -> dict[str, State]:
        """Return every read model as it is, its rows by key."""
        self._check_schema()
        with self._driver.session(snapshot=True) as session:
            verifying.hold(session, self.schema, projections.registered())
            return read_states(session, self.schema, projections.registered())

    def verify(self, *, limit: int = 100) -> list[Finding]:
        """Check the whole ledger at one moment, and return what is wrong with it.

        The events are held against their seals and the chain of roots, every
        read model against the fold of the log, the counters against counts;
        see :mod:`pharox.storage.postgres.verifying`. Nobody waits for it.

        Parameters
        ----------
        limit:
            How many findings to return at most.
        """
        self._seal_if_possible()
        with self._driver.session(snapshot=True, keep=False) as session:
            return _first(limit, verifying.verify(session, self.schema, projections.registered()))

    def verify_log(self, *, limit: int = 100) -> list[Finding]:
        """Do the part of :meth:`verify` that asks whether the log was changed."""
        self._seal_if_possible()
        with self._driver.session(snapshot=True, keep=False) as session:
            return _first(limit, verifying.verify_log(session, self.schema))

    def _seal_if_possible(self) -> None:
        try:
            self.seal()
        except DatabaseError as error:
            # Somebody changed the ticks: what is to be sealed has its seals. It will be found.
            if not isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                raise

    # Parts

    def _run(self, program: Program[T]) -> T:
        self._check_schema()
        return self._driver.run(program)

    def _rows(self, statement: Callable[[str], Statement], **values: Any) -> list[dict[str, Any]]:
        return self._ask(statement(self.schema), **values)

    def _ask(self, statement: Statement, **values: Any) -> list[dict[str, Any]]:
        def program() -> Program[list[dict[str, Any]]]:
            return (yield Query(statement, values))  # type: ignore[no-any-return]

        return self._run(program())

    def _seal(self, *, wait: bool) -> int:
        (row,) = self._ask(seal_statement(self.schema, wait=wait))
        return row["seq"]  # type: ignore[no-any-return]

    def _check_schema(self) -> None:
        if not self._checked:
            migrations.check_version(self.schema_version(), self.schema)
            self._checked = True


def _first(limit: int, findings: Generator[Finding]) -> list[Finding]:
    """Return the first findings, and end the search while its connection is still lent."""
    with closing(findings):
        return list(islice(findings, limit))
