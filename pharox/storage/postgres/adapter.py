"""PostgresStorage: the ledger on PostgreSQL, for blocking code.

Each method is one command. The other modules of this package have the SQL of the
commands. The storage's only state is its engine, so any number of threads and
processes can share a ledger, and it survives a fork as far as its engine does.
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
from pharox.log.tree import Inclusion, TreeHead
from projections import Finding, State

from ...effects import call, run
from ...errors import DatabaseError, InvalidInputError, PharoxError
from ...events import Event
from ...models import (
    ApiToken,
    Consumer,
    DueRotation,
    GatewayExit,
    HealthCheckResult,
    HealthPolicy,
    HeldLease,
    KnownTargetRules,
    Lease,
    PoolMove,
    PoolPlace,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxySource,
    ProxyStatus,
    QueueStats,
    RotationAnswer,
    RotationClaims,
    SelectorStrategy,
    SourceStatus,
    StickySession,
    TargetOutcomes,
    TargetRules,
    TargetSummary,
    Usage,
    check_aware,
    check_pause,
    check_whole,
)
from ...models.ids import NIL
from ...settings import Settings
from ..closing import finishing
from ..combining import Batch as CombinedBatch
from ..combining import Combiner
from ..interface import IStorage
from ..list_import import (
    HALF,
    ImportReport,
    ListedIds,
    Match,
    MaxRemoved,
    RemovalReport,
    import_list,
    remove_unlisted,
)
from ..moving import MoveOrder
from ..places import check_places, place_request
from ..reports import CoolDownRequest, Reported, ReportRequest
from ..requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    CommandOutcomes,
    EndedLease,
    HealthOutcome,
    ReleaseRequest,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
    SetAcquisition,
)
from ..requests import Command as Request
from ..source_sync import sync_source
from ..sources import HELD_S, RefreshResult, SourceClaim, SyncReport
from ..validation import (
    check_age,
    check_statuses,
    checked_model,
    held_page,
    id_span,
    session_page,
    target_page,
    usage_wish,
)
from . import alone, in_turn, snapshots, tree, verifying, verifying_schema, verifying_tree
from . import schema as migrations
from .attending import ThreadAttendant
from .batch import (
    Acquire,
    Command,
    CommandOutcome,
    Release,
    Returned,
    command_of,
    lacks_stats,
    result_of,
    runs_alone,
)
from .commands import Commands
from .deadline import ANSWER_TIMEOUT_S, check_timeout
from .disposing import dispose
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
        The schema of all tables. :meth:`upgrade_schema` creates it.
    secret_keys:
        Fernet keys for proxies' credentials, the encrypting one first;
        if None, those in ``PHAROX_SECRET_KEY``.
    answer_timeout_s:
        How many seconds the server has to answer each statement of leasing, and of reads such
        as pools and statistics. Then it is asked to cancel the statement, and
        :data:`~.deadline.CANCEL_S` later the connection is closed. None for no timeout.
    prepare:
        Whether to prepare statements on the server. If None, they are prepared unless
        there is a pooler, which may mix up those of several clients.
    lanes:
        How many batches of leasing may run at once, each on a connection of the
        engine's pool. Further commands wait for the next batch.

    Raises
    ------
    SecretKeyError
        If a key is invalid.

    Notes
    -----
    Every method raises :class:`SchemaError` if the schema is missing or has
    another version, and :class:`DatabaseUnavailableError` if the database cannot
    be reached.
    """

    can_wait = True
    can_stick = True
    can_fall_back = True

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
                "make the engine with create_engine; an async engine needs AsyncPostgresStorage"
            )
        if engine.dialect.driver != "psycopg":
            raise ValueError(
                f"the engine uses the driver {engine.dialect.driver!r}; "
                "make it with a postgresql+psycopg:// URL"
            )
        self.engine = engine
        self.schema = migrations.check_schema_name(schema)
        self._answer_timeout_s = check_timeout(answer_timeout_s)
        self._sealed_upto = 0
        keys = Settings().secret_keys() if secret_keys is None else secret_keys
        self._commands = Commands(schema, Vault(keys))
        self._driver = Driver(engine, schema, prepare=check_prepare(prepare))
        self._combiner: Combiner[Command, CommandOutcome] = Combiner(
            self._run_combined, lanes=lanes, splits=splits, error_for=error_for
        )
        self._attendant = ThreadAttendant(
            self._commands,
            submit=self._combiner.submit,
            ask=self._run_in_time,
            give_back=self.return_lease,
            listen=self._driver.listen,
        )

    def __repr__(self) -> str:
        return f"PostgresStorage({self.engine.url!r}, schema={self.schema!r})"

    # The schema

    def upgrade_schema(self) -> None:
        """Create or upgrade the schema. Several processes may call it at once."""
        migrations.upgrade(self.engine, self.schema)

    def schema_version(self) -> str | None:
        """Return the schema's version, or None if the database has none."""
        return self._driver.run(self._commands.schema_version())

    @property
    def vault(self) -> Vault:
        """The vault that encrypts and decrypts credentials with this storage's keys."""
        return self._commands.vault

    def rotate_secrets(self) -> int:
        """Encrypt all credentials and URLs of sources again with the first key; return how many."""
        return self._run(self._commands.rotate_all_secrets())

    def close(self) -> None:
        """Close the engine's idle connections, and attend to waiting callers no longer.

        What managers of this process have counted and not written yet is recorded first.
        """
        run(finishing(self), call)
        self._attendant.stop()
        dispose(self.engine)

    # Leasing

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Lease a proxy, or record why none was available.

        Commands of other threads are combined in one statement and one commit.
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

    def run_batch(self, commands: Sequence[Request]) -> CommandOutcomes:
        return self._run_in_time(run_batch(self._commands, commands))

    def renew_leases(
        self, requests: Sequence[RenewRequest], *, wait: bool = True
    ) -> Sequence[Lease | PharoxError]:
        return self._run_in_time(self._commands.renew(requests, wait=wait))

    def seconds_to_next_expiry(self, pool_name: str | None = None) -> float | None:
        return self._run_in_time(self._commands.next_expiry(pool_name))

    def seconds_to_next_change(
        self, pool_name: str, target: str | None = None, session: str | None = None
    ) -> float | None:
        return self._run_in_time(self._commands.next_change(pool_name, target, session))

    def report_outcomes(
        self, requests: Sequence[ReportRequest]
    ) -> Sequence[Reported | PharoxError]:
        return self._run_in_time(self._commands.report(requests))

    def set_cool_down(self, request: CoolDownRequest) -> datetime | None:
        return self._run_in_time(self._commands.freeing(self._commands.set_cool_down(request)))

    def list_target_outcomes(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        proxy_id: UUID | None = None,
        cooling: bool = False,
        after: TargetOutcomes | None = None,
        limit: int = 1000,
    ) -> list[TargetOutcomes]:
        page = target_page(pool_name, target, after, limit, proxy_id, cooling=cooling)
        return self._run(self._commands.target_outcomes(page))

    def summarize_targets(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        after: TargetSummary | None = None,
        limit: int = 1000,
    ) -> list[TargetSummary]:
        page = target_page(pool_name, target, after, limit)
        return self._run(self._commands.target_summaries(page))

    def count_unclear_targets(self, proxy_id: UUID) -> int:
        return self._run(self._commands.unclear_targets(proxy_id))

    def set_target_rules(self, rules: TargetRules) -> bool:
        return self._run_in_time(self._commands.set_target_rules(rules))

    def unset_target_rules(self, target: str) -> bool:
        return self._run_in_time(self._commands.unset_target_rules(target))

    def add_api_token(self, token: ApiToken) -> None:
        self._run_in_time(self._commands.add_api_token(token))

    def withdraw_api_token(self, token_id: UUID | str) -> bool:
        return self._run_in_time(self._commands.withdraw_api_token(token_id))

    def list_api_tokens(self) -> list[ApiToken]:
        return self._run(self._commands.api_tokens())

    def place_pool(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> bool:
        request = place_request(pool_name, ledger, instead_of)
        return self._run_in_time(self._commands.place_pool(request))

    def list_places(self, pool_names: Collection[str] | None = None) -> list[PoolPlace]:
        return self._run_in_time(self._commands.places(check_places(pool_names)))

    def record_action(
        self, action: str, subject: str, reason: str, *, pool_id: UUID | None = None
    ) -> None:
        self._run_in_time(self._commands.record_action(action, subject, reason, pool_id))

    def carry_out_move(self, order: MoveOrder) -> Any:
        return self._run(self._commands.carry_out_move(order))

    def list_pool_moves(self, pool_name: str | None = None) -> list[PoolMove]:
        return self._run_in_time(self._commands.pool_moves(pool_name))

    def list_target_rules(self) -> list[KnownTargetRules]:
        return self._run_in_time(self._commands.target_rules())

    def save_source(self, source: ProxySource) -> bool:
        return self._run_in_time(self._commands.save_source(source))

    def get_source(self, name: str) -> ProxySource:
        return self._run(self._commands.get_source(name))

    def remove_source(self, name: str) -> bool:
        return self._run_in_time(self._commands.remove_source(name))

    def list_sources(self, pool_name: str | None = None) -> list[SourceStatus]:
        return self._run(self._commands.list_sources(pool_name))

    def claim_source(
        self, name: str, *, for_seconds: float = HELD_S, only_due: bool = False
    ) -> SourceClaim | None:
        claiming = self._commands.claim_source(name, for_seconds, only_due=only_due)
        return self._run_in_time(claiming)

    def sync_source(
        self,
        claim: SourceClaim,
        listed: Sequence[Proxy],
        *,
        keeps_unlisted: bool = False,
        dry_run: bool = False,
    ) -> SyncReport:
        self.cleanup_expired_leases()  # An expired lease must not keep a proxy.
        options = {"keeps_unlisted": keeps_unlisted, "dry_run": dry_run}
        steps = sync_source(self, self._commands, self._ask, claim, listed, **options)
        report = run(steps, call)
        if report.counts.added or report.counts.returned:
            self._run(self._commands.freeing(self._commands.nothing()))
        return report

    def finish_refresh(self, claim: SourceClaim, result: RefreshResult | None) -> bool:
        return self._run_in_time(self._commands.finish_refresh(claim, result))

    def usage(
        self,
        by: Sequence[str] = ("pool",),
        *,
        pool_name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1000,
    ) -> list[Usage]:
        return self._run(self._commands.usage(usage_wish(by, pool_name, since, until, limit)))

    def list_sessions(
        self,
        pool_name: str | None = None,
        *,
        after: StickySession | None = None,
        limit: int = 1000,
    ) -> list[StickySession]:
        return self._run_in_time(self._commands.sessions(session_page(pool_name, after, limit)))

    def forget_session(self, pool_name: str, key: str) -> UUID | None:
        forgetting = self._commands.forget_session(pool_name, key)
        return self._run_in_time(self._commands.freeing(forgetting))

    def inherit_session(self, pool_name: str, old: str, new: str) -> None:
        inheriting = self._commands.inherit_session(pool_name, old, new)
        self._run_in_time(self._commands.freeing(inheriting))

    def begin_rotation(self, proxy_id: UUID, within_seconds: float | None = None) -> None:
        self._run_in_time(self._commands.begin_rotation(proxy_id, within_seconds))

    def claim_rotations(
        self, proxy_ids: Collection[UUID] | None = None, *, seconds: float = 35.0, most: int = 10
    ) -> RotationClaims:
        return self._run_in_time(self._commands.claim_rotations(proxy_ids, seconds, most))

    def answer_rotation(self, due: DueRotation, answer: RotationAnswer) -> bool:
        program = self._commands.answer_rotation(due, answer)
        return self._run_in_time(self._commands.freeing(program))

    def rotate_exit(self, lease_id: UUID) -> GatewayExit:
        return self._run_in_time(self._commands.rotate_exit(lease_id))

    def revoke_leases(self, request: RevokeRequest) -> Sequence[EndedLease | PharoxError]:
        return self._run_in_time(self._commands.freeing(self._commands.revoke(request)))

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

    def list_held_leases(
        self,
        pool_name: str | None = None,
        *,
        consumer_name: str | None = None,
        after: Lease | None = None,
        limit: int = 1000,
    ) -> list[HeldLease]:
        page = held_page(pool_name, consumer_name, after, limit)
        return self._run_in_time(self._commands.held_leases(page))

    def prune_leases(self, ended_before: datetime) -> int:
        """Delete leases that ended before a given time, from the read model only.

        The log keeps their events, and gets a ``LeasesPruned``. Leases that
        ended in the last minute are always kept.

        Returns
        -------
        int
            How many leases were deleted.

        Raises
        ------
        InvalidInputError
            If ``ended_before`` has no time zone.
        """
        return self._run(self._commands.prune(ended_before))

    # Consumers, pools and proxies

    def ensure_consumer(self, consumer_name: str) -> UUID:
        return self._run_in_time(self._commands.ensure_consumer(consumer_name))

    def add_consumer(self, consumer: Consumer) -> Consumer:
        """Register a consumer and return it, with its existing id if the name is registered."""
        return self._run(self._commands.add_consumer(consumer))

    def save_pool(self, pool: ProxyPool) -> None:
        self._run_freeing(self._commands.save_pool(pool))

    def add_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one with this id."""
        self.save_pool(pool)

    def get_pool(self, pool_id: str) -> ProxyPool:
        return self._run(self._commands.pool(pool_id))

    def get_pool_by_name(self, name: str) -> ProxyPool | None:
        """Return the pool with this name, or None."""
        return self._run_in_time(self._commands.pool_by_name(name))

    def list_pools(self) -> Sequence[ProxyPool]:
        return self._run_in_time(self._commands.pools())

    def delete_pool(self, pool_id: str) -> None:
        self._run(self._commands.delete_pool(pool_id))

    def save_proxy(self, proxy: Proxy) -> None:
        self._run_freeing(self._commands.save_proxies([proxy], change=True))

    def change_proxy(self, proxy: Proxy) -> None:
        """Change a known proxy, except its status, which somebody else may be changing.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        """
        self._run_freeing(self._commands.change_proxy(proxy))

    def add_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one with this id."""
        self.save_proxy(proxy)

    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        return self._run_freeing(self._commands.save_proxies(proxies, change=False))

    def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> int:
        """Register the proxies of a list that are new to the pool, and return how many.

        A proxy is known if the pool has its protocol, host and port with the same credentials.
        Its id is derived from these, so two concurrent imports register it once.
        :meth:`import_list` returns a detailed report.
        """
        return self.import_list(pool_id, [[checked_model(proxy, Proxy) for proxy in proxies]]).new

    def import_list(
        self,
        pool_id: UUID,
        batches: Iterable[Sequence[Proxy]],
        *,
        update: bool = False,
        make: ProxyPool | None = None,
    ) -> ImportReport:
        """Import a list of any length, batch by batch, with one transaction per batch.

        Parameters
        ----------
        batches:
            Valid proxies. Their ``id`` and ``pool_id`` are ignored.
        update:
            Whether to replace the password of a proxy whose password differs in the list.
        make:
            A pool to register if the pool does not exist. Its name identifies the pool.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool.
        """
        steps = import_list(self._commands, self._ask, pool_id, batches, update=update, make=make)
        report = run(steps, call)
        self._run(self._commands.freeing(self._commands.nothing()))
        return report

    def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> list[Match]:
        """Return a match for each proxy of a list."""
        return self._run(self._commands.match_listed(pool_id, proxies))

    def remove_unlisted(
        self,
        pool_id: UUID,
        listed: ListedIds,
        *,
        source: str | None,
        max_removed: MaxRemoved = HALF,
    ) -> RemovalReport:
        """Remove a source's proxies that are no longer in its list and are not leased.

        Parameters
        ----------
        listed:
            The ids in the report of :meth:`import_list`.
        source:
            The label of the source; None for proxies without one.
        max_removed:
            If more proxies would be removed, none is.
        """
        self.cleanup_expired_leases()  # An expired lease must not keep a proxy.
        steps = remove_unlisted(self._commands, self._ask, pool_id, listed, source, max_removed)
        return run(steps, call)

    def get_proxy(self, proxy_id: str) -> Proxy:
        return self._run_in_time(self._commands.proxy(proxy_id))

    def get_proxy_by_id(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy, or None."""
        return self._run(self._commands.proxy_by_id(proxy_id))

    def get_bare_proxy(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy without reading its credentials, or None."""
        return self._run(self._commands.proxy_by_id(proxy_id, with_credentials=False))

    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        pool = self.get_pool(pool_id)
        return list(self.iter_proxies(pool.id))

    def iter_proxies(self, pool_id: UUID, *, with_credentials: bool = True) -> Iterator[Proxy]:
        """Yield a pool's proxies ordered by id, reading one page at a time."""
        page = partial(self._commands.proxies_page, pool_id, with_credentials=with_credentials)
        return self._pages(page)

    def delete_proxy(self, proxy_id: str) -> None:
        self._run(self._commands.delete_proxy(proxy_id))

    def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID]) -> Sequence[UUID]:
        """Remove those of the given proxies that are not leased, and return their ids."""
        return self._run(self._commands.remove_idle(pool_id, proxy_ids))

    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        return self._run_in_time(self._commands.stats(pool_name))

    def list_pool_stats(self) -> Sequence[PoolStatsSnapshot]:
        """Return the statistics of every pool, ordered by name."""
        return self._run_in_time(self._commands.all_stats())

    def queue_stats(self, pool_name: str | None = None) -> list[QueueStats]:
        return self._run_in_time(self._commands.queue_stats(pool_name))

    # Health

    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        return self._run_freeing(self._commands.apply_health_check(result))

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        return self._run_freeing(self._commands.record_health_checks(results, policy))

    def set_status(
        self,
        proxy_id: UUID,
        status: ProxyStatus,
        *,
        reason: str | None = None,
        for_seconds: float | None = None,
    ) -> Proxy:
        program = self._commands.set_status(proxy_id, status, reason, for_seconds)
        return self._run_freeing(program)

    def drain_proxy(self, proxy_id: UUID, *, reason: str | None = None) -> Proxy | None:
        return self._run(self._commands.drain_proxy(proxy_id, reason))

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

    def last_checks(self, proxy_ids: Sequence[UUID]) -> dict[UUID, HealthCheckResult]:
        """Return the newest health check of each of some proxies that has one, by its id."""
        return self._run(self._commands.last_checks(proxy_ids))

    def lease_ids(self, beginning: str, *, limit: int = 10) -> list[UUID]:
        """Return the ids of leases in the log that begin so, the first ones in their order.

        Parameters
        ----------
        beginning:
            At least four digits of an id, with its dashes or without.
        limit:
            How many at most.

        Raises
        ------
        InvalidInputError
            If no id can begin so.
        """
        return self._run(self._commands.lease_ids(id_span(beginning), limit))

    def save_health_record(self, record: ProxyHealthRecord) -> None:
        self._run(self._commands.save_health_record(record))

    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        return self._run(self._commands.health_records(proxy_id, limit))

    # The log

    def seal(self) -> int:
        """Assign a ``seq`` to every committed event, and return the last one.

        All methods that read the log call it first, so callers need not.
        """
        self._sealed_upto = self._run(self._commands.seal())
        return self._sealed_upto

    def _sealed(self, upto: int) -> int:
        """Return the last seq that is not after ``upto``.

        Up to what was sealed before nothing is sealed anew: a page that reads many stretches up to
        one end has the ledger sealed once.
        """
        return upto if upto <= self._sealed_upto else min(upto, self.seal())

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """Yield the events that were committed before the call, in sealed order.

        Parameters
        ----------
        after:
            Yield only events of later ``seq``.
        """
        return self.history(Extract(after=after))

    def history(self, extract: Extract, *, live_only: bool = False) -> Iterator[Event]:
        """Yield the events of the log that match an extract, in sealed order.

        Parameters
        ----------
        extract:
            Which events.
        live_only:
            Skip archived events instead of raising an error.

        Raises
        ------
        ArchivedError
            If an event of the extract may be in an archived part of the log.
        """
        extract.check()
        values = extract._replace(upto=self._sealed(extract.upto)).given()
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
        """Yield events as they are committed, in sealed order, forever.

        Parameters
        ----------
        after:
            Start with the events after this ``seq``; None for new events only.
        poll_s:
            How many seconds to wait if there are no new events.

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

        All events before it in sealed order are in the past of the moment.

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

    def tree_size(self) -> int:
        """Return how many events the log's Merkle tree covers: all that are committed."""
        return self.seal()

    def tree_head(self, size: int | None = None) -> TreeHead:
        """Return the head of the Merkle tree over the first ``size`` events, or all.

        What is needed for it later is kept in the ledger.

        Raises
        ------
        InvalidInputError
            If the log has fewer events.
        ArchivedError
            If archived events are needed of whose tree nothing was kept.
        """
        return self._run(tree.head(self.schema, size))

    def prove_inclusion(
        self,
        seq: int,
        size: int | None = None,
        *,
        archived: Iterable[Mapping[str, Any]] = (),
    ) -> Inclusion:
        """Return the proof that an event is among the first ``size`` events, or all.

        Parameters
        ----------
        archived:
            Rows of an archive that the proof needs; ``WithArchive`` gives them.

        Raises
        ------
        InvalidInputError
            If there is no such event, or the log has fewer events than ``size``.
        ArchivedError
            If archived events are needed of whose tree nothing was kept.
        """
        return self._run(tree.inclusion(self.schema, seq, size, archived))

    def prove_consistency(self, old: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the tree over ``size`` events, or all, continues that over ``old``.

        Returns
        -------
        tuple
            Hashes for :func:`pharox.proof.proves_consistency`.

        Raises
        ------
        InvalidInputError
            If the log has fewer events.
        ArchivedError
            If archived events are needed of whose tree nothing was kept.
        """
        return self._run(tree.consistency(self.schema, old, size))

    def archived_parts(self, extract: Extract) -> Sequence[Mapping[str, Any]]:
        """Return the archived parts of the log that may contain matching events, oldest first.

        Each is a row of the table ``partitions``; ``archive`` is the file of its events.
        """
        return parts_needed(self._run(self._commands.rows(archived_statement)), extract)

    def state_at(self, seq: int) -> dict[str, State]:
        """Return all read models as they were after the event with this seq.

        The log is folded from the last stored snapshot before it. Further snapshots
        are stored on the way, so the next call is faster.

        Returns
        -------
        dict
            The rows by key, for each projection's name. Only leases that were active
            then are included.
        """
        wanted = projections.registered()
        seq = self._sealed(check_whole(seq, "seq"))
        with self.session() as session:
            folder = snapshots.fold_to(session, self.schema, wanted, seq)
            states = folder.states()
            folder.drop()
        return projections.current(states, wanted)

    def take_snapshot(self, seq: int) -> None:
        """Store all read models as they were after the event with this seq."""
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
        """Open a transaction for a ``with`` block, on a connection of the engine's pool.

        Parameters
        ----------
        snapshot:
            Whether all statements see the same snapshot (REPEATABLE READ).
        keep:
            Whether to commit at the end; else the transaction is rolled back.
        """
        return self._driver.session(snapshot=snapshot, keep=keep)

    def own_session(self) -> AbstractContextManager[Session]:
        """Open a connection in autocommit mode that is not from the engine's pool."""
        self._check_schema()
        return self._driver.own_session()

    def live_states(self) -> dict[str, State]:
        """Return the current rows of all read models by key."""
        self._check_schema()
        with self.session(snapshot=True) as session:
            verifying.hold(session, self.schema, projections.registered())
            return read_states(session, self.schema, projections.registered())

    def verify(
        self,
        *,
        limit: int = 100,
        progress: verifying.Progress | None = None,
        heads: Collection[TreeHead] = (),
        archive: verifying_tree.Archive | None = None,
    ) -> list[Finding]:
        """Verify the whole ledger in one snapshot, and return what is wrong.

        It compares the events with their seals and the chain of roots, every
        read model with the fold of the log, the counters with counts, and the
        credentials with the proxies that refer to them; see
        ``pharox.storage.postgres.verifying`` and ``verifying_credentials``.
        It blocks no other command.

        Parameters
        ----------
        limit:
            The maximum number of findings.
        progress:
            Called with what is checked now, and how many of how many checks are done; while the
            log is folded, with "fold", the seq reached and the last one.
        heads:
            Heads of the log's tree that were signed earlier, see ``pharox.proof``. The log is
            then read and hashed here, event by event, and compared with each.
        archive:
            What reads archived events: ``pharox.ledger.archive.reading.WithArchive.verify``.
            Without it what the ledger kept of their tree stands for them.
        """
        self._seal_if_possible()
        with self.session(snapshot=True, keep=False) as session:
            return _first(limit, self._findings(session, limit, progress, heads, archive))

    def verify_notes(self, *, with_archive: bool = False) -> list[str]:
        """Return what verification cannot vouch for, one sentence each: no findings.

        A function that an owner may replace was, events are archived and their files were not
        read, or credentials cannot be checked.
        """
        with self.session(snapshot=True, keep=False) as session:
            notes = list(verifying_schema.schema_notes(session, self.schema))
            if not with_archive:
                notes += verifying_tree.archive_notes(session, self.schema)
        if not self._commands.vault.has_keys:
            notes.append(
                "without PHAROX_SECRET_KEY nobody can tell whether credentials are bound to "
                "their proxies"
            )
        return notes

    def verify_log(self, *, limit: int = 100) -> list[Finding]:
        """Verify only that the log was not changed."""
        self._seal_if_possible()
        with self.session(snapshot=True, keep=False) as session:
            return _first(limit, verifying.verify_log(session, self.schema, limit))

    def _findings(
        self,
        session: Session,
        limit: int,
        progress: verifying.Progress | None,
        heads: Collection[TreeHead],
        archive: verifying_tree.Archive | None,
    ) -> Generator[Finding]:
        known = projections.registered()
        yield from verifying.verify(session, self.schema, known, limit, progress, heads, archive)
        yield from verify_credentials(session, self.schema, self._commands.vault)

    def _seal_if_possible(self) -> None:
        try:
            self.seal()
        except DatabaseError as error:
            # Somebody changed the ticks: the events to seal have seals. Verification finds it.
            if not isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                raise

    # Internals

    def _acquire(self, request: AcquireRequest | AcquireSetRequest) -> Acquisition | SetAcquisition:
        if request.wait_seconds:
            return run(in_turn.acquire(self._attendant, request), call)
        if runs_alone(request):
            return self._found(alone.acquire(self._commands, request))
        command = cast("Acquire", command_of(request))
        outcome = self._combiner.submit(command)
        if isinstance(outcome, Acquisition | SetAcquisition) and not lacks_stats(command, outcome):
            return outcome
        return self._found(self._commands.finish_acquisition(command, outcome))

    def _found(self, program: Program[Any]) -> Acquisition | SetAcquisition:
        return cast("Acquisition | SetAcquisition", self._run_in_time(program))

    def _run_combined(self, batch: CombinedBatch[Command]) -> Sequence[CommandOutcome]:
        return self._run_in_time(self._commands.carry_out(batch.commands))

    def _ask(self, step: Callable[..., Program[T]], *arguments: Any) -> T:
        return self._run(step(*arguments))

    def _run(self, program: Program[T]) -> T:
        return self._driver.run(self._commands.checked(program))

    def _run_freeing(self, program: Program[T]) -> T:
        """Run a program that may make proxies free, which somebody may wait for."""
        return self._run(self._commands.freeing(program))

    def _run_in_time(self, program: Program[T]) -> T:
        """Run a short program, with the storage's timeout for each answer."""
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
    """Return the first findings. Close the generator while it still has its connection."""
    with closing(findings):
        return list(islice(findings, min(max(check_whole(limit, "limit"), 0), sys.maxsize)))
