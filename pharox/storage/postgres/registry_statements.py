"""Statements that register, change and remove consumers, pools and proxies.

Rows are passed as one JSON parameter, so a batch of any size is one statement. No event
is appended for something that is registered and unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, distinct_on, insert

from projections.consumers import consumers
from projections.leases import leases
from projections.pools import pools
from projections.selector_cursors import selector_cursors

from ...models.ids import NIL
from .appending import State, append, event_row, json_object
from .reading import availability, description
from .sql import (
    ONE,
    POOL_ID,
    Statement,
    by_schema,
    compiled,
    now,
    parameter,
    schema_function,
    text_literal,
)
from .tables import proxy_credentials

_PROXIES = parameter("proxies", ARRAY(sa.Uuid))
_NIL = sa.literal_column(f"'{NIL}'::uuid", sa.Uuid)

_OF_CREDENTIALS = ("secret", "account", "identity")
"""The columns of credentials: the encrypted secret, and its fingerprints."""

_DESCRIBED = tuple(own for own in description.c if own.name not in ("id", "pool_id", "exit_ip"))
_PROXY = availability.join(
    description,
    sa.and_(
        description.c.id == availability.c.proxy_id,
        description.c.pool_id == availability.c.pool_id,
    ),
)


@lru_cache(maxsize=8)
def register_consumer_statement(schema: str) -> Statement:
    """Return the statement that registers a consumer and returns its id."""
    name, new_id = parameter("consumer"), parameter("consumer_id", sa.Uuid)
    known = sa.select(consumers.c.id).where(consumers.c.name == name)
    row = event_row("ConsumerRegistered", pool_id=_NIL, consumer=name, consumer_id=new_id)
    appended = append(sa.select(row).where(~known.exists()))
    registered = sa.select(appended.c.consumer_id).scalar_subquery()
    result = sa.select(sa.func.coalesce(registered, known.scalar_subquery()).label("id"))
    return compiled(result, schema)


@lru_cache(maxsize=8)
def save_pool_statement(schema: str) -> Statement:
    """Return the statement that registers a pool or changes the one with this id."""
    wanted = {
        "name": parameter("name"),
        "description": parameter("description"),
        "lease_slow": parameter("lease_slow", sa.Boolean),
        "rest_after_release_seconds": parameter("rest_after_release_seconds", sa.Double),
        "rest_after_expiry_seconds": parameter("rest_after_expiry_seconds", sa.Double),
        "max_held_seconds": parameter("max_held_seconds", sa.Double),
        "cool_down": parameter("cool_down", JSONB),
        "selector": parameter("selector"),
        "lease_seconds": parameter("lease_seconds", sa.Double),
        "max_concurrency": parameter("max_concurrency", sa.Integer),
        "limits": parameter("limits", JSONB),
        "cost_per_gb": parameter("cost_per_gb", sa.Numeric),
        "cost_per_lease": parameter("cost_per_lease", sa.Numeric),
        "reported_failures": parameter("reported_failures", sa.Boolean),
        "rotation": parameter("rotation", JSONB),
    }
    known = sa.select(pools).where(pools.c.id == POOL_ID).with_for_update().cte("known")
    one = sa.select(ONE.label("one")).subquery("one")
    is_new = known.c.id.is_(None)
    differs = sa.or_(*(known.c[name].is_distinct_from(value) for name, value in wanted.items()))
    type_ = sa.case((is_new, text_literal("PoolRegistered")), else_=text_literal("PoolChanged"))
    row = event_row(type_, data=json_object(**wanted))
    appended = append(
        sa.select(row).select_from(one.outerjoin(known, sa.true())).where(sa.or_(is_new, differs))
    )
    return compiled(sa.select(appended.c.type), schema)


@lru_cache(maxsize=8)
def save_proxies_statement(schema: str, *, change: bool) -> Statement:
    """Return the statement that registers proxies, and with ``change`` changes known ones.

    The parameter ``rows`` is a JSON array of objects: ``id``, ``secret``
    (encrypted credentials in hex, or null), their fingerprints ``account`` and
    ``identity``, ``status``, ``max_concurrency`` (the pool's before it if ``limited_by_pool``) and
    ``data``, the rest of a ProxyRegistered's data. If ``status`` is missing, a known proxy
    keeps its status and ``checked_at``, and an unknown one is skipped. With ``keeps_link`` a
    known proxy keeps its link for another exit. The result is how many
    are new and how many changed. It has no row if there is no such pool.
    """
    # A shared lock keeps the pool from being removed; several callers may hold it.
    pool = (
        sa.select(pools.c.id, pools.c.max_concurrency)
        .where(pools.c.id == POOL_ID)
        .with_for_update(key_share=True, read=True)
    )
    pool_row = pool.cte("pool")
    given = _given(pool_row)
    known = _known(given, lock=change)
    is_new = known.c.proxy_id.is_(None)
    zero = sa.literal_column("0", sa.Integer)
    held = sa.func.coalesce(known.c.current_leases, zero)
    data: sa.ColumnElement[Any] = given.c.data
    if change:
        # What is not given is as the locked row has it, whatever was read before.
        link = sa.case((given.c.keeps_link, known.c.rotate_id))
        kept = sa.case(
            (is_new, sa.null()),
            else_=json_object(checked_at=known.c.checked_at, rotate_id=link),
        )
        data = sa.func.coalesce(kept.concat(data), data, type_=JSONB)
        # Another description of a banned proxy does not change when its ban ends.
        stays_banned = sa.and_(
            known.c.banned_until.is_not(None),
            sa.func.coalesce(given.c.status, known.c.status) == text_literal("banned"),
        )
        end = json_object(until=known.c.banned_until, returns_to=known.c.returns_to)
        none = sa.literal_column("'{}'::jsonb", JSONB)
        data = data.concat(sa.case((stays_banned, end), else_=none))
    type_ = sa.case((is_new, text_literal("ProxyRegistered")), else_=text_literal("ProxyChanged"))
    row = event_row(
        type_,
        before=State(known.c.status, known.c.current_leases, known.c.max_concurrency),
        after=State(
            sa.func.coalesce(given.c.status, known.c.status), held, given.c.max_concurrency
        ),
        proxy_id=given.c.id,
        data=data,
    )
    is_whole = sa.and_(is_new, given.c.status.is_not(None))
    wanted = sa.or_(is_whole, _differs(given, known)) if change else is_whole
    appended = append(
        sa.select(row)
        .select_from(given.outerjoin(known, known.c.proxy_id == given.c.id))
        .where(wanted)
        .order_by(given.c.place)
    )
    counts = (
        sa.select(sa.func.count())
        .select_from(appended)
        .where(appended.c.type == text_literal(type_))
        for type_ in ("ProxyRegistered", "ProxyChanged")
    )
    new, changed = (count.scalar_subquery() for count in counts)
    result = sa.select(new.label("new"), changed.label("changed")).select_from(pool_row)
    secrets = (_keep_secrets(given, appended), _keep_links(given, appended))
    return compiled(result.add_cte(*secrets), schema)


def _given(pool: sa.CTE) -> sa.CTE:
    """Return the parameter ``rows`` as rows. If an id is given twice, the last row is used."""
    given = (
        sa.func.jsonb_to_recordset(parameter("rows", JSONB))
        .table_valued(
            sa.column("place", sa.Integer),
            sa.column("id", sa.Uuid),
            sa.column("secret", sa.Text),
            sa.column("account", sa.Text),
            sa.column("identity", sa.Text),
            sa.column("link", sa.Text),
            sa.column("link_print", sa.Text),
            sa.column("keeps_link", sa.Boolean),
            sa.column("status", sa.Text),
            sa.column("max_concurrency", sa.Integer),
            sa.column("limited_by_pool", sa.Boolean),
            sa.column("data", JSONB),
            name="g",
        )
        .render_derived(with_types=True)
    )
    of_pool = sa.func.coalesce(pool.c.max_concurrency, given.c.max_concurrency)
    limit = sa.case((given.c.limited_by_pool, of_pool), else_=given.c.max_concurrency)
    own = [column for column in given.c if column.name != "max_concurrency"]
    return (
        sa.select(*own, limit.label("max_concurrency"))
        .select_from(given.join(pool, sa.true()))
        .ext(distinct_on(given.c.id))
        .order_by(given.c.id, given.c.place.desc())
        .cte("given")
        .prefix_with("MATERIALIZED")
    )


def _known(given: sa.CTE, *, lock: bool) -> sa.CTE:
    """Find the proxies that are registered already; with ``lock``, lock them in the order of ids.

    Without ``lock`` each is looked up by its key: otherwise the planner would read the whole
    pool for every thousand.
    """
    state = (
        availability.c.proxy_id,
        availability.c.status,
        availability.c.current_leases,
        availability.c.max_concurrency,
    )
    if not lock:
        one = sa.select(*state).where(
            availability.c.pool_id == POOL_ID, availability.c.proxy_id == given.c.id
        )
        found = one.limit(ONE).lateral("found")
        return sa.select(*found.c).select_from(given.join(found, sa.true())).cte("known")
    members = (
        sa.select(
            *state,
            availability.c.checked_at,
            availability.c.banned_until,
            availability.c.returns_to,
            *_DESCRIBED,
        )
        .select_from(_PROXY)
        .where(
            availability.c.pool_id == POOL_ID, availability.c.proxy_id.in_(sa.select(given.c.id))
        )
        .order_by(availability.c.proxy_id)
    )
    return members.with_for_update(of=(availability, description)).cte("known")


def _differs(given: sa.CTE, known: sa.CTE) -> sa.ColumnElement[bool]:
    data = given.c.data
    checked_at = sa.cast(data["checked_at"].astext, sa.DateTime(timezone=True))
    return sa.or_(
        known.c.status != given.c.status,
        known.c.max_concurrency.is_distinct_from(given.c.max_concurrency),
        known.c.checked_at != checked_at,
        *(
            known.c[own.name].is_distinct_from(sa.cast(data[own.name].astext, own.type))
            for own in _DESCRIBED
            if own.name != "rotate_id"
        ),
        sa.and_(
            sa.not_(given.c.keeps_link),
            known.c.rotate_id.is_distinct_from(sa.cast(data["rotate_id"].astext, sa.Uuid)),
        ),
    )


def _keep_secrets(given: sa.CTE, appended: sa.CTE) -> sa.CTE:
    rows = (
        sa.select(
            sa.cast(appended.c.data["credential_id"].astext, sa.Uuid),
            appended.c.pool_id,
            appended.c.proxy_id,
            *(
                sa.func.decode(given.c[name], text_literal("hex"), type_=sa.LargeBinary)
                for name in _OF_CREDENTIALS
            ),
        )
        .select_from(appended.join(given, given.c.id == appended.c.proxy_id))
        .where(given.c.secret.is_not(None))
    )
    return (
        sa.insert(proxy_credentials)
        .from_select(["id", "pool_id", "proxy_id", *_OF_CREDENTIALS], rows)
        .cte("kept_secrets")
    )


def _keep_links(given: sa.CTE, appended: sa.CTE) -> sa.CTE:
    """Keep the links for another exit beside the credentials."""
    decoded = {
        name: sa.func.decode(given.c[name], text_literal("hex"), type_=sa.LargeBinary)
        for name in ("link", "link_print")
    }
    rows = (
        sa.select(
            sa.cast(appended.c.data["rotate_id"].astext, sa.Uuid),
            appended.c.pool_id,
            appended.c.proxy_id,
            decoded["link"],
            decoded["link_print"],
            decoded["link_print"],
        )
        .select_from(appended.join(given, given.c.id == appended.c.proxy_id))
        .where(given.c.link.is_not(None))
    )
    return (
        insert(proxy_credentials)
        .from_select(["id", "pool_id", "proxy_id", *_OF_CREDENTIALS], rows)
        .on_conflict_do_nothing()
        .cte("kept_links")
    )


@by_schema
def forget_credentials_statement() -> sa.Select[Any]:
    """Call the function that deletes unused credentials of proxies, or of a whole pool."""
    proxies = parameter("proxies", ARRAY(sa.Uuid))
    return sa.select(schema_function("forget_credentials", POOL_ID, proxies, type_=sa.Text))


@lru_cache(maxsize=8)
def set_status_statement(schema: str) -> Statement:
    """Return the statement that sets the status of a proxy, which must be locked."""
    return _status_statement(schema, parameter("status"))


@lru_cache(maxsize=8)
def ban_statement(schema: str) -> Statement:
    """Return the statement that bans a proxy, which must be locked, for a number of seconds."""
    seconds = parameter("for_seconds", sa.Double) * sa.literal_column("interval '1 second'")
    is_banned = availability.c.status == text_literal("banned")
    active = sa.func.coalesce(availability.c.returns_to, text_literal("active"))
    returns_to = sa.case((is_banned, active), else_=availability.c.status)
    return _status_statement(
        schema, text_literal("banned"), until=now + seconds, returns_to=returns_to
    )


@lru_cache(maxsize=8)
def drain_statement(schema: str) -> Statement:
    """Return the statement that drains a proxy, which must be locked and not be draining."""
    return _status_statement(schema, text_literal("banned"), drains=sa.true())


def _status_statement(
    schema: str, wanted: sa.ColumnElement[str], **end: sa.ColumnElement[Any]
) -> Statement:
    described = {own.name: description.c[own.name] for own in _DESCRIBED}
    load = (availability.c.current_leases, availability.c.max_concurrency)
    row = event_row(
        "ProxyChanged",
        before=State(availability.c.status, *load),
        after=State(wanted, *load),
        proxy_id=availability.c.proxy_id,
        data=json_object(
            **described,
            checked_at=availability.c.checked_at,
            reason=parameter("reason"),
            **end,
        ),
    )
    appended = append(
        sa.select(row)
        .select_from(_PROXY)
        .where(
            availability.c.pool_id == POOL_ID,
            availability.c.proxy_id == parameter("proxy_id", sa.Uuid),
            _is_changed(wanted, end),
        )
    )
    return compiled(sa.select(appended.c.position), schema)


def _is_changed(
    wanted: sa.ColumnElement[str], end: dict[str, sa.ColumnElement[Any]]
) -> sa.ColumnElement[bool]:
    if "drains" in end:
        return availability.c.drains.is_(None)
    until = end.get("until", sa.cast(sa.null(), sa.DateTime(timezone=True)))
    return sa.or_(
        availability.c.status != wanted, availability.c.banned_until.is_distinct_from(until)
    )


@lru_cache(maxsize=8)
def rotate_secrets_statement(schema: str) -> Statement:
    """Return the statement that replaces encrypted secrets and their fingerprints."""
    given = (
        sa.func.unnest(
            *(parameter(name, ARRAY(sa.Uuid)) for name in ("ids", "pool_ids", "proxy_ids")),
            *(parameter(name, ARRAY(sa.LargeBinary)) for name in _OF_CREDENTIALS),
        )
        .table_valued("id", "pool_id", "proxy_id", *_OF_CREDENTIALS)
        .render_derived()
    )
    secrets = (
        sa.update(proxy_credentials)
        .values({name: given.c[name] for name in _OF_CREDENTIALS})
        .where(
            proxy_credentials.c.proxy_id == given.c.proxy_id,
            proxy_credentials.c.id == given.c.id,
            proxy_credentials.c.pool_id == given.c.pool_id,
        )
    )
    return compiled(secrets.returning(proxy_credentials.c.id), schema)


@lru_cache(maxsize=8)
def removal_locks(schema: str, *, whole_pool: bool) -> tuple[Statement, ...]:
    """Return the statements that lock what a removal needs, in the common locking order.

    After them nobody can lease the proxies, so a later statement sees all of their leases.
    """
    pool = sa.select(pools.c.id).where(pools.c.id == POOL_ID).with_for_update()
    turns = sa.select(selector_cursors.c.pool_id).where(selector_cursors.c.pool_id == POOL_ID)
    members = (
        sa.select(availability.c.proxy_id)
        .where(availability.c.pool_id == POOL_ID)
        .order_by(availability.c.proxy_id)
    )
    if not whole_pool:
        members = members.where(availability.c.proxy_id == sa.func.any(_PROXIES))
        return tuple(compiled(lock, schema) for lock in (pool, members.with_for_update()))
    locks = (pool, turns.with_for_update(), members.with_for_update())
    return tuple(compiled(lock, schema) for lock in locks)


@lru_cache(maxsize=8)
def remove_proxies_statement(
    schema: str, *, whole_pool: bool, idle_only: bool = False
) -> Statement:
    """Return the statement that removes proxies of a pool: those of ``proxies``, or all.

    With ``idle_only`` it skips leased proxies; else the caller must have ended their leases.
    The result has the ids of the removed proxies.
    """
    # Locked in the order of ids, like every lock on several proxies.
    locked = (
        sa.select(availability)
        .where(availability.c.pool_id == POOL_ID)
        .order_by(availability.c.proxy_id)
        .with_for_update()
    )
    if idle_only:
        locked = locked.where(availability.c.current_leases == sa.literal_column("0"))
    if not whole_pool:
        locked = locked.where(availability.c.proxy_id == sa.func.any(_PROXIES))
    gone = locked.cte("gone")
    row = event_row(
        "ProxyRemoved",
        before=State(gone.c.status, gone.c.current_leases, gone.c.max_concurrency),
        proxy_id=gone.c.proxy_id,
    )
    appended = append(sa.select(row).select_from(gone).order_by(gone.c.proxy_id))
    removed = sa.func.coalesce(
        sa.func.array_agg(appended.c.proxy_id), sa.literal_column("'{}'::uuid[]")
    )
    result = sa.select(removed.label("removed")).select_from(appended)
    return compiled(result, schema)


@lru_cache(maxsize=8)
def remove_pool_statement(schema: str) -> Statement:
    """Return the statement that removes a pool without proxies."""
    gone = sa.select(pools.c.name).where(pools.c.id == POOL_ID).cte("gone")
    row = event_row("PoolRemoved", data=json_object(name=gone.c.name))
    appended = append(sa.select(row).select_from(gone))
    return compiled(sa.select(sa.func.count().label("removed")).select_from(appended), schema)


@lru_cache(maxsize=8)
def prune_statement(schema: str) -> Statement:
    """Return the statement that deletes a pool's leases that ended before a given time."""
    before = parameter("ended_before", sa.DateTime(timezone=True))
    # The end of a lease that commits now may be dated up to a minute ago.
    settled = sa.func.least(before, now - sa.literal_column("interval '1 minute'"))
    ended = (
        sa.select(sa.func.count().label("n"))
        .select_from(leases)
        .where(
            leases.c.pool_id == POOL_ID,
            leases.c.status != text_literal("active"),
            leases.c.released_at < settled,
        )
        .cte("ended")
    )
    row = event_row("LeasesPruned", data=json_object(ended_before=settled))
    appended = append(sa.select(row).select_from(ended).where(ended.c.n > 0))
    # The join to the appended event makes PostgreSQL execute the append.
    result = sa.select(ended.c.n.label("pruned")).select_from(ended.outerjoin(appended, sa.true()))
    return compiled(result, schema)
