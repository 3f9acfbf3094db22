"""PostgresStorage: the ledger itself.

Each method is one command; what a command asks the database stands in the
modules beside this one. The storage keeps no state but the engine, so any
number of threads and processes can share a ledger, and it survives a fork as
far as its engine does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from datetime import datetime, timedelta
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar, cast
from uuid import UUID

import psycopg
from sqlalchemy.engine import Engine

import projections
from pharox.log import Extract, event_from_row
from projections import Finding, State

from ...effects import call, run
from ...errors import DatabaseError, InvalidInputError
from ...events import Event
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
    check_pause,
    check_whole,
)
from ...models.ids import NIL
from ...settings import Settings
from ..combining import Batch as CombinedBatch
from ..combining import Combiner
from ..interface import IStorage
from ..list_import import (
    HALF,
    ImportReport,
    ListedIds,
    MaxRemoved,
    RemovalReport,
    import_list,
    remove_unlisted,
)
from ..requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    EndedLease,
    HealthOutcome,
    Outcomes,
    ReleaseRequest,
    ReleaseResult,
    SetAcquisition,
)
from ..requests import Command as Request
from ..validation import check_age, check_statuses, checked_model
from . import predicate_search, snapshots, verifying
from . import schema as migrations
from .batch import (
    Acquire,
    Command,
    Outcome,
    Release,
    Returned,
    command_of,
    has_predicate,
    lacks_stats,
    result_of,
)
from .commands import Commands
from .deadline import ANSWER_TIMEOUT_S, check_timeout
from .driver import Driver, Program, Session
from .folding import read_states
from .history import history_statement, positions_statement, seq_at_statement
from .lookups import Page
from .retention import archived_error, archived_statement, parts_needed, refuse_archived
from .run_batch import run_batch
from .sessions import check_prepare
from .shared_commits import error_for, splits
from .vault import Vault
from .verifying_credentials import verify_credentials

T = TypeVar("T")


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
    answer_timeout_s:
        How many seconds the server has for each answer of leasing; then it is
        asked to cancel the statement, and :data:`~.deadline.CANCEL_S` later the
        connection is given up. None for no end.
    prepare:
        Whether statements are prepared on the server; if None, unless a pooler is
        between, which may not keep those of several clients apart.
    lanes:
        How many batches of leasing may be under way at once, each on a connection of the
        engine's pool. What more callers ask for meanwhile goes out with the next.

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
        answer_timeout_s: float | None = ANSWER_TIMEOUT_S,
        prepare: bool | None = None,
        lanes: int = 1,
    ) -> None:
        if not isinstance(engine, Engine):
            raise InvalidInputError(
                "make the engine with create_engine; for an async one there is AsyncPostgresStorage"
            )
        if engine.dialect.driver != "psycopg":
            raise ValueError(
                f"the engine uses the driver {engine.dialect.driver!r}; "
                "make it with a postgresql+psycopg:// URL"
            )
        self.engine = engine
        self.schema = migrations.check_schema_name(schema)
        self._answer_timeout_s = check_timeout(answer_timeout_s)
        keys = Settings().secret_keys() if secret_keys is None else secret_keys
        self._commands = Commands(schema, Vault(keys))
        self._driver = Driver(engine, schema, prepare=check_prepare(prepare))
        self._combiner: Combiner[Command, Outcome] = Combiner(
            self._run_combined, lanes=lanes, splits=splits, error_for=error_for
        )

    def __repr__(self) -> str:
        return f"PostgresStorage({self.engine.url!r}, schema={self.schema!r})"

    # The schema

    def upgrade_schema(self) -> None:
        """Create the schema or bring it up to date; safe from many processes at once."""
        migrations.upgrade(self.engine, self.schema)

    def schema_version(self) -> str | None:
        """Return the schema's version, or None if the database has none."""
        return self._driver.run(self._commands.schema_version())

    def rotate_secrets(self) -> int:
        """Encrypt every proxy's credentials anew with the first key, and return how many."""
        return self._run(self._commands.rotate_secrets())

    def close(self) -> None:
        """Close the engine's idle connections."""
        self.engine.dispose()

    # Leasing

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Lease a proxy, or record why none was to be had.

        What other threads ask for meanwhile goes out in one statement and one commit.
        """
        return cast("Acquisition", self._acquire(request))

    def acquire_set(self, request: AcquireSetRequest) -> SetAcquisition:
        return cast("SetAcquisition", self._acquire(request))

    def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> ReleaseResult:
        command = Release(ReleaseRequest(lease, reason, with_stats))
        outcome = self._combiner.submit(command, certain=True)
        if isinstance(outcome, Returned):
            return result_of(command.request, outcome)
        return self._run_in_time(self._commands.finish_release(command, outcome))

    def run_batch(self, commands: Sequence[Request]) -> Outcomes:
        return self._run_in_time(run_batch(self._commands, commands))

    def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        expired = self._run_in_time(self._commands.expire(with_stats=with_stats))
        return len(expired), expired

    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        return self._run_in_time(self._commands.find(pool_name, filters, selector))

    def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        return self._run_in_time(
            self._commands.create_lease(proxy, consumer_name, duration_seconds)
        )

    def release_lease(self, lease: Lease) -> None:
        self.return_lease(lease)

    def cleanup_expired_leases(self) -> int:
        return self.expire_leases()[0]

    def get_lease(self, lease_id: str) -> Lease | None:
        return self._run_in_time(self._commands.lease(lease_id))

    def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        return self._run(self._commands.leases(consumer_id))

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
        return self._run(self._commands.prune(ended_before))

    # Consumers, pools and proxies

    def ensure_consumer(self, consumer_name: str) -> UUID:
        return self._run_in_time(self._commands.ensure_consumer(consumer_name))

    def add_consumer(self, consumer: Consumer) -> Consumer:
        """Register a consumer and return it, with the id it has if its name was known."""
        return self._run(self._commands.add_consumer(consumer))

    def save_pool(self, pool: ProxyPool) -> None:
        self._run(self._commands.save_pool(pool))

    def add_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one of this id."""
        self.save_pool(pool)

    def get_pool(self, pool_id: str) -> ProxyPool:
        return self._run(self._commands.pool(pool_id))

    def get_pool_by_name(self, name: str) -> ProxyPool | None:
        """Return the pool of this name, or None."""
        return self._run(self._commands.pool_by_name(name))

    def list_pools(self) -> Sequence[ProxyPool]:
        return self._run(self._commands.pools())

    def delete_pool(self, pool_id: str) -> None:
        self._run(self._commands.delete_pool(pool_id))

    def save_proxy(self, proxy: Proxy) -> None:
        self._run(self._commands.save_proxies([proxy], change=True))

    def change_proxy(self, proxy: Proxy) -> None:
        """Change a known proxy but for its status, which somebody else may decide meanwhile.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        """
        self._run(self._commands.change_proxy(proxy))

    def add_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one of this id."""
        self.save_proxy(proxy)

    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        return self._run(self._commands.save_proxies(proxies, change=False))

    def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> int:
        """Register the proxies of a list that the pool does not know, and return how many.

        One is known if the pool has its protocol, host and port with the same credentials;
        :meth:`import_list` tells more. It gets an id made of these, so two imports at once
        register it once.
        """
        return self.import_list(pool_id, [[checked_model(proxy) for proxy in proxies]]).new

    def import_list(
        self,
        pool_id: UUID,
        batches: Iterable[Sequence[Proxy]],
        *,
        update: bool = False,
        make: ProxyPool | None = None,
    ) -> ImportReport:
        """Import a list that comes in batches, however long it is; a transaction each.

        Parameters
        ----------
        batches:
            Valid proxies. Their ``id`` and ``pool_id`` do not count.
        update:
            Whether a proxy that the pool has with another password gets the list's.
        make:
            A pool to register if there is none; then only its name counts.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool.
        """
        return run(
            import_list(self._commands, self._ask, pool_id, batches, update=update, make=make), call
        )

    def remove_unlisted(
        self,
        pool_id: UUID,
        listed: ListedIds,
        *,
        source: str | None,
        max_removed: MaxRemoved = HALF,
    ) -> RemovalReport:
        """Remove the proxies of a source that its list has no more, unless somebody holds them.

        Parameters
        ----------
        listed:
            What :meth:`import_list` reported of the list.
        source:
            The label of the source; None for proxies without one.
        max_removed:
            If more would have to go, nothing is removed.
        """
        self.cleanup_expired_leases()  # Who has let go of a proxy does not hold it.
        steps = remove_unlisted(self._commands, self._ask, pool_id, listed, source, max_removed)
        return run(steps, call)

    def get_proxy(self, proxy_id: str) -> Proxy:
        return self._run(self._commands.proxy(proxy_id))

    def get_proxy_by_id(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy, or None."""
        return self._run(self._commands.proxy_by_id(proxy_id))

    def get_bare_proxy(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy without its credentials, which need not be readable, or None."""
        return self._run(self._commands.proxy_by_id(proxy_id, with_credentials=False))

    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        pool = self.get_pool(pool_id)
        return list(self.iter_proxies(pool.id))

    def iter_proxies(self, pool_id: UUID, *, with_credentials: bool = True) -> Iterator[Proxy]:
        """Yield a pool's proxies by id, a page at a time, however many there are."""
        page = partial(self._commands.proxies_page, pool_id, with_credentials=with_credentials)
        return self._pages(page)

    def delete_proxy(self, proxy_id: str) -> None:
        self._run(self._commands.delete_proxy(proxy_id))

    def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID]) -> Sequence[UUID]:
        """Remove those of a pool's proxies that nobody holds, and return their ids."""
        return self._run(self._commands.remove_idle(pool_id, proxy_ids))

    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        return self._run_in_time(self._commands.stats(pool_name))

    def list_pool_stats(self) -> Sequence[PoolStatsSnapshot]:
        """Return every pool in numbers, by name."""
        return self._run(self._commands.all_stats())

    # Health

    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        return self._run(self._commands.apply_health_check(result))

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        return self._run(self._commands.record_health_checks(results, policy))

    def set_status(
        self, proxy_id: UUID, status: ProxyStatus, *, reason: str | None = None
    ) -> Proxy:
        return self._run(self._commands.set_status(proxy_id, status, reason))

    def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> Iterator[Proxy]:
        page = partial(
            self._commands.due_page, age=check_age(stale_after), statuses=check_statuses(statuses)
        )
        pools = self._run(self._commands.pools_named(pool_name))
        return chain.from_iterable(self._pages(partial(page, pool.id)) for pool in pools)

    def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        return self._run(self._commands.last_health(proxy_id))

    def save_health_record(self, record: ProxyHealthRecord) -> None:
        self._run(self._commands.save_health_record(record))

    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        return self._run(self._commands.health_records(proxy_id, limit))

    # The log

    def seal(self) -> int:
        """Give every committed event its place in the order, and return the last one's seq.

        Whatever reads the log does so first; nobody needs to call it.
        """
        return self._run(self._commands.seal())

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
        extract.check()
        last = self.seal()
        values = extract._replace(upto=min(extract.upto, last)).given()
        statement = history_statement(self.schema, frozenset(values))
        with self.session() as session:
            positions = session.rows(
                positions_statement(self.schema), after=values["after"], upto=values["upto"]
            )
            rows = session.stream(statement, few=extract.is_narrow, **values, **positions[0])
            begun = list(islice(rows, 1))
            if not live_only:
                refuse_archived(session, self.schema, extract)
            for row in chain(begun, rows):
                yield extract.part(event_from_row(row))

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
        check_pause(poll_s, "poll_s")
        seq = self.seal() if after is None else check_whole(after, "after")
        while True:
            upto = self._run(self._commands.seal(wait=False))
            page = self._run(self._commands.events_page(seq, upto))
            for event in page:
                seq = event.seq
                yield event
            if not page:
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
        rows = self._run(self._commands.rows(seq_at_statement, moment=check_aware(moment)))
        archived = self.archived_parts(Extract())
        if later := [part for part in archived if moment < part["last_recorded_at"]]:
            raise archived_error(later)
        last_archived = max((part["last_seq"] for part in archived), default=0)
        return max(rows[0]["seq"] or 0, last_archived)

    def archived_parts(self, extract: Extract) -> Sequence[Mapping[str, Any]]:
        """Return the archived parts of the log that may hold events of an extract, oldest first.

        Each is a row of the table ``partitions``; ``archive`` is the file of its events.
        """
        return parts_needed(self._run(self._commands.rows(archived_statement)), extract)

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
        seq = min(check_whole(seq, "seq"), self.seal())
        with self.session() as session:
            folder = snapshots.fold_to(session, self.schema, wanted, seq)
            states = folder.states()
            folder.drop()
        return projections.current(states, wanted)

    def take_snapshot(self, seq: int) -> None:
        """Store every read model as it was after the event of this seq."""
        self.seal()
        with self.session() as session:
            wanted = projections.registered()
            folder = snapshots.fold_to(session, self.schema, wanted, seq)
            folder.store()
            snapshots.thin(session, self.schema, wanted, seq)
            folder.drop()

    def session(
        self, *, snapshot: bool = False, keep: bool = True
    ) -> AbstractContextManager[Session]:
        """Open a transaction for a block, on a connection of the engine's pool.

        Parameters
        ----------
        snapshot:
            Whether it sees one moment all along.
        keep:
            Whether what it wrote is kept; else it is rolled back at the end.
        """
        return self._driver.session(snapshot=snapshot, keep=keep)

    def own_session(self) -> AbstractContextManager[Session]:
        """Open a connection beside the engine's pool, in which each statement is a transaction."""
        self._check_schema()
        return self._driver.own_session()

    def live_states(self) -> dict[str, State]:
        """Return every read model as it is, its rows by key."""
        self._check_schema()
        with self.session(snapshot=True) as session:
            verifying.hold(session, self.schema, projections.registered())
            return read_states(session, self.schema, projections.registered())

    def verify(self, *, limit: int = 100) -> list[Finding]:
        """Check the whole ledger at one moment, and return what is wrong with it.

        The events are held against their seals and the chain of roots, every
        read model against the fold of the log, the counters against counts, the
        credentials against what refers to them; see
        :mod:`pharox.storage.postgres.verifying` and ``verifying_credentials`` beside it.
        Nobody waits for it.

        Parameters
        ----------
        limit:
            How many findings to return at most.
        """
        self._seal_if_possible()
        with self.session(snapshot=True, keep=False) as session:
            return _first(limit, self._findings(session, limit))

    def verify_log(self, *, limit: int = 100) -> list[Finding]:
        """Do the part of :meth:`verify` that asks whether the log was changed."""
        self._seal_if_possible()
        with self.session(snapshot=True, keep=False) as session:
            return _first(limit, verifying.verify_log(session, self.schema, limit))

    def _findings(self, session: Session, limit: int) -> Generator[Finding]:
        yield from verifying.verify(session, self.schema, projections.registered(), limit)
        yield from verify_credentials(session, self.schema, self._commands.vault)

    def _seal_if_possible(self) -> None:
        try:
            self.seal()
        except DatabaseError as error:
            # Somebody changed the ticks: what is to be sealed has its seals. It will be found.
            if not isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                raise

    # Parts

    def _acquire(self, request: AcquireRequest | AcquireSetRequest) -> Acquisition | SetAcquisition:
        if has_predicate(request):
            return self._run_in_time(predicate_search.acquire(self._commands, request))
        command = cast("Acquire", command_of(request))
        outcome = self._combiner.submit(command)
        if isinstance(outcome, Acquisition | SetAcquisition) and not lacks_stats(command, outcome):
            return outcome
        return self._run_in_time(self._commands.finish_acquisition(command, outcome))

    def _run_combined(self, batch: CombinedBatch[Command]) -> Sequence[Outcome]:
        return self._run_in_time(self._commands.carry_out(batch.commands))

    def _ask(self, step: Callable[..., Program[T]], *arguments: Any) -> T:
        return self._run(step(*arguments))

    def _run(self, program: Program[T]) -> T:
        return self._driver.run(self._commands.checked(program))

    def _run_in_time(self, program: Program[T]) -> T:
        """Run one of the programs that take milliseconds, and wait no longer than is said."""
        return self._driver.run(self._commands.checked(program), within_s=self._answer_timeout_s)

    def _pages(self, page: Callable[[UUID], Program[Page]]) -> Iterator[Proxy]:
        first: UUID | None = NIL
        while first is not None:
            proxies, first = self._run(page(first))
            yield from proxies

    def _check_schema(self) -> None:
        if not self._commands.is_checked:
            self._run(self._commands.nothing())


def _first(limit: int, findings: Generator[Finding]) -> list[Finding]:
    """Return the first findings, and end the search while its connection is still lent."""
    with closing(findings):
        return list(islice(findings, min(max(check_whole(limit, "limit"), 0), sys.maxsize)))
