"""Queries of the read models, and the conversion of their rows to models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, array

from pharox.log import events
from projections.available_proxies import available_proxies
from projections.leases import leases
from projections.pool_stats import COUNTS, pool_stats
from projections.pools import pools
from projections.proxies import proxies
from projections.proxy_health import proxy_health
from projections.rotations import rotations
from projections.target_outcomes import target_outcomes

from ...errors import SecretKeyError
from ...models import (
    CoolDown,
    HealthCheckResult,
    HeldLease,
    Lease,
    PoolStatsSnapshot,
    Proxy,
    ProxyPool,
)
from ...models.proxy import RECORDED, recorded_template
from ...models.text import url_of
from .checks_apart import CHECKED, check_columns, checks_of
from .sql import POOL_ID, PROXY_ID, by_schema, now, parameter, text_literal
from .tables import proxy_credentials
from .vault import Place, Vault

logger = logging.getLogger("pharox")

availability = available_proxies.alias("availability")
description = proxies.alias("description")
_c = proxy_credentials.alias("c")

_FROM_ID = parameter("from_id", sa.Uuid)

_IN_USE = sa.and_(
    _c.c.proxy_id == description.c.id,
    _c.c.id == description.c.credential_id,
    _c.c.pool_id == description.c.pool_id,
)

_DESCRIPTION = (
    "id",
    "pool_id",
    "host",
    "port",
    "protocol",
    "source",
    "country",
    "city",
    "latitude",
    "longitude",
    "isp",
    "asn",
    "exit_ip",
    "cost_per_gb",
    "cost_per_lease",
    "weight",
)
_TEMPLATE = "placeholders"
_UNTIL = ("rests_until", "banned_until")
_STANDING = ("status", "checked_at", "max_concurrency", "current_leases")


_COLUMNS = (
    *(description.c[name] for name in (*_DESCRIPTION, _TEMPLATE)),
    description.c.rotate_id,
    *(availability.c[name] for name in _STANDING),
    availability.c.drains,
    availability.c.banned_until,
    sa.case((availability.c.rests_until > now, availability.c.rests_until)).label("rests_until"),
)


def proxy_rows(
    *, with_credentials: bool = True, from_id: sa.ColumnElement[Any] | None = None
) -> sa.Select[Any]:
    """Return the query for proxies; without credentials it needs no right to read them.

    With ``from_id`` credentials are read from this id on only.
    """
    joined = description.join(
        availability,
        sa.and_(
            availability.c.proxy_id == description.c.id,
            availability.c.pool_id == description.c.pool_id,
        ),
    )
    if not with_credentials:
        return sa.select(*_COLUMNS).select_from(joined)
    in_use = _IN_USE if from_id is None else sa.and_(_IN_USE, _c.c.proxy_id >= from_id)
    with_secrets = joined.outerjoin(_c, in_use)
    return sa.select(*_COLUMNS, description.c.credential_id, _c.c.secret).select_from(with_secrets)


def proxy_from_row(row: Mapping[str, Any], vault: Vault | None) -> Proxy:
    """Return the proxy in a row of :func:`proxy_rows`, without credentials if ``vault`` is None."""
    fields = {name: row[name] for name in (*_DESCRIPTION, *_STANDING, *_UNTIL)}
    fields["draining"], fields["rotates"] = bool(row["drains"]), row["rotate_id"] is not None
    if vault is not None and row["credential_id"] is not None:
        place = Place(row["credential_id"], row["pool_id"], row["id"])
        fields["credentials"] = vault.open(row["secret"], place)
    fields["template"] = recorded_template(fields.get("credentials"), row[_TEMPLATE])
    return Proxy.model_validate(fields, context=RECORDED)


def readable_proxies(rows: Iterable[Mapping[str, Any]], vault: Vault) -> Iterator[Proxy]:
    """Yield the proxies in rows. One with damaged credentials is logged and skipped."""
    for row in rows:
        try:
            yield proxy_from_row(row, vault)
        except SecretKeyError as error:
            if "proxy_id" not in error.data:  # There is no key at all.
                raise
            logger.warning(
                "pharox.credentials.unreadable: %s", error, extra={"proxy_id": str(row["id"])}
            )


def lease_from_row(row: Mapping[str, Any]) -> Lease:
    """Return the lease in a row of the ``leases`` table."""
    return Lease.model_validate(dict(row))


def held_lease_from_row(row: Mapping[str, Any]) -> HeldLease:
    """Return the lease in a row of :func:`held_leases_statement`."""
    address = url_of(row["protocol"], row["host"], row["port"])
    fields = {name: row[name] for name in row.keys() - {"protocol", "host", "port"}}
    return HeldLease(**fields, address=address)


def pool_from_row(row: Mapping[str, Any]) -> ProxyPool:
    """Return the pool in a row of the ``pools`` table."""
    rule = CoolDown.as_saved(row["cool_down"])
    return ProxyPool.model_validate({**row, "cool_down": rule})


def stats_from_row(pool_name: str, row: Mapping[str, Any], at: datetime) -> PoolStatsSnapshot:
    """Return the statistics among a row's columns."""
    counts = {name: row[name] for name in COUNTS}
    return PoolStatsSnapshot(pool_name=pool_name, collected_at=at, **counts)


def health_from_row(row: Mapping[str, Any]) -> HealthCheckResult:
    """Return the result in a row of the ``proxy_health`` table."""
    fields = {name: row[name] for name in row.keys() - {"pool_id", "error"}}
    fields["latency_ms"] = row["latency_ms"] or 0
    return HealthCheckResult(**fields, error_message=row["error"])


@by_schema
def pools_statement() -> sa.Select[Any]:
    """Query all pools, ordered by name."""
    return sa.select(pools).order_by(pools.c.name.collate("C"))


@by_schema
def pool_statement() -> sa.Select[Any]:
    """Query one pool by id."""
    return sa.select(pools).where(pools.c.id == POOL_ID)


@by_schema
def pool_by_name_statement() -> sa.Select[Any]:
    """Query one pool by name."""
    return sa.select(pools).where(pools.c.name == parameter("name"))


@by_schema
def pool_size_statement() -> sa.Select[Any]:
    """Query whether a pool has a proxy: one row, or none."""
    return (
        sa.select(availability.c.proxy_id)
        .where(availability.c.pool_id == POOL_ID)
        .limit(sa.literal_column("1"))
    )


@by_schema
def due_pools_statement() -> sa.Select[Any]:
    """Query the pools in which a lease is due to expire, or a ban is over."""
    due: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        leases.c.pool_id == pools.c.id,
        leases.c.status == text_literal("active"),
        leases.c.expires_at <= now,
    )
    over: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        availability.c.pool_id == pools.c.id, availability.c.banned_until <= now
    )
    is_due = sa.or_(due.exists(), over.exists())
    return sa.select(pools.c.id).where(is_due).order_by(pools.c.id)


@by_schema
def next_expiry_statement() -> sa.Select[Any]:
    """Query the seconds until the next lease runs out or ban is over, in the named pool or all."""
    name = parameter("name")
    # Ordered instead of min(): one entry of ix_leases_due is read for each pool.
    first = (
        sa.select(leases.c.expires_at)
        .where(leases.c.pool_id == pools.c.id, leases.c.status == text_literal("active"))
        .order_by(leases.c.expires_at)
        .limit(sa.literal_column("1"))
        .lateral("first")
    )
    ban = (
        sa.select(availability.c.banned_until)
        .where(availability.c.pool_id == pools.c.id, availability.c.banned_until.is_not(None))
        .order_by(availability.c.banned_until)
        .limit(sa.literal_column("1"))
        .lateral("ban")
    )
    next_end = sa.func.min(sa.func.least(first.c.expires_at, ban.c.banned_until))
    left = sa.extract("epoch", next_end - now).cast(sa.Double)
    return (
        sa.select(left.label("seconds"))
        .select_from(pools.outerjoin(first, sa.true()).outerjoin(ban, sa.true()))
        .where(sa.or_(name.is_(None), pools.c.name == name))
    )


@by_schema
def next_change_statement() -> sa.Select[Any]:
    """Query the seconds until a lease, rest or ban of a pool ends, or a rest for a target."""

    def first(column: Any, of_pool: Any, *where: Any) -> Any:
        """Return the next time in a column of a pool's rows."""
        later = sa.select(sa.func.min(column)).where(of_pool == pools.c.id, column > now, *where)
        return later.correlate(pools).scalar_subquery()

    lets_rest = sa.func.greatest(
        pools.c.rest_after_release_seconds, pools.c.rest_after_expiry_seconds
    )
    rests = first(availability.c.rests_until, availability.c.pool_id)
    pair = target_outcomes.c
    next_ones = (
        first(leases.c.expires_at, leases.c.pool_id, leases.c.status == text_literal("active")),
        sa.case((lets_rest > sa.literal_column("0"), rests)),
        first(availability.c.banned_until, availability.c.pool_id),
        first(rotations.c.ends_at, rotations.c.pool_id),
        first(pair.cools_until, pair.pool_id, pair.target == parameter("target")),
    )
    left = sa.extract("epoch", sa.func.least(*next_ones) - now).cast(sa.Double)
    return sa.select(left.label("seconds")).where(pools.c.name == parameter("name"))


@by_schema
def pools_with_ended_statement() -> sa.Select[Any]:
    """Query the ids of pools, also removed ones, with a lease that ended before a given time."""
    before = parameter("ended_before", sa.DateTime(timezone=True))
    return (
        sa.select(leases.c.pool_id)
        .distinct()
        .where(leases.c.status != text_literal("active"), leases.c.released_at < before)
        .order_by(leases.c.pool_id)
    )


@by_schema
def stats_statement() -> sa.Select[Any]:
    """Query the statistics of all pools, or of the named one, with the database's time."""
    name = parameter("name")
    sums = (sa.func.sum(pool_stats.c[count]).cast(sa.BigInteger).label(count) for count in COUNTS)
    return (
        sa.select(pools.c.name, *sums, now.label("collected_at"))
        .select_from(pools.join(pool_stats, pool_stats.c.pool_id == pools.c.id))
        .where(sa.or_(name.is_(None), pools.c.name == name))
        .group_by(pools.c.id, pools.c.name)
        .order_by(pools.c.name.collate("C"))
    )


@by_schema
def proxy_statement() -> sa.Select[Any]:
    """Query one proxy by id."""
    return proxy_rows().where(description.c.id == PROXY_ID)


@by_schema
def bare_proxy_statement() -> sa.Select[Any]:
    """Query one proxy by id, without its credentials."""
    return proxy_rows(with_credentials=False).where(description.c.id == PROXY_ID)


@by_schema
def proxies_statement() -> sa.Select[Any]:
    """Query a page of a pool's proxies, ordered by id."""
    return _page_by_id(proxy_rows())


@by_schema
def bare_proxies_statement() -> sa.Select[Any]:
    """Query a page of a pool's proxies without their credentials, ordered by id."""
    return _page_by_id(proxy_rows(with_credentials=False))


def _page_by_id(proxies_of_all: sa.Select[Any]) -> sa.Select[Any]:
    """Select the ids of a page first, then look up their proxies.

    Without statistics of the pool the planner would join and sort all the rest of it.
    """
    of_page = proxies.alias("of_page")
    ids = (
        sa.select(of_page.c.id)
        .where(of_page.c.pool_id == POOL_ID, of_page.c.id >= _FROM_ID)
        .order_by(of_page.c.id)
        .limit(parameter("limit", sa.Integer))
    )
    page = proxies_of_all.where(
        description.c.pool_id == POOL_ID,
        description.c.id == sa.func.any(sa.func.array(ids.scalar_subquery())),
    )
    return page.order_by(description.c.id)


@by_schema
def due_proxies_statement() -> sa.Select[Any]:
    """Query a page of a pool's proxies that are due for a check, ordered by id."""
    age, statuses = parameter("age", sa.Interval), parameter("statuses", ARRAY(sa.Text))
    is_stale = sa.or_(
        age.is_(None), availability.c.probed_at.is_(None), availability.c.probed_at <= now - age
    )
    # The joined tables start at this id too; the planner would start at the first id.
    follows = (
        description.c.pool_id == POOL_ID,
        description.c.id >= _FROM_ID,
        availability.c.proxy_id >= _FROM_ID,
    )
    due = proxy_rows(from_id=_FROM_ID).where(
        *follows, availability.c.status == sa.func.any(statuses), is_stale
    )
    return due.order_by(description.c.id).limit(parameter("limit", sa.Integer))


@by_schema
def several_proxies_statement() -> sa.Select[Any]:
    """Query proxies by their ids, without their credentials."""
    ids = parameter("ids", ARRAY(sa.Uuid))
    return proxy_rows(with_credentials=False).where(description.c.id == sa.func.any(ids))


@by_schema
def secrets_page_statement() -> sa.Select[Any]:
    """Query a page of the credentials in use, each with its proxy's address."""
    in_use = proxy_rows().where(_c.c.id.is_not(None), description.c.id >= _FROM_ID)
    return in_use.order_by(description.c.id).limit(parameter("limit", sa.Integer))


@by_schema
def links_page_statement() -> sa.Select[Any]:
    """Query a page of the links for another exit, each with its proxy."""
    is_own = sa.and_(
        _c.c.proxy_id == description.c.id,
        _c.c.id == description.c.rotate_id,
        _c.c.pool_id == description.c.pool_id,
    )
    columns = (description.c.id, description.c.pool_id, description.c.rotate_id, _c.c.secret)
    links = sa.select(*columns).select_from(description.join(_c, is_own))
    links = links.where(description.c.id >= _FROM_ID).order_by(description.c.id)
    return links.limit(parameter("limit", sa.Integer))


@by_schema
def known_proxies_statement() -> sa.Select[Any]:
    """Query the pools and credentials of proxies."""
    ids = parameter("ids", ARRAY(sa.Uuid))
    joined = description.outerjoin(_c, _IN_USE)
    columns = (
        description.c.id,
        description.c.pool_id,
        description.c.credential_id,
        description.c.rotate_id,
        _c.c.secret,
        _c.c.identity,
    )
    return sa.select(*columns).select_from(joined).where(description.c.id == sa.func.any(ids))


@by_schema
def proxy_state_statement() -> sa.Select[Any]:
    """Query the pool, status and holders of a proxy."""
    consumer = leases.c.consumer_name
    holders = sa.select(
        sa.func.coalesce(
            sa.func.array_agg(aggregate_order_by(consumer, consumer.collate("C"))),
            sa.literal_column("'{}'::text[]"),
        )
    ).where(
        leases.c.pool_id == availability.c.pool_id,
        leases.c.proxy_id == availability.c.proxy_id,
        leases.c.status == text_literal("active"),
    )
    return (
        sa.select(
            availability.c.pool_id,
            pools.c.name.label("pool_name"),
            availability.c.status,
            holders.scalar_subquery().label("holders"),
            sa.case((availability.c.rests_until > now, availability.c.rests_until)).label(
                "rests_until"
            ),
        )
        .select_from(availability.join(pools, pools.c.id == availability.c.pool_id))
        .where(availability.c.proxy_id == PROXY_ID)
    )


@by_schema
def lease_statement() -> sa.Select[Any]:
    """Query one lease by id."""
    return sa.select(leases).where(leases.c.id == parameter("lease_id", sa.Uuid))


@by_schema
def leases_statement() -> sa.Select[Any]:
    """Query the leases of one consumer, or all, oldest first."""
    consumer_id = parameter("consumer_id", sa.Uuid)
    return (
        sa.select(leases)
        .where(sa.or_(consumer_id.is_(None), leases.c.consumer_id == consumer_id))
        .order_by(leases.c.fencing_token)
    )


@by_schema
def held_leases_statement() -> sa.Select[Any]:
    """Query a page of all active leases, ordered by the ids of pool, proxy and lease."""
    return _held_leases()


@by_schema
def held_leases_in_pool_statement() -> sa.Select[Any]:
    """Query a page of a pool's active leases, ordered as those of all pools."""
    pool_id = sa.select(pools.c.id).where(pools.c.name == parameter("name")).scalar_subquery()
    return _held_leases().where(leases.c.pool_id == pool_id)


def _held_leases() -> sa.Select[Any]:
    """Select active leases in the order of ix_leases_held, which has no others."""
    consumer = parameter("consumer")
    place = (leases.c.pool_id, leases.c.proxy_id, leases.c.id)
    after = (parameter(f"after_{name}", sa.Uuid) for name in ("pool", "proxy", "lease"))
    seconds = sa.extract("epoch", leases.c.expires_at - now).cast(sa.Double)
    # The position of the event that granted it: one entry of the key of its partition.
    session = (
        sa.select(events.c.data["session"].astext)
        .where(events.c.position == leases.c.fencing_token)
        .scalar_subquery()
    )
    return (
        sa.select(
            leases,
            proxies.c.protocol,
            proxies.c.host,
            proxies.c.port,
            seconds.label("remaining_seconds"),
            session.label("session"),
        )
        .join(
            proxies,
            sa.and_(proxies.c.id == leases.c.proxy_id, proxies.c.pool_id == leases.c.pool_id),
        )
        .where(
            leases.c.status == text_literal("active"),
            sa.tuple_(*place) > sa.tuple_(*after),
            sa.or_(consumer.is_(None), leases.c.consumer_name == consumer),
        )
        .order_by(*place)
        .limit(parameter("limit", sa.Integer))
    )


@by_schema
def last_health_statement() -> sa.Select[Any]:
    """Query a proxy's newest health check."""
    return sa.select(proxy_health).where(proxy_health.c.proxy_id == PROXY_ID)


@by_schema
def last_checks_statement() -> sa.Select[Any]:
    """Query the newest health checks of some proxies."""
    ids = parameter("proxy_ids", ARRAY(sa.Uuid))
    return sa.select(proxy_health).where(proxy_health.c.proxy_id == sa.func.any(ids))


@by_schema
def lease_ids_statement() -> sa.Select[Any]:
    """Query the first ids in a range that leases of the log have.

    Each is looked up in ix_events_lease behind the one before it: a lease may have any number of
    events, and a range any number of leases.
    """
    last = parameter("last", sa.Uuid)

    def behind(bound: sa.ColumnElement[bool]) -> Any:
        return (
            sa.select(events.c.lease_id)
            .where(bound, events.c.lease_id <= last)
            .order_by(events.c.lease_id)
            .limit(sa.literal_column("1"))
        )

    first = behind(events.c.lease_id >= parameter("first", sa.Uuid)).subquery("first_one")
    found = sa.select(first.c.lease_id).cte("found", recursive=True)
    following = behind(events.c.lease_id > found.c.lease_id).correlate(found).scalar_subquery()
    found = found.union_all(
        sa.select(following.label("lease_id")).where(found.c.lease_id.is_not(None))
    )
    return (
        sa.select(found.c.lease_id)
        .where(found.c.lease_id.is_not(None))
        .limit(parameter("limit", sa.Integer))
    )


@by_schema
def health_records_statement() -> sa.Select[Any]:
    """Query a proxy's health checks, newest first, from the log."""
    alone = sa.select(events).where(
        events.c.proxy_id == PROXY_ID, events.c.type == text_literal(CHECKED)
    )
    checked = checks_of(events, PROXY_ID)
    columns = {**events.c, **check_columns(checked), "proxy_ids": sa.null()}
    together = (
        sa.select(*(columns[own.name].label(own.name) for own in events.c))
        .select_from(events.join(checked, sa.true()))
        .where(events.c.proxy_ids.contains(array([PROXY_ID])))
    )
    checks = sa.union_all(alone, together).subquery("checks")
    checked_at = sa.cast(checks.c.data["checked_at"].astext, sa.DateTime(timezone=True))
    return (
        sa.select(checks)
        .order_by(checked_at.desc(), checks.c.position.desc())
        .limit(parameter("limit", sa.Integer))
    )
