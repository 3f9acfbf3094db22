"""Register, change and remove what leasing is about: consumers, pools, proxies.

Rows come as one JSON parameter, so a batch of any size is one statement. What
is registered already and no different appends nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    LargeBinary,
    Select,
    Text,
    Uuid,
    and_,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, distinct_on

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

_PROXIES = parameter("proxies", ARRAY(Uuid))
_NIL = literal_column(f"'{NIL}'::uuid", Uuid)

_OF_CREDENTIALS = ("secret", "account", "identity")
"""What is kept of credentials: encrypted, and what recognises them."""

_DESCRIBED = tuple(own for own in description.c if own.name not in ("id", "pool_id"))


@lru_cache(maxsize=8)
def register_consumer_statement(schema: str) -> Statement:
    """Return the statement that registers a consumer and answers with its id."""
    name, new_id = parameter("consumer"), parameter("consumer_id", Uuid)
    known = select(consumers.c.id).where(consumers.c.name == name)
    row = event_row("ConsumerRegistered", pool_id=_NIL, consumer=name, consumer_id=new_id)
    appended = append(select(row).where(~known.exists()))
    registered = select(appended.c.consumer_id).scalar_subquery()
    result = select(func.coalesce(registered, known.scalar_subquery()).label("id"))
    return compiled(result, schema)


@lru_cache(maxsize=8)
def save_pool_statement(schema: str) -> Statement:
    """Return the statement that registers a pool or changes the one of this id."""
    wanted = {
        "name": parameter("name"),
        "description": parameter("description"),
        "lease_slow": parameter("lease_slow", Boolean),
    }
    known = select(pools).where(pools.c.id == POOL_ID).with_for_update().cte("known")
    one = select(ONE.label("one")).subquery("one")
    is_new = known.c.id.is_(None)
    differs = or_(*(known.c[name].is_distinct_from(value) for name, value in wanted.items()))
    type_ = case((is_new, text_literal("PoolRegistered")), else_=text_literal("PoolChanged"))
    row = event_row(type_, data=json_object(**wanted))
    appended = append(
        select(row).select_from(one.outerjoin(known, true())).where(or_(is_new, differs))
    )
    return compiled(select(appended.c.type), schema)


@lru_cache(maxsize=8)
def save_proxies_statement(schema: str, *, change: bool) -> Statement:
    """Return the statement that registers proxies, and with ``change`` changes known ones.

    The parameter ``rows`` is a JSON array of objects: ``id``, ``secret``
    (encrypted credentials in hex, or null), their fingerprints ``account`` and
    ``identity``, ``status``, ``max_concurrency`` and ``data``, the rest of a
    ProxyRegistered's data. A known proxy without ``status`` keeps its own, and when it was
    checked; an unknown one is passed by then. The answer is how many are new, and how many
    changed; no row at all says that there is no such pool.
    """
    pool = (
        select(pools.c.id).where(pools.c.id == POOL_ID).with_for_update(key_share=True, read=True)
    )
    pool_row = pool.cte("pool")
    given = _given(pool_row)
    known = _known(given, lock=change)
    is_new = known.c.proxy_id.is_(None)
    zero = literal_column("0", Integer)
    held = func.coalesce(known.c.current_leases, zero)
    data: ColumnElement[Any] = given.c.data
    if change:
        kept = case((is_new, null()), else_=json_object(checked_at=known.c.checked_at))
        data = func.coalesce(kept.concat(data), data, type_=JSONB)
    type_ = case((is_new, text_literal("ProxyRegistered")), else_=text_literal("ProxyChanged"))
    row = event_row(
        type_,
        before=State(known.c.status, known.c.current_leases, known.c.max_concurrency),
        after=State(func.coalesce(given.c.status, known.c.status), held, given.c.max_concurrency),
        proxy_id=given.c.id,
        data=data,
    )
    is_whole = and_(is_new, given.c.status.is_not(None))
    wanted = or_(is_whole, _differs(given, known)) if change else is_whole
    appended = append(
        select(row)
        .select_from(given.outerjoin(known, known.c.proxy_id == given.c.id))
        .where(wanted)
        .order_by(given.c.place)
    )
    counts = (
        select(func.count()).select_from(appended).where(appended.c.type == text_literal(type_))
        for type_ in ("ProxyRegistered", "ProxyChanged")
    )
    new, changed = (count.scalar_subquery() for count in counts)
    result = select(new.label("new"), changed.label("changed")).select_from(pool_row)
    return compiled(result.add_cte(_keep_secrets(given, appended)), schema)


def _given(pool: CTE) -> CTE:
    """Return the parameter ``rows`` as rows, each id once: the last one given counts."""
    given = (
        func.jsonb_to_recordset(parameter("rows", JSONB))
        .table_valued(
            column("place", Integer),
            column("id", Uuid),
            column("secret", Text),
            column("account", Text),
            column("identity", Text),
            column("status", Text),
            column("max_concurrency", Integer),
            column("data", JSONB),
            name="g",
        )
        .render_derived(with_types=True)
    )
    return (
        select(*given.c)
        .select_from(given.join(pool, true()))
        .ext(distinct_on(given.c.id))
        .order_by(given.c.id, given.c.place.desc())
        .cte("given")
        .prefix_with("MATERIALIZED")
    )


def _known(given: CTE, *, lock: bool) -> CTE:
    """Find those that are registered already; with ``lock``, lock them in the order of ids.

    Each is looked up by its key, however many the planner thinks there are: it would read
    the whole pool for every thousand.
    """
    standing = (
        availability.c.proxy_id,
        availability.c.status,
        availability.c.current_leases,
        availability.c.max_concurrency,
    )
    if not lock:
        one = select(*standing).where(
            availability.c.pool_id == POOL_ID, availability.c.proxy_id == given.c.id
        )
        found = one.limit(ONE).lateral("found")
        return select(*found.c).select_from(given.join(found, true())).cte("known")
    members = (
        select(*standing, availability.c.checked_at, *_DESCRIBED)
        .select_from(
            availability.join(
                description,
                and_(
                    description.c.id == availability.c.proxy_id,
                    description.c.pool_id == availability.c.pool_id,
                ),
            )
        )
        .where(availability.c.pool_id == POOL_ID, availability.c.proxy_id.in_(select(given.c.id)))
        .order_by(availability.c.proxy_id)
    )
    return members.with_for_update(of=(availability, description)).cte("known")


def _differs(given: CTE, known: CTE) -> ColumnElement[bool]:
    facts = given.c.data
    checked_at = cast(facts["checked_at"].astext, DateTime(timezone=True))
    return or_(
        known.c.status != given.c.status,
        known.c.max_concurrency.is_distinct_from(given.c.max_concurrency),
        known.c.checked_at != checked_at,
        *(
            known.c[own.name].is_distinct_from(cast(facts[own.name].astext, own.type))
            for own in _DESCRIBED
        ),
    )


def _keep_secrets(given: CTE, appended: CTE) -> CTE:
    rows = (
        select(
            cast(appended.c.data["credential_id"].astext, Uuid),
            appended.c.pool_id,
            appended.c.proxy_id,
            *(
                func.decode(given.c[name], text_literal("hex"), type_=LargeBinary)
                for name in _OF_CREDENTIALS
            ),
        )
        .select_from(appended.join(given, given.c.id == appended.c.proxy_id))
        .where(given.c.secret.is_not(None))
    )
    return (
        insert(proxy_credentials)
        .from_select(["id", "pool_id", "proxy_id", *_OF_CREDENTIALS], rows)
        .cte("kept_secrets")
    )


@by_schema
def forget_credentials_statement() -> Select[Any]:
    """Call what deletes the credentials of proxies, or of a whole pool, that are out of use."""
    proxies = parameter("proxies", ARRAY(Uuid))
    return select(schema_function("forget_credentials", POOL_ID, proxies, type_=Text))


@lru_cache(maxsize=8)
def set_status_statement(schema: str) -> Statement:
    """Return the statement that decides the status of a proxy, which is locked."""
    wanted = parameter("status")
    described = {own.name: description.c[own.name] for own in _DESCRIBED}
    standing = (availability.c.current_leases, availability.c.max_concurrency)
    row = event_row(
        "ProxyChanged",
        before=State(availability.c.status, *standing),
        after=State(wanted, *standing),
        proxy_id=availability.c.proxy_id,
        data=json_object(
            **described, checked_at=availability.c.checked_at, reason=parameter("reason")
        ),
    )
    appended = append(
        select(row)
        .select_from(
            availability.join(
                description,
                and_(
                    description.c.id == availability.c.proxy_id,
                    description.c.pool_id == availability.c.pool_id,
                ),
            )
        )
        .where(
            availability.c.pool_id == POOL_ID,
            availability.c.proxy_id == parameter("proxy_id", Uuid),
            availability.c.status != wanted,
        )
    )
    return compiled(select(appended.c.position), schema)


@lru_cache(maxsize=8)
def rotate_secrets_statement(schema: str) -> Statement:
    """Return the statement that replaces encrypted secrets and their fingerprints."""
    given = (
        func.unnest(
            *(parameter(name, ARRAY(Uuid)) for name in ("ids", "pool_ids", "proxy_ids")),
            *(parameter(name, ARRAY(LargeBinary)) for name in _OF_CREDENTIALS),
        )
        .table_valued("id", "pool_id", "proxy_id", *_OF_CREDENTIALS)
        .render_derived()
    )
    secrets = (
        update(proxy_credentials)
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
    """Return the statements that lock what a removal is about, in the order of all locks.

    Only once nobody can lease the proxies any more does a statement after
    these see all of their leases.
    """
    pool = select(pools.c.id).where(pools.c.id == POOL_ID).with_for_update()
    turns = select(selector_cursors.c.pool_id).where(selector_cursors.c.pool_id == POOL_ID)
    members = (
        select(availability.c.proxy_id)
        .where(availability.c.pool_id == POOL_ID)
        .order_by(availability.c.proxy_id)
    )
    if not whole_pool:
        members = members.where(availability.c.proxy_id == func.any(_PROXIES))
        return tuple(compiled(lock, schema) for lock in (pool, members.with_for_update()))
    locks = (pool, turns.with_for_update(), members.with_for_update())
    return tuple(compiled(lock, schema) for lock in locks)


@lru_cache(maxsize=8)
def remove_proxies_statement(
    schema: str, *, whole_pool: bool, idle_only: bool = False
) -> Statement:
    """Return the statement that removes proxies of a pool: those of ``proxies``, or all.

    With ``idle_only`` it leaves those alone that somebody holds; else their leases have
    ended before. The answer is which were removed.
    """
    locked = (
        select(availability)
        .where(availability.c.pool_id == POOL_ID)
        .order_by(availability.c.proxy_id)
        .with_for_update()
    )
    if idle_only:
        locked = locked.where(availability.c.current_leases == literal_column("0"))
    if not whole_pool:
        locked = locked.where(availability.c.proxy_id == func.any(_PROXIES))
    gone = locked.cte("gone")
    row = event_row(
        "ProxyRemoved",
        before=State(gone.c.status, gone.c.current_leases, gone.c.max_concurrency),
        proxy_id=gone.c.proxy_id,
    )
    appended = append(select(row).select_from(gone).order_by(gone.c.proxy_id))
    removed = func.coalesce(func.array_agg(appended.c.proxy_id), literal_column("'{}'::uuid[]"))
    result = select(removed.label("removed")).select_from(appended)
    return compiled(result, schema)


@lru_cache(maxsize=8)
def remove_pool_statement(schema: str) -> Statement:
    """Return the statement that removes a pool that has no proxies left."""
    gone = select(pools.c.name).where(pools.c.id == POOL_ID).cte("gone")
    row = event_row("PoolRemoved", data=json_object(name=gone.c.name))
    appended = append(select(row).select_from(gone))
    return compiled(select(func.count().label("removed")).select_from(appended), schema)


@lru_cache(maxsize=8)
def prune_statement(schema: str) -> Statement:
    """Return the statement that forgets a pool's leases that ended before a moment."""
    before = parameter("ended_before", DateTime(timezone=True))
    # A lease that is ending just now may have been decided up to a minute ago.
    settled = func.least(before, now - literal_column("interval '1 minute'"))
    ended = (
        select(func.count().label("n"))
        .select_from(leases)
        .where(
            leases.c.pool_id == POOL_ID,
            leases.c.status != text_literal("active"),
            leases.c.released_at < settled,
        )
        .cte("ended")
    )
    row = event_row("LeasesPruned", data=json_object(ended_before=settled))
    appended = append(select(row).select_from(ended).where(ended.c.n > 0))
    # Joined to what is appended, so that it is.
    result = select(ended.c.n.label("pruned")).select_from(ended.outerjoin(appended, true()))
    return compiled(result, schema)
