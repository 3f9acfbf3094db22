"""AsyncPostgresStorage: the ledger on PostgreSQL, for asyncio.

It runs the programs of :class:`PostgresStorage` on an async engine. Both can be
used on one ledger at once. Work that reads or folds the whole log (verify, rebuild,
replay, archives) belongs in a thread: :meth:`~AsyncPostgresStorage.blocking` returns
the same ledger for blocking code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self, TypeVar, cast
from uuid import UUID

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

from pharox.log.tree import Inclusion, TreeHead

from ...effects import call_async, run_async
from ...effects.cancelling import with_outcome
from ...errors import InvalidInputError, PharoxError
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
    check_pause,
    check_whole,
)
from ...models.ids import NIL
from ...settings import Settings
from ..async_interface import IAsyncStorage
from ..closing import finishing
from ..combining import AsyncCombiner
from ..combining import Batch as CombinedBatch
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
    new_leases,
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
from . import alone, in_turn, tree
from .adapter import PostgresStorage
from .async_driver import AsyncDriver, Stops
from .attending import TaskAttendant
from .batch import (
    Acquire,
    Command,
    CommandOutcome,
    Release,
    Returned,
    command_of,
    expired_of,
    lacks_stats,
    result_of,
    runs_alone,
)
from .commands import Commands
from .deadline import ANSWER_TIMEOUT_S, check_timeout
from .disposing import dispose_async
from .driver import Program
from .lookups import Page
from .run_batch import run_batch
from .schema import check_schema_name
from .sessions import OURS, check_prepare
from .shared_commits import error_for, splits
from .vault import Vault

T = TypeVar("T")


class AsyncPostgresStorage(IAsyncStorage):
    """The ledger in one schema of a PostgreSQL database, version 14 or later.

    Parameters
    ----------
    engine:
        An async engine of SQLAlchemy with the psycopg driver
        (``create_async_engine("postgresql+psycopg://...")``). Its pool bounds
        the connections; tasks wait for one up to the pool's timeout. Like
        the engine, a storage belongs to one event loop.
    schema:
        The schema of all tables. :meth:`upgrade_schema` creates it.
    secret_keys:
        Fernet keys for proxies' credentials, the encrypting one first;
        if None, those in ``PHAROX_SECRET_KEY``.
    answer_timeout_s:
        How many seconds the server has to answer each statement of leasing. Then it is
        asked to cancel the statement, and :data:`~.deadline.CANCEL_S` later the
        connection is closed. None for no timeout.
    prepare:
        Whether to prepare statements on the server. If None, they are prepared unless
        there is a pooler, which may mix up those of several clients.
    lanes:
        How many batches of leasing may run at once, each on a connection of the
        engine's pool. Further commands wait for the next batch.

    Raises
    ------
    InvalidInputError
        If the engine is not async, or has another driver.
    SecretKeyError
        If a key is invalid.

    Notes
    -----
    Every method raises :class:`SchemaError` if the schema is missing or has
    another version, and :class:`DatabaseUnavailableError` if the database cannot
    be reached. A cancelled task waits for the statement that it has sent, for a
    few seconds at most. The lease of a cancelled acquisition is released.
    """

    can_wait = True
    can_stick = True
    can_fall_back = True

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        schema: str = "pharox",
        secret_keys: Sequence[str] | None = None,
        answer_timeout_s: float | None = ANSWER_TIMEOUT_S,
        prepare: bool | None = None,
        lanes: int = 1,
    ) -> None:
        if not isinstance(engine, AsyncEngine):
            raise InvalidInputError("the engine is not async; make it with create_async_engine")
        if engine.dialect.driver != "psycopg":
            raise InvalidInputError(
                f"the engine uses the driver {engine.dialect.driver!r}; "
                "make it with a postgresql+psycopg:// URL"
            )
        self.engine = engine
        self.schema = check_schema_name(schema)
        self._answer_timeout_s = check_timeout(answer_timeout_s)
        self._keys = Settings().secret_keys() if secret_keys is None else secret_keys
        self._commands = Commands(schema, Vault(self._keys))
        self._prepare = check_prepare(prepare)
        self._driver = AsyncDriver(engine, schema, prepare=prepare)
        self._combiner: AsyncCombiner[Command, CommandOutcome] = AsyncCombiner(
            self._run_combined, lanes=lanes, splits=splits, error_for=error_for
        )
        self._attendant = TaskAttendant(
            self._commands,
            submit=self._combiner.submit,
            ask=self._ended_in_time,
            give_back=self._give_up,
            listen=self._driver.listen,
        )
        self._blocking: PostgresStorage | None = None

    def __repr__(self) -> str:
        return f"AsyncPostgresStorage({self.engine.url!r}, schema={self.schema!r})"

    # The schema, and the ledger for threads

    async def upgrade_schema(self) -> None:
        """Create or upgrade the schema. Several processes may call it at once."""
        await asyncio.to_thread((await self.blocking()).upgrade_schema)

    async def schema_version(self) -> str | None:
        """Return the schema's version, or None if the database has none."""
        return _unless_cancelled(*await self._driver.run(self._commands.schema_version()))

    async def ping(self) -> None:
        """Check that the database can be reached."""
        await self.schema_version()

    async def rotate_secrets(self) -> int:
        """Encrypt all credentials and URLs of sources again with the first key; return how many."""
        return await self._run(self._commands.rotate_all_secrets())

    async def blocking(self) -> PostgresStorage:
        """Return the same ledger for blocking code, to be used in threads.

        It connects with the parameters and the ``prepare_threshold`` of this storage's
        engine, and prepares statements if this storage does. It has its own pool, and is
        closed with this storage.
        """
        if self._blocking is None:
            parameters = await self._driver.connection_parameters()
            engine = create_engine(
                "postgresql+psycopg://",
                creator=lambda: psycopg.connect(**parameters),
                isolation_level="AUTOCOMMIT",
                pool_reset_on_return=None,
                hide_parameters=True,
                execution_options={OURS: True},
            )
            # Another task may have created it while this one waited.
            self._blocking = self._blocking or PostgresStorage(
                engine,
                schema=self.schema,
                secret_keys=self._keys,
                answer_timeout_s=self._answer_timeout_s,
                prepare=self._prepare,
            )
        return self._blocking

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Tasks that still use the storage would open new ones.

        What managers of this process have counted and not written yet is recorded first.
        """
        await run_async(finishing(self), call_async)
        await self._attendant.stop()
        if self._blocking is not None:
            await asyncio.to_thread(self._blocking.close)
        await dispose_async(self.engine)

    # Leasing

    async def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Lease a proxy, or record why none was available.

        Commands of other tasks are combined in one statement and one commit.
        """
        return cast("Acquisition", await self._acquire(request, "acquire_lease"))

    async def acquire_set(self, request: AcquireSetRequest) -> SetAcquisition:
        return cast("SetAcquisition", await self._acquire(request, "acquire_set"))

    async def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        program = self._commands.create_lease(proxy, consumer_name, duration_seconds)
        lease, cancelled = await self._ended_in_time(program, stops="before the first step")
        if cancelled is not None:
            await self._give_up(lease)
            raise cancelled
        return lease

    async def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> ReleaseResult:
        command = Release(ReleaseRequest(lease, reason, with_stats))
        outcome, cancelled = await self._combiner.submit(command, certain=True)
        if isinstance(outcome, Returned):
            returned = result_of(command.request, outcome)
        else:
            program = self._commands.finish_release(command, outcome)
            returned, again = await self._ended_in_time(program, stops="never")
            cancelled = cancelled or again
        if cancelled is not None:
            raise with_outcome(cancelled, "return_lease", returned)
        return returned

    async def run_batch(self, commands: Sequence[Request]) -> CommandOutcomes:
        program = run_batch(self._commands, commands)
        outcomes, cancelled = await self._ended_in_time(program, stops="before the first step")
        if cancelled is not None:
            for lease in new_leases(outcomes):
                await self._give_up(lease)
            raise with_outcome(cancelled, "run_batch", outcomes)
        return outcomes

    async def renew_leases(
        self, requests: Sequence[RenewRequest], *, wait: bool = True
    ) -> Sequence[Lease | PharoxError]:
        return await self._run_in_time(self._commands.renew(requests, wait=wait))

    async def seconds_to_next_expiry(self, pool_name: str | None = None) -> float | None:
        return await self._run_in_time(self._commands.next_expiry(pool_name))

    async def seconds_to_next_change(
        self, pool_name: str, target: str | None = None, session: str | None = None
    ) -> float | None:
        return await self._run_in_time(self._commands.next_change(pool_name, target, session))

    async def report_outcomes(
        self, requests: Sequence[ReportRequest]
    ) -> Sequence[Reported | PharoxError]:
        program = self._commands.report(requests)
        outcomes, cancelled = await self._ended_in_time(program, stops="never")
        if cancelled is not None:
            raise with_outcome(cancelled, "report_outcomes", outcomes)
        return outcomes

    async def set_cool_down(self, request: CoolDownRequest) -> datetime | None:
        return await self._run_in_time(
            self._commands.freeing(self._commands.set_cool_down(request))
        )

    async def list_target_outcomes(
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
        return await self._run(self._commands.target_outcomes(page))

    async def summarize_targets(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        after: TargetSummary | None = None,
        limit: int = 1000,
    ) -> list[TargetSummary]:
        page = target_page(pool_name, target, after, limit)
        return await self._run(self._commands.target_summaries(page))

    async def count_unclear_targets(self, proxy_id: UUID) -> int:
        return await self._run(self._commands.unclear_targets(proxy_id))

    async def set_target_rules(self, rules: TargetRules) -> bool:
        return await self._run_in_time(self._commands.set_target_rules(rules))

    async def unset_target_rules(self, target: str) -> bool:
        return await self._run_in_time(self._commands.unset_target_rules(target))

    async def add_api_token(self, token: ApiToken) -> None:
        await self._run_in_time(self._commands.add_api_token(token))

    async def withdraw_api_token(self, token_id: UUID | str) -> bool:
        return await self._run_in_time(self._commands.withdraw_api_token(token_id))

    async def list_api_tokens(self) -> list[ApiToken]:
        return await self._run(self._commands.api_tokens())

    async def place_pool(
        self, pool_name: str, ledger: str, *, instead_of: str | None = None
    ) -> bool:
        request = place_request(pool_name, ledger, instead_of)
        return await self._run_in_time(self._commands.place_pool(request))

    async def list_places(self, pool_names: Collection[str] | None = None) -> list[PoolPlace]:
        return await self._run_in_time(self._commands.places(check_places(pool_names)))

    async def record_action(
        self, action: str, subject: str, reason: str, *, pool_id: UUID | None = None
    ) -> None:
        await self._run_in_time(self._commands.record_action(action, subject, reason, pool_id))

    async def carry_out_move(self, order: MoveOrder) -> Any:
        return await self._run(self._commands.carry_out_move(order))

    async def list_pool_moves(self, pool_name: str | None = None) -> list[PoolMove]:
        return await self._run_in_time(self._commands.pool_moves(pool_name))

    async def list_target_rules(self) -> list[KnownTargetRules]:
        return await self._run_in_time(self._commands.target_rules())

    async def save_source(self, source: ProxySource) -> bool:
        return await self._run_in_time(self._commands.save_source(source))

    async def get_source(self, name: str) -> ProxySource:
        return await self._run(self._commands.get_source(name))

    async def remove_source(self, name: str) -> bool:
        return await self._run_in_time(self._commands.remove_source(name))

    async def list_sources(self, pool_name: str | None = None) -> list[SourceStatus]:
        return await self._run(self._commands.list_sources(pool_name))

    async def claim_source(
        self, name: str, *, for_seconds: float = HELD_S, only_due: bool = False
    ) -> SourceClaim | None:
        claiming = self._commands.claim_source(name, for_seconds, only_due=only_due)
        return await self._run_in_time(claiming)

    async def sync_source(
        self,
        claim: SourceClaim,
        listed: Sequence[Proxy],
        *,
        keeps_unlisted: bool = False,
        dry_run: bool = False,
    ) -> SyncReport:
        await self.cleanup_expired_leases()  # An expired lease must not keep a proxy.
        options = {"keeps_unlisted": keeps_unlisted, "dry_run": dry_run}
        steps = sync_source(self, self._commands, self._ask, claim, listed, **options)
        report = await run_async(steps, call_async)
        if report.counts.added or report.counts.returned:
            await self._run(self._commands.freeing(self._commands.nothing()))
        return report

    async def finish_refresh(self, claim: SourceClaim, result: RefreshResult | None) -> bool:
        return await self._run_in_time(self._commands.finish_refresh(claim, result))

    async def usage(
        self,
        by: Sequence[str] = ("pool",),
        *,
        pool_name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1000,
    ) -> list[Usage]:
        return await self._run(self._commands.usage(usage_wish(by, pool_name, since, until, limit)))

    async def list_sessions(
        self,
        pool_name: str | None = None,
        *,
        after: StickySession | None = None,
        limit: int = 1000,
    ) -> list[StickySession]:
        return await self._run_in_time(
            self._commands.sessions(session_page(pool_name, after, limit))
        )

    async def forget_session(self, pool_name: str, key: str) -> UUID | None:
        forgetting = self._commands.forget_session(pool_name, key)
        return await self._run_in_time(self._commands.freeing(forgetting))

    async def inherit_session(self, pool_name: str, old: str, new: str) -> None:
        inheriting = self._commands.inherit_session(pool_name, old, new)
        await self._run_in_time(self._commands.freeing(inheriting))

    async def begin_rotation(self, proxy_id: UUID, within_seconds: float | None = None) -> None:
        await self._run_in_time(self._commands.begin_rotation(proxy_id, within_seconds))

    async def claim_rotations(
        self, proxy_ids: Collection[UUID] | None = None, *, seconds: float = 35.0, most: int = 10
    ) -> RotationClaims:
        return await self._run_in_time(self._commands.claim_rotations(proxy_ids, seconds, most))

    async def answer_rotation(self, due: DueRotation, answer: RotationAnswer) -> bool:
        program = self._commands.answer_rotation(due, answer)
        return await self._run_in_time(self._commands.freeing(program))

    async def rotate_exit(self, lease_id: UUID) -> GatewayExit:
        return await self._run_in_time(self._commands.rotate_exit(lease_id))

    async def revoke_leases(self, request: RevokeRequest) -> Sequence[EndedLease | PharoxError]:
        program = self._commands.freeing(self._commands.revoke(request))
        outcomes, cancelled = await self._ended_in_time(program, stops="before the first step")
        if cancelled is not None:
            raise with_outcome(cancelled, "revoke_leases", outcomes)
        return outcomes

    async def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        program = self._commands.expire(with_stats=with_stats)
        expired, cancelled = await self._ended_in_time(program, stops="before the first step")
        if cancelled is not None:
            raise with_outcome(cancelled, "expire_leases", (len(expired), expired))
        return len(expired), expired

    async def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        return await self._run_in_time(self._commands.find(pool_name, filters, selector))

    async def release_lease(self, lease: Lease) -> None:
        await self.return_lease(lease)

    async def cleanup_expired_leases(self) -> int:
        return (await self.expire_leases())[0]

    async def get_lease(self, lease_id: str) -> Lease | None:
        return await self._run_in_time(self._commands.lease(lease_id))

    async def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        return await self._run(self._commands.leases(consumer_id))

    async def list_held_leases(
        self,
        pool_name: str | None = None,
        *,
        consumer_name: str | None = None,
        after: Lease | None = None,
        limit: int = 1000,
    ) -> list[HeldLease]:
        page = held_page(pool_name, consumer_name, after, limit)
        return await self._run_in_time(self._commands.held_leases(page))

    async def prune_leases(self, ended_before: datetime) -> int:
        """Delete leases that ended before a given time, from the read model only."""
        return await self._run(self._commands.prune(ended_before))

    # Consumers, pools and proxies

    async def ensure_consumer(self, consumer_name: str) -> UUID:
        return await self._run_in_time(self._commands.ensure_consumer(consumer_name))

    async def add_consumer(self, consumer: Consumer) -> Consumer:
        """Register a consumer and return it, with its existing id if the name is registered."""
        return await self._run(self._commands.add_consumer(consumer))

    async def save_pool(self, pool: ProxyPool) -> None:
        await self._run(self._commands.freeing(self._commands.save_pool(pool)))

    async def get_pool(self, pool_id: str) -> ProxyPool:
        return await self._run(self._commands.pool(pool_id))

    async def get_pool_by_name(self, name: str) -> ProxyPool | None:
        """Return the pool with this name, or None."""
        return await self._run_in_time(self._commands.pool_by_name(name))

    async def list_pools(self) -> Sequence[ProxyPool]:
        return await self._run_in_time(self._commands.pools())

    async def delete_pool(self, pool_id: str) -> None:
        await self._run(self._commands.delete_pool(pool_id))

    async def save_proxy(self, proxy: Proxy) -> None:
        await self._run(self._commands.freeing(self._commands.save_proxies([proxy], change=True)))

    async def change_proxy(self, proxy: Proxy) -> None:
        """Change a known proxy, except its status, which somebody else may be changing."""
        await self._run(self._commands.freeing(self._commands.change_proxy(proxy)))

    async def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        return await self._run(
            self._commands.freeing(self._commands.save_proxies(proxies, change=False))
        )

    async def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> int:
        """Register the proxies of a list that are new to the pool, and return how many."""
        batch = [checked_model(proxy, Proxy) for proxy in proxies]
        return (await self.import_list(pool_id, [batch])).new

    async def import_list(
        self,
        pool_id: UUID,
        batches: Iterable[Sequence[Proxy]],
        *,
        update: bool = False,
        make: ProxyPool | None = None,
    ) -> ImportReport:
        """Import a list of any length, batch by batch, with one transaction per batch."""
        steps = import_list(self._commands, self._ask, pool_id, batches, update=update, make=make)
        report = await run_async(steps, call_async)
        await self._run(self._commands.freeing(self._commands.nothing()))
        return report

    async def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> list[Match]:
        """Return a match for each proxy of a list."""
        return await self._run(self._commands.match_listed(pool_id, proxies))

    async def remove_unlisted(
        self,
        pool_id: UUID,
        listed: ListedIds,
        *,
        source: str | None,
        max_removed: MaxRemoved = HALF,
    ) -> RemovalReport:
        """Remove a source's proxies that are no longer in its list and are not leased."""
        await self.cleanup_expired_leases()  # An expired lease must not keep a proxy.
        steps = remove_unlisted(self._commands, self._ask, pool_id, listed, source, max_removed)
        return await run_async(steps, call_async)

    async def get_proxy(self, proxy_id: str) -> Proxy:
        return await self._run_in_time(self._commands.proxy(proxy_id))

    async def get_proxy_by_id(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy, or None."""
        return await self._run(self._commands.proxy_by_id(proxy_id))

    async def get_bare_proxy(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy without reading its credentials, or None."""
        return await self._run(self._commands.proxy_by_id(proxy_id, with_credentials=False))

    async def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        pool = await self.get_pool(pool_id)
        return [proxy async for proxy in self.iter_proxies(pool.id)]

    def iter_proxies(self, pool_id: UUID, *, with_credentials: bool = True) -> AsyncIterator[Proxy]:
        """Yield a pool's proxies ordered by id, reading one page at a time."""
        page = partial(self._commands.proxies_page, pool_id, with_credentials=with_credentials)
        return self._pages(page)

    async def delete_proxy(self, proxy_id: str) -> None:
        await self._run(self._commands.delete_proxy(proxy_id))

    async def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID]) -> Sequence[UUID]:
        """Remove those of the given proxies that are not leased, and return their ids."""
        return await self._run(self._commands.remove_idle(pool_id, proxy_ids))

    async def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        return await self._run_in_time(self._commands.stats(pool_name))

    async def list_pool_stats(self) -> Sequence[PoolStatsSnapshot]:
        """Return the statistics of every pool, ordered by name."""
        return await self._run_in_time(self._commands.all_stats())

    async def queue_stats(self, pool_name: str | None = None) -> list[QueueStats]:
        return await self._run_in_time(self._commands.queue_stats(pool_name))

    # Health

    async def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        program = self._commands.freeing(self._commands.apply_health_check(result))
        return _unless_cancelled(*await self._ended(program, stops="before the first step"))

    async def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        program = self._commands.freeing(self._commands.record_health_checks(results, policy))
        outcomes, cancelled = await self._ended(program, stops="before the first step")
        if cancelled is not None:
            raise with_outcome(cancelled, "record_health_checks", outcomes)
        return outcomes

    async def set_status(
        self,
        proxy_id: UUID,
        status: ProxyStatus,
        *,
        reason: str | None = None,
        for_seconds: float | None = None,
    ) -> Proxy:
        change = self._commands.set_status(proxy_id, status, reason, for_seconds)
        program = self._commands.freeing(change)
        return _unless_cancelled(*await self._ended(program, stops="before the first step"))

    async def drain_proxy(self, proxy_id: UUID, *, reason: str | None = None) -> Proxy | None:
        program = self._commands.drain_proxy(proxy_id, reason)
        return _unless_cancelled(*await self._ended(program, stops="before the first step"))

    async def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> AsyncIterator[Proxy]:
        page = partial(
            self._commands.due_page, age=check_age(stale_after), statuses=check_statuses(statuses)
        )
        for pool in await self._run(self._commands.pools_named(pool_name)):
            async for proxy in self._pages(partial(page, pool.id)):
                yield proxy

    async def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        return await self._run(self._commands.last_health(proxy_id))

    async def last_checks(self, proxy_ids: Sequence[UUID]) -> dict[UUID, HealthCheckResult]:
        """Return the newest health check of each of some proxies that has one, by its id."""
        return await self._run(self._commands.last_checks(proxy_ids))

    async def lease_ids(self, beginning: str, *, limit: int = 10) -> list[UUID]:
        """Return the ids of leases in the log that begin so, as the sync storage does."""
        return await self._run(self._commands.lease_ids(id_span(beginning), limit))

    async def save_health_record(self, record: ProxyHealthRecord) -> None:
        await self._run(self._commands.save_health_record(record))

    async def list_health_records(
        self, proxy_id: UUID, limit: int = 100
    ) -> Sequence[ProxyHealthRecord]:
        return await self._run(self._commands.health_records(proxy_id, limit))

    # The log

    async def seal(self) -> int:
        """Assign a ``seq`` to every committed event, and return the last one."""
        return await self._run(self._commands.seal())

    async def events(self, *, after: int = 0) -> AsyncIterator[Event]:
        """Yield the events that were committed before the iteration started, in sealed order.

        Parameters
        ----------
        after:
            Yield only events of later ``seq``.

        Raises
        ------
        ArchivedError
            If the next event may have been archived.
        """
        seq, upto = check_whole(after, "after"), await self.seal()
        while page := await self._run(self._commands.events_page(seq, upto)):
            for event in page:
                seq = event.seq
                yield event

    async def follow(
        self, after: int | None = None, *, poll_s: float = 0.1
    ) -> AsyncIterator[Event]:
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
        seq = await self.seal() if after is None else check_whole(after, "after")
        while True:
            upto = await self._run(self._commands.seal(wait=False))
            page = await self._run(self._commands.events_page(seq, upto))
            for event in page:
                seq = event.seq
                yield event
            if not page:
                await asyncio.sleep(poll_s)

    async def tree_size(self) -> int:
        """Return how many events the log's Merkle tree covers: all that are committed."""
        return await self.seal()

    async def tree_head(self, size: int | None = None) -> TreeHead:
        """Return the head of the Merkle tree over the first ``size`` events, or all.

        What is needed for it later is kept in the ledger.

        Raises
        ------
        InvalidInputError
            If the log has fewer events.
        ArchivedError
            If archived events are needed of whose tree nothing was kept.
        """
        return await self._run(tree.head(self._commands.schema, size))

    async def prove_inclusion(
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
        return await self._run(tree.inclusion(self._commands.schema, seq, size, archived))

    async def prove_consistency(self, old: int, size: int | None = None) -> tuple[bytes, ...]:
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
        return await self._run(tree.consistency(self._commands.schema, old, size))

    # Internals

    async def _ask(self, step: Callable[..., Program[T]], *arguments: Any) -> T:
        return await self._run(step(*arguments))

    async def _run(self, program: Program[T]) -> T:
        return _unless_cancelled(*await self._ended(program))

    async def _acquire(
        self, request: AcquireRequest | AcquireSetRequest, name: str
    ) -> Acquisition | SetAcquisition:
        if request.wait_seconds:
            return await run_async(in_turn.acquire(self._attendant, request), call_async)
        outcome, cancelled = await self._acquired(request)
        if cancelled is not None:
            for lease in new_leases(outcome):
                await self._give_up(lease)
            raise with_outcome(cancelled, name, outcome)
        return outcome

    async def _acquired(
        self, request: AcquireRequest | AcquireSetRequest
    ) -> tuple[Acquisition | SetAcquisition, asyncio.CancelledError | None]:
        if runs_alone(request):
            return await self._found(alone.acquire(self._commands, request))
        command = cast("Acquire", command_of(request))
        outcome, cancelled = await self._combiner.submit(command)
        if isinstance(outcome, Acquisition | SetAcquisition) and not lacks_stats(command, outcome):
            return outcome, cancelled
        if cancelled is not None:  # Nothing was leased, but expired leases are still reported.
            kind = Acquisition if isinstance(request, AcquireRequest) else SetAcquisition
            return kind(None, expired=expired_of(outcome)), cancelled  # type: ignore[arg-type]
        return await self._found(self._commands.finish_acquisition(command, outcome))

    async def _found(
        self, program: Program[Any]
    ) -> tuple[Acquisition | SetAcquisition, asyncio.CancelledError | None]:
        return await self._ended_in_time(program, stops="before the first step")

    async def _run_combined(self, batch: CombinedBatch[Command]) -> Sequence[CommandOutcome]:
        program = self._commands.checked(self._commands.carry_out(batch.commands))
        return await self._driver.run_batch(program, batch, within_s=self._answer_timeout_s)

    async def _run_in_time(self, program: Program[T]) -> T:
        return _unless_cancelled(*await self._ended_in_time(program, stops="between steps"))

    async def _ended(
        self, program: Program[T], *, stops: Stops = "between steps"
    ) -> tuple[T, asyncio.CancelledError | None]:
        return await self._driver.run(self._commands.checked(program), stops=stops)

    async def _ended_in_time(
        self, program: Program[T], *, stops: Stops
    ) -> tuple[T, asyncio.CancelledError | None]:
        """Run a short program, with the storage's timeout for each answer."""
        return await self._driver.run(
            self._commands.checked(program), stops=stops, within_s=self._answer_timeout_s
        )

    async def _pages(self, page: Callable[[UUID], Program[Page]]) -> AsyncIterator[Proxy]:
        first: UUID | None = NIL
        while first is not None:
            proxies, first = await self._run(page(first))
            for proxy in proxies:
                yield proxy


def _unless_cancelled(outcome: T, cancelled: asyncio.CancelledError | None) -> T:
    if cancelled is not None:
        raise cancelled
    return outcome
