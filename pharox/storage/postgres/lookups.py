"""Programs that only read: the read models, and the log page by page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from pharox.log import Extract, event_from_row

from ...errors import PoolNotFoundError, ProxyNotFoundError
from ...events import Event
from ...models import (
    ApiToken,
    HealthCheckResult,
    HeldLease,
    KnownTargetRules,
    Lease,
    PoolMove,
    PoolPlace,
    PoolStatsSnapshot,
    Proxy,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    QueueStats,
    StickySession,
    TargetOutcomes,
    TargetSummary,
    Usage,
    check_name,
    check_whole,
    target_of,
)
from ...models.ids import NIL, following
from ..requests import record_of_check
from ..validation import (
    HeldPage,
    IdSpan,
    SessionPage,
    TargetPage,
    UsageWish,
    id_from_text,
    pool_named,
)
from . import api_tokens, moves, places, reading, retention, sticky, target_rules, targets, usage
from .driver import Program
from .history import page_statement, positions_statement, seal_statement
from .migrations import HEAD
from .redating import Looks
from .refusals import read_only
from .schema import check_version, oldest_client_statement, version_statement
from .sql import Query, Statement
from .vault import Vault
from .waiting import Room, queue_statement

T = TypeVar("T")

Page = tuple[list[Proxy], UUID | None]
"""Some of a pool's proxies by id, and the first id of the next page, or None."""

PAGE = 1000
"""How many rows one statement reads of a long result."""


_WRITABLE = Statement(
    b"SELECT NOT current_setting('transaction_read_only')::boolean, pg_is_in_recovery()",
    (),
    {},
    ("writable", "is_standby"),
)


class Lookups:
    """The queries of one schema."""

    def __init__(self, schema: str, vault: Vault) -> None:
        self.schema = schema
        self.vault = vault
        self.room = Room()
        self.looks = Looks()
        self.is_checked = False

    # The schema

    def schema_version(self) -> Program[str | None]:
        """Return the schema's version, or None if the database has none."""
        try:
            rows = yield Query(version_statement(self.schema), {})
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return None
        return rows[0]["version"] if rows else None

    def checked(self, program: Program[T]) -> Program[T]:
        """Return the program, with a check first that this code can use the schema."""
        return program if self.is_checked else self._checked_first(program)

    def _checked_first(self, program: Program[T]) -> Program[T]:
        version = yield from self.schema_version()
        if version is not None and version > HEAD:
            rows = yield Query(oldest_client_statement(self.schema), {})
            if rows[0]["oldest"] <= HEAD:
                version = HEAD  # everything that this code needs is still there
        check_version(version, self.schema)
        self.is_checked = True
        return (yield from program)

    def nothing(self) -> Program[None]:
        """Query nothing. Running this program checks the schema."""
        return
        yield

    def check_writable(self) -> Program[None]:
        """Raise an error if the database is read-only, for a command with nothing to write.

        Otherwise it would seem to succeed on a standby.
        """
        (row,) = yield Query(_WRITABLE, {})
        if not row["writable"]:
            raise read_only(row["is_standby"])

    # Pools

    def pool(self, pool_id: str) -> Program[ProxyPool]:
        """Return the pool with this id, given as text."""
        rows = yield from self.rows(reading.pool_statement, pool_id=id_from_text(pool_id) or NIL)
        if not rows:
            raise PoolNotFoundError(f"Pool {pool_id!r} not found.", pool_id=pool_id)
        return reading.pool_from_row(rows[0])

    def pool_by_name(self, name: str) -> Program[ProxyPool | None]:
        """Return the pool with this name, or None."""
        return self._pool_by_name(check_name(name, "pool"))

    def pools(self) -> Program[list[ProxyPool]]:
        """Return all pools, ordered by name."""
        rows = yield from self.rows(reading.pools_statement)
        return [reading.pool_from_row(row) for row in rows]

    def pools_named(self, pool_name: str | None) -> Program[Sequence[ProxyPool]]:
        """Return the pool with this name, or all if None."""
        return pool_named(pool_name, (yield from self.pools()))

    def stats(self, pool_name: str) -> Program[PoolStatsSnapshot | None]:
        """Return a pool's statistics, or None if there is no such pool."""
        return self._stats_of(check_name(pool_name, "pool"))

    def all_stats(self) -> Program[list[PoolStatsSnapshot]]:
        """Return the statistics of every pool, ordered by name."""
        rows = yield from self.rows(reading.stats_statement, name=None)
        return [reading.stats_from_row(row["name"], row, row["collected_at"]) for row in rows]

    def queue_stats(self, pool_name: str | None) -> Program[list[QueueStats]]:
        """Return who waits, by pool. In a ledger without queues nobody does."""
        name = None if pool_name is None else check_name(pool_name, "pool")
        try:
            rows: list[dict[str, Any]] = yield Query(queue_statement(self.schema), {"name": name})
        except psycopg.errors.UndefinedTable:
            return []
        return [QueueStats.model_validate(row) for row in rows]

    # Proxies

    def proxy(self, proxy_id: str) -> Program[Proxy]:
        """Return the proxy with this id, given as text."""
        uuid = id_from_text(proxy_id)
        proxy = None if uuid is None else (yield from self.proxy_by_id(uuid))
        if proxy is None:
            raise ProxyNotFoundError(f"Proxy {proxy_id!r} not found.", proxy_id=proxy_id)
        return proxy

    def proxy_by_id(
        self, proxy_id: UUID, *, with_credentials: bool = True
    ) -> Program[Proxy | None]:
        """Return a proxy, with or without its credentials, or None."""
        return self._proxy(id_from_text(proxy_id) or NIL, self.vault if with_credentials else None)

    def updated_proxy(self, proxy_id: UUID) -> Program[Proxy | None]:
        """Return a proxy after a change was recorded, or None if it was removed since.

        Without a key it is returned without credentials, instead of raising an error.
        """
        return self._proxy(proxy_id, self.vault if self.vault.has_keys else None)

    def proxies_page(
        self, pool_id: UUID, first: UUID, *, with_credentials: bool = True
    ) -> Program[Page]:
        """Return a page of a pool's proxies by id, from ``first``, and where the next begins."""
        if not with_credentials:
            return self._page(reading.bare_proxies_statement, None, first, pool_id=pool_id)
        return self._page(reading.proxies_statement, self.vault, first, pool_id=pool_id)

    def due_page(
        self,
        pool_id: UUID,
        first: UUID,
        *,
        age: timedelta | None,
        statuses: Collection[ProxyStatus],
    ) -> Program[Page]:
        """Return a page as :meth:`proxies_page` does, of the proxies that are due for a check."""
        choice = {"pool_id": pool_id, "age": age, "statuses": list(statuses)}
        return self._readable_page(reading.due_proxies_statement, first, **choice)

    # Leases and health

    def lease(self, lease_id: str | UUID) -> Program[Lease | None]:
        """Return a lease as recorded, or None."""
        uuid = id_from_text(lease_id)
        if uuid is None:
            return None
        rows = yield from self.rows(reading.lease_statement, lease_id=uuid)
        return reading.lease_from_row(rows[0]) if rows else None

    def leases(self, consumer_id: str | None) -> Program[list[Lease]]:
        """Return the leases of one consumer or of all, oldest first."""
        uuid = None if consumer_id is None else id_from_text(consumer_id)
        if consumer_id is not None and uuid is None:
            return []
        rows = yield from self.rows(reading.leases_statement, consumer_id=uuid)
        return [reading.lease_from_row(row) for row in rows]

    def held_leases(self, page: HeldPage) -> Program[list[HeldLease]]:
        """Return a page of the active leases, of one pool or of all."""
        of_pool = {} if page.pool_name is None else {"name": page.pool_name}
        after = dict(zip(("after_pool", "after_proxy", "after_lease"), page.after, strict=True))
        rows = yield from self.rows(
            reading.held_leases_in_pool_statement if of_pool else reading.held_leases_statement,
            consumer=page.consumer_name,
            limit=page.limit,
            **of_pool,
            **after,
        )
        return [reading.held_lease_from_row(row) for row in rows]

    def target_outcomes(self, page: TargetPage) -> Program[list[TargetOutcomes]]:
        """Return a page of the pairs of proxy and target."""
        return targets.list_pairs(self.schema, page)

    def sessions(self, page: SessionPage) -> Program[list[StickySession]]:
        """Return a page of the sticky sessions that live."""
        return sticky.list_sessions(self.schema, page)

    def unclear_targets(self, proxy_id: UUID) -> Program[int]:
        """Return at how many targets a proxy failed lately, nobody knows why."""
        return targets.count_unclear(self.schema, proxy_id)

    def api_tokens(self) -> Program[list[ApiToken]]:
        """Return all tokens."""
        return api_tokens.listed(self.schema)

    def pool_moves(self, pool_name: str | None) -> Program[list[PoolMove]]:
        """Return all moves of pools, or those of a name, the last one first."""
        return moves.list_moves(
            self.schema, None if pool_name is None else check_name(pool_name, "pool")
        )

    def target_rules(self) -> Program[list[KnownTargetRules]]:
        """Return the rules of all targets that have some."""
        return target_rules.list_rules(self.schema)

    def places(self, pool_names: Collection[str] | None) -> Program[list[PoolPlace]]:
        """Return which ledgers of a fleet pools are in: the named ones, or all."""
        return places.list_places(self.schema, pool_names)

    def target_summaries(self, page: TargetPage) -> Program[list[TargetSummary]]:
        """Return a page of the targets of pools, each summed up."""
        return targets.summarize(self.schema, page)

    def usage(self, wish: UsageWish) -> Program[list[Usage]]:
        """Return what was used of proxies."""
        return usage.usage(self.schema, wish)

    def next_expiry(self, pool_name: str | None) -> Program[float | None]:
        """Return the seconds until the next active lease of a pool or of all runs out, or None."""
        return self._next_expiry(None if pool_name is None else check_name(pool_name, "pool"))

    def next_change(
        self, pool_name: str, target: str | None, session: str | None = None
    ) -> Program[float | None]:
        """Return the seconds until something of a pool may become free by itself, or None."""
        named = None if target is None else target_of(target)
        return self._next_change(check_name(pool_name, "pool"), named, session)

    def last_health(self, proxy_id: UUID) -> Program[HealthCheckResult | None]:
        """Return the newest health check of a proxy, or None if there was none."""
        uuid = id_from_text(proxy_id) or NIL
        rows = yield from self.rows(reading.last_health_statement, proxy_id=uuid)
        return reading.health_from_row(rows[0]) if rows else None

    def last_checks(self, proxy_ids: Sequence[UUID]) -> Program[dict[UUID, HealthCheckResult]]:
        """Return the newest health check of each of some proxies that has one."""
        rows = yield from self.rows(reading.last_checks_statement, proxy_ids=list(proxy_ids))
        return {row["proxy_id"]: reading.health_from_row(row) for row in rows}

    def lease_ids(self, span: IdSpan, limit: int) -> Program[list[UUID]]:
        """Return the first ids of leases in a range, in their order."""
        bounded = min(max(check_whole(limit, "limit"), 0), 2**31 - 1)
        rows = yield from self.rows(
            reading.lease_ids_statement, first=span.first, last=span.last, limit=bounded
        )
        return [row["lease_id"] for row in rows]

    def health_records(self, proxy_id: UUID, limit: int) -> Program[list[ProxyHealthRecord]]:
        """Return the newest health checks of a proxy, newest first."""
        bounded = min(max(check_whole(limit, "limit"), 0), 2**31 - 1)
        statement, uuid = reading.health_records_statement, id_from_text(proxy_id) or NIL
        rows = yield from self.rows(statement, proxy_id=uuid, limit=bounded)
        return [record_of_check(event_from_row(row)) for row in rows]

    # The log

    def seal(self, *, wait: bool = True) -> Program[int]:
        """Assign a ``seq`` to every committed event, and return the last one.

        Without ``wait`` do nothing if another session is sealing.
        """
        (row,) = yield Query(seal_statement(self.schema, wait=wait), {})
        answer: int = row["seq"]
        return answer

    def events_page(self, after: int, upto: int) -> Program[list[Event]]:
        """Return the first page of events in a range of the log.

        Raises
        ------
        ArchivedError
            If the next event may be in an archived part of the log.
        """
        if upto <= after:
            return []
        values = Extract(after, upto).given()
        statement = page_statement(self.schema, frozenset(values))
        (positions,) = yield from self.rows(positions_statement, after=after, upto=upto)
        rows = yield Query(statement, {**values, **positions, "limit": PAGE})
        # The list is read after the events, so it has a part that is archived meanwhile.
        archived = yield from self.rows(retention.archived_statement)
        if needed := retention.parts_needed(archived, Extract(after, upto)):
            raise retention.archived_error(needed)
        return [event_from_row(row) for row in rows]

    # Internals

    def rows(
        self, statement: Callable[[str], Statement], **values: Any
    ) -> Program[list[dict[str, Any]]]:
        """Return the rows of a statement."""
        answer: list[dict[str, Any]] = yield Query(statement(self.schema), values)
        return answer

    def current(self, proxy_id: UUID) -> Program[Mapping[str, Any]]:
        """Return a proxy's pool, status and holders; raises :class:`ProxyNotFoundError`."""
        rows = yield Query(reading.proxy_state_statement(self.schema), {"proxy_id": proxy_id})
        if not rows:
            raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
        answer: Mapping[str, Any] = rows[0]
        return answer

    def _pool_by_name(self, name: str) -> Program[ProxyPool | None]:
        rows = yield from self.rows(reading.pool_by_name_statement, name=name)
        return reading.pool_from_row(rows[0]) if rows else None

    def _stats_of(self, pool_name: str) -> Program[PoolStatsSnapshot | None]:
        rows = yield from self.rows(reading.stats_statement, name=pool_name)
        if not rows:
            return None
        row: Mapping[str, Any] = rows[0]
        return reading.stats_from_row(pool_name, row, row["collected_at"])

    def _next_change(
        self, pool_name: str, target: str | None, session: str | None
    ) -> Program[float | None]:
        statement = reading.next_change_statement
        rows = yield from self.rows(statement, name=pool_name, target=target)
        seconds: float | None = rows[0]["seconds"] if rows else None
        if session is None or not rows:
            return seconds
        known = sticky.next_change_statement
        (row,) = yield from self.rows(known, name=pool_name, target=target, key=session)
        if row["is_bound"]:
            of_proxy: float | None = row["of_proxy"]
            return of_proxy
        return min(
            (each for each in (seconds, row["of_bindings"]) if each is not None), default=None
        )

    def _next_expiry(self, pool_name: str | None) -> Program[float | None]:
        rows = yield from self.rows(reading.next_expiry_statement, name=pool_name)
        seconds: float | None = rows[0]["seconds"]
        return None if seconds is None else max(0.0, seconds)

    def _proxy(self, proxy_id: UUID, vault: Vault | None) -> Program[Proxy | None]:
        bare = vault is None
        statement = reading.bare_proxy_statement if bare else reading.proxy_statement
        rows = yield from self.rows(statement, proxy_id=proxy_id)
        return reading.proxy_from_row(rows[0], vault) if rows else None

    def _page(
        self,
        statement: Callable[[str], Statement],
        vault: Vault | None,
        first: UUID,
        **values: Any,
    ) -> Program[Page]:
        rows = yield from self.rows(statement, from_id=first, limit=PAGE, **values)
        return [reading.proxy_from_row(row, vault) for row in rows], _next_page(rows)

    def _readable_page(
        self, statement: Callable[[str], Statement], first: UUID, **values: Any
    ) -> Program[Page]:
        rows = yield from self.rows(statement, from_id=first, limit=PAGE, **values)
        return list(reading.readable_proxies(rows, self.vault)), _next_page(rows)


def _next_page(rows: Sequence[Mapping[str, Any]]) -> UUID | None:
    return following(rows[-1]["id"]) if len(rows) == PAGE else None
