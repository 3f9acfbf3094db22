"""Carry out the steps of a pool's move, which :mod:`pharox.storage.moving` states.

Each step is one transaction that takes the pool's turn first, so two movers, or one who cancels,
come one after the other, and each sees how far the move is. A pool departs under the locks of a
removal: whoever leases, checks, reports or changes anything of it has committed before, and is in
the cargo, or comes after, and finds no pool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, distinct_on

import projections
from pharox.log import events
from projections import Projection
from projections.available_proxies import available_proxies
from projections.consumers import consumers
from projections.lease_starts import lease_starts
from projections.leases import leases
from projections.pool_moves import pool_moves
from projections.pools import pools
from projections.proxies import proxies
from projections.sources import sources

from ...errors import ConflictError, DatabaseError, PoolNotFoundError, SecretKeyError
from ...models import MoveStage, PoolMove, Proxy, ProxyStatus
from ...models.proxy import RECORDED
from ..moving import (
    BANS,
    CARRIED,
    CONSUMERS,
    BeginMove,
    CancelMove,
    CheckArrival,
    DepartPool,
    DrainMove,
    Fact,
    FinishMove,
    InspectPool,
    MoveOrder,
    PoolCargo,
    PoolToMove,
    ReadCargo,
    ReceivePool,
    RefusePool,
    arrival_facts,
    ban_row,
    began_fact,
    begun_before,
    cancelled_fact,
    carried_facts,
    departed_fact,
    hidden_name,
    moved_away,
    moved_fact,
    recorded,
    return_facts,
)
from ..requests import RevokeRequest
from . import moves, registry_statements, revoking
from .appending import State, append, event_row, json_object, origin
from .driver import Program, Rows, Step
from .registry import batches
from .sources import source_of
from .sql import (
    ONE,
    POOL_ID,
    Query,
    Statement,
    by_schema,
    call_of,
    parameter,
    schema_function,
)
from .tables import proxy_credentials, source_secrets, source_turns, waiting_tickets
from .vault import Place, SourcePlace
from .waiting import wake_query

if TYPE_CHECKING:
    from .commands import Commands

ATTEMPTS = 5
"""How often a move begins at most with a pool that others rename or move at the same time."""

FACTS = 2000
"""How many events one statement appends in the ledger that a pool comes to."""

PAGE_BYTES = 32 * 2**20
"""How much JSON becomes one value: PostgreSQL's JSON ends at 256 MB."""

MOST_BYTES = 900 * 2**20
"""How much JSON one statement takes: a message to PostgreSQL ends at 1 GB."""


def carry_out(commands: Commands, order: MoveOrder) -> Program[Any]:
    """Carry out one step."""
    return _STEPS[type(order)](commands, order)


# Before it begins


def _inspect(commands: Commands, order: InspectPool) -> Program[PoolToMove | None]:
    yield from _check_rights(commands)
    rows = yield Query(_inspect_statement(commands.schema), {"name": order.pool_name})
    return PoolToMove(rows[0]["id"], rows[0]["has_secrets"]) if rows else None


def _check_arrival(commands: Commands, order: CheckArrival) -> Program[None]:
    yield from _check_rights(commands)
    yield from _check_place(commands, order.pool_name, order.pool.pool_id)
    if order.pool.has_secrets and not commands.vault.has_keys:
        raise SecretKeyError(
            f"pool {order.pool_name!r} has credentials, and the ledger that it is to move to has "
            "no key to encrypt them: set PHAROX_SECRET_KEY for it"
        )


def _check_rights(commands: Commands) -> Program[None]:
    """Fail unless the role is the ledger's owner: a move would be cut off half-way."""
    yield from _advance(commands, 0)  # which does nothing else


def _advance(commands: Commands, beyond: int) -> Program[None]:
    """Have positions go on after one; only the ledger's owner may."""
    try:
        yield Query(_advance_statement(commands.schema), {"beyond": beyond})
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            "this role may not move pools, as only a ledger's owner may set its positions: "
            f"{str(error).strip()}. Move them as the owner of the schema {commands.schema!r}, in "
            "both ledgers: `pharox db grant --owner ROLE`",
            schema=commands.schema,
        ) from error


def _check_place(commands: Commands, pool_name: str, pool_id: UUID) -> Program[None]:
    values = {"name": pool_name, "pool_id": pool_id}
    if (yield Query(_taken_statement(commands.schema), values)):
        raise ConflictError(f"the ledger has a pool {pool_name!r} already", **values)


# In the ledger that the pool leaves


def _begin(commands: Commands, order: BeginMove) -> Program[PoolMove]:
    schema, name = commands.schema, order.pool_name
    for _ in range(ATTEMPTS):
        pool = yield from commands.pool_by_name(name)
        if pool is None:
            last = yield from moves.last_move(schema, name)
            if (begun := begun_before(order, last)) is not None:
                return begun
            if last is not None and last.goes_to is not None:
                raise moved_away(last)
            raise PoolNotFoundError(f"Pool {name!r} not found.", pool_name=name)
        begun = yield from _hidden(commands, order, pool.id)
        if begun is not None:
            return begun
    raise ConflictError(
        f"pool {name!r} was renamed, moved or cancelled by others {ATTEMPTS} times while its move "
        "was to begin: find out who does so, and move it again",
        pool_name=name,
    )


def _hidden(commands: Commands, order: BeginMove, pool_id: UUID) -> Program[PoolMove | None]:
    """Hide a pool by its name, and record that its move begins, unless one is under way.

    Return the move; None if the pool has another name meanwhile.
    """
    schema, name = commands.schema, order.pool_name
    hidden = hidden_name(name, order.to)

    def under_way(answers: Sequence[Rows]) -> PoolMove | None:
        last = _move_in(answers[3])
        return begun_before(order, last)

    def tell(answers: Sequence[Rows]) -> Query | None:
        if not answers[2] or under_way(answers) is not None:
            return None
        return _append_query(schema, pool_id, name, [began_fact(order.move_id, order.to)])

    def if_named(query: Query) -> Step:
        return lambda answers: query if answers[2] else None

    try:
        answers = yield [
            moves.pool_turn(schema, pool_id),
            moves.name_turn(schema, name),
            Query(_named_statement(schema), {"pool_id": pool_id, "name": name}),
            moves.last_of_pool_query(schema, pool_id),
            tell,
            if_named(_rename_query(schema, pool_id, hidden)),
            if_named(Query(_drop_tickets_statement(schema), {"pool_id": pool_id})),
        ]
    except psycopg.errors.UniqueViolation as error:
        raise ConflictError(f"another pool is named {hidden!r}", name=hidden) from error
    yield from _wake(answers[-1])
    if not answers[2]:
        return None
    begun = under_way(answers)
    return begun if begun is not None else (yield from _known(commands, order.move_id))


def _drain(commands: Commands, order: DrainMove) -> Program[int]:
    schema, pool_id = commands.schema, order.move.pool_id
    # Who had found the pool before it was hidden may wait in its queue since.
    woken = yield Query(_drop_tickets_statement(schema), {"pool_id": pool_id})
    yield from _wake(woken)
    yield from commands.take_back(pool_id, with_stats=False)
    held = yield Query(_held_statement(schema), {"pool_id": pool_id})
    if held and order.revoke_reason is not None:
        ids = tuple(row["id"] for row in held)
        yield from revoking.revoke_leases(schema, RevokeRequest(ids, order.revoke_reason))
        held = yield Query(_held_statement(schema), {"pool_id": pool_id})
    return len(held)


def _wake(rows: Rows) -> Program[None]:
    if processes := sorted({str(row["process_id"]) for row in rows}):
        yield wake_query(processes)


def _depart(commands: Commands, order: DepartPool) -> Program[PoolMove]:
    move, schema, pool_id = order.move, commands.schema, order.move.pool_id
    of_pool: Mapping[str, Any] = {"pool_id": pool_id}
    (head,) = yield Query(_head_statement(schema), {})
    locks = [
        Query(lock, of_pool) for lock in registry_statements.removal_locks(schema, whole_pool=True)
    ]
    reads = [Query(_rows_statement(each)(schema), of_pool) for each in CARRIED]

    def brought_bans(answers: Sequence[Rows]) -> Query | None:
        rows = answers[arrived]
        return Query(_brought_bans_statement(schema), {**of_pool, **rows[0]}) if rows else None

    def since(answers: Sequence[Rows]) -> int:
        rows = answers[arrived]
        return rows[0]["position"] if rows else 0

    steps: list[Step] = [
        moves.pool_turn(schema, pool_id),
        moves.move_query(schema, move.move_id),
        *locks,
        Query(_lock_turns_statement(schema), of_pool),
        Query(_held_statement(schema), of_pool),
        *reads,
        Query(_asking_statement(schema), of_pool),
        Query(_arrival_statement(schema), of_pool),
        brought_bans,
        lambda answers: Query(_bans_statement(schema), {**of_pool, "position": since(answers)}),
    ]
    known, held = 1, len(locks) + 3
    read = range(held + 1, held + 1 + len(reads) + 1)
    arrived, brought, banned = (read[-1] + number for number in (1, 2, 3))

    def may_leave(answers: Sequence[Rows]) -> bool:
        found = answers[known]
        return bool(found) and found[0]["stage"] == MoveStage.BEGAN and not answers[held]

    def told(answers: Sequence[Rows]) -> Sequence[Fact]:
        loaded: dict[str, Any] = {
            each.name: each.load(rows).values()
            for each, rows in zip(CARRIED, [answers[place] for place in read], strict=False)
        }
        loaded[CONSUMERS] = projections.CONSUMERS.load(answers[read[-1]]).values()
        bans = _bans(loaded["available_proxies"], answers[brought], answers[banned])
        return carried_facts(move, {**recorded(loaded), BANS: bans}, arrived=False)

    def carry(answers: Sequence[Rows]) -> Query | None:
        if not may_leave(answers):
            return None
        if not answers[read[0]]:
            raise PoolNotFoundError(f"Pool {pool_id} was removed.", pool_id=pool_id)
        return _append_query(schema, pool_id, move.pool_name, told(answers))

    def remove(statement: Statement) -> Step:
        query = Query(statement, {**origin(), "pool_id": pool_id})
        return lambda answers: query if may_leave(answers) else None

    def leave(answers: Sequence[Rows]) -> Query | None:
        if not may_leave(answers):
            return None
        (carried,) = answers[banned + 1]
        (last,) = answers[-1]
        fact = departed_fact(
            move,
            last_seq=head["last_seq"],
            root=head["root"],
            first_position=carried["first"],
            last_position=last["last"],
            carried=carried["appended"],
        )
        return _append_query(schema, pool_id, move.pool_name, [fact])

    yield [
        *steps,
        carry,
        remove(registry_statements.remove_proxies_statement(schema, whole_pool=True)),
        remove(registry_statements.remove_pool_statement(schema)),
        remove(_last_position_statement(schema)),
        leave,
    ]
    return (yield from _known(commands, move.move_id))


def _bans(proxies: Iterable[Any], brought: Rows, changed: Rows) -> list[dict[str, Any]]:
    """Return who banned proxies, as far as the pool's last stay here or what it brought says it."""
    found = {UUID(row["proxy_id"]): row for event in brought for row in event["data"]["rows"]}
    for row in changed:
        found.pop(row["proxy_id"], None)
        if row["status_after"] == ProxyStatus.BANNED:
            known = {name: row[name] for name in row if name != "status_after"}
            found[row["proxy_id"]] = ban_row(**known)
    banned = sorted(row.proxy_id for row in proxies if row.status == ProxyStatus.BANNED)
    return [found[proxy_id] for proxy_id in banned if proxy_id in found]


def _cargo(commands: Commands, move: PoolMove) -> Program[PoolCargo | None]:
    schema, of_pool = commands.schema, {"pool_id": move.pool_id}

    def departed(answers: Sequence[Rows]) -> Query | None:
        known = _move_in(answers[1])
        if known is None or known.stage is not MoveStage.DEPARTED:
            return None
        return Query(_event_statement(schema), {"position": known.position})

    def carried(answers: Sequence[Rows]) -> Query | None:
        if not answers[2]:
            return None
        (event,) = answers[2]
        span = {"first": event["data"]["first_position"], "last": event["position"]}
        return Query(_carried_statement(schema), {"move_id": str(move.move_id), **span})

    def source_secrets_of(answers: Sequence[Rows]) -> Query | None:
        ids = [UUID(row["id"]) for row in _rows_in(answers[3]).get("sources", ())]
        return Query(_source_secrets_statement(schema), {"ids": ids}) if ids else None

    # Under the turn: nobody deletes the secrets between two of these.
    _, known, event, told, kept, kept_sources = yield [
        moves.pool_turn(schema, move.pool_id),
        moves.move_query(schema, move.move_id),
        departed,
        carried,
        Query(_secrets_statement(schema), of_pool),
        source_secrets_of,
    ]
    if not event:
        return None
    cargo = PoolCargo(moves.move_from_row(known[0]), _rows_in(told))
    return _opened(commands, cargo, kept, kept_sources)


def _rows_in(carried: Rows) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that events carry, by read model."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for event in carried:
        rows.setdefault(event["data"]["read_model"], []).extend(event["data"]["rows"])
    return rows


def _opened(commands: Commands, cargo: PoolCargo, kept: Rows, kept_sources: Rows) -> PoolCargo:
    """Return a cargo with its secrets, decrypted."""
    vault, pool_id = commands.vault, cargo.move.pool_id
    secrets = {(row["proxy_id"], row["id"]): row["secret"] for row in kept}
    credentials, links = {}, {}
    for row in cargo.of("proxies"):
        proxy_id = UUID(row["id"])
        if "credential_id" in row:
            place = Place(UUID(row["credential_id"]), pool_id, proxy_id)
            credentials[place.credential_id] = vault.open(
                secrets.get((proxy_id, place.credential_id)), place
            )
        if "rotate_id" in row:
            place = Place(UUID(row["rotate_id"]), pool_id, proxy_id)
            links[place.credential_id] = vault.open_link(
                secrets.get((proxy_id, place.credential_id)), place
            )
    urls = {row["id"]: row["secret"] for row in kept_sources}
    opened = {}
    for row in cargo.of("sources"):
        source_place = SourcePlace(UUID(row["secret_id"]), UUID(row["id"]))
        secret = vault.open_source(urls.get(source_place.secret_id), source_place)
        opened[source_place.source_id] = source_of(row, cargo.move.pool_name, *secret)
    return PoolCargo(cargo.move, cargo.rows, credentials, links, opened)


def _finish(commands: Commands, order: FinishMove) -> Program[PoolMove]:
    move, schema, pool_id = order.move, commands.schema, order.move.pool_id

    def tell(answers: Sequence[Rows]) -> Query | None:
        known = _move_in(answers[1])
        if known is None or known.stage is not MoveStage.DEPARTED:
            return None
        return _append_query(schema, pool_id, known.pool_name, [moved_fact(known)])

    forget = registry_statements.forget_credentials_statement(schema)

    def if_told(query: Query) -> Step:
        return lambda answers: query if answers[2] else None

    yield [
        moves.pool_turn(schema, pool_id),
        moves.move_query(schema, move.move_id),
        tell,
        if_told(Query(forget, {"pool_id": pool_id, "proxies": None})),
        if_told(Query(_forget_sources_statement(schema), {})),
    ]
    return (yield from _known(commands, move.move_id))


def _cancel(commands: Commands, order: CancelMove) -> Program[PoolMove]:
    schema = commands.schema
    known = yield from _known(commands, order.move.move_id)
    facts = [cancelled_fact(known, known.ledger)]
    if known.stage is MoveStage.DEPARTED:
        cargo = yield from _cargo(commands, known)
        facts = [] if cargo is None else list(return_facts(cargo))

    def as_known(query: Query, stage: MoveStage) -> Step:
        def step(answers: Sequence[Rows]) -> Query | None:
            now = _move_in(answers[1])
            return query if now is not None and now.stage is known.stage is stage else None

        return step

    def tell(query: Query) -> Step:
        return as_known(query, known.stage)

    if known.stage.is_under_way:
        appends = _append_queries(schema, known.pool_id, known.pool_name, facts)
        rename = _rename_query(schema, known.pool_id, known.pool_name)
        try:
            yield [
                moves.pool_turn(schema, known.pool_id),
                moves.move_query(schema, known.move_id),
                *map(tell, appends),
                as_known(rename, MoveStage.BEGAN),
            ]
        except psycopg.errors.UniqueViolation as error:
            raise ConflictError(
                f"pool {known.pool_name!r} cannot stay: the ledger has something of its name or id",
                name=known.pool_name,
            ) from error
    return (yield from _known(commands, known.move_id))


# In the ledger that the pool comes to


def _receive(commands: Commands, order: ReceivePool) -> Program[PoolMove]:
    schema, cargo = commands.schema, order.cargo
    move = cargo.move
    known = yield from _move(commands, move.move_id)
    if known is not None:
        return known
    yield from _check_place(commands, move.pool_name, move.pool_id)
    yield from _check_members(commands, cargo)
    secrets = [*_sealed(commands, cargo), *_sealed_sources(commands, cargo)]
    own: dict[str, UUID] = {}
    for id_, name in cargo.consumers.items():
        own[name] = yield from _consumer(commands, name, UUID(id_))
    yield from _advance(commands, cargo.last_position)
    facts = list(arrival_facts(cargo, order.came_from, own))
    appends = _append_queries(schema, move.pool_id, move.pool_name, facts)

    def unless_known(query: Query) -> Step:
        return lambda answers: None if answers[1] else query

    try:
        yield [
            moves.pool_turn(schema, move.pool_id),
            moves.move_query(schema, move.move_id),
            *map(unless_known, secrets),
            *map(unless_known, appends),
        ]
    except psycopg.errors.UniqueViolation as error:
        raise ConflictError(
            f"pool {move.pool_name!r} cannot come: the ledger has something of that name or id",
            name=move.pool_name,
        ) from error
    return (yield from _known(commands, move.move_id))


def _consumer(commands: Commands, name: str, wanted: UUID) -> Program[UUID]:
    """Return a consumer's id here: the one that it had elsewhere, unless another has it."""
    try:
        return (yield from commands.ensure_consumer(name, wanted))
    except ConflictError:
        return (yield from commands.ensure_consumer(name, uuid4()))


def _check_members(commands: Commands, cargo: PoolCargo) -> Program[None]:
    values = {
        "ids": [UUID(row["id"]) for row in cargo.of("proxies")],
        "names": [row["name"] for row in cargo.of("sources")],
    }
    for row in (yield Query(_clashes_statement(commands.schema), values)):
        what = f"a source {row['name']!r}" if row["name"] else f"proxy {row['id']} in another pool"
        raise ConflictError(f"the ledger has {what} already: remove it there first", **row)


def _sealed(commands: Commands, cargo: PoolCargo) -> Iterable[Query]:
    """Return the statements that store a cargo's credentials and links, encrypted anew."""
    vault, pool_id = commands.vault, cargo.move.pool_id
    stored: list[tuple[Any, ...]] = []
    for row in cargo.of("proxies"):
        proxy_id = UUID(row["id"])
        if "credential_id" in row:
            place = Place(UUID(row["credential_id"]), pool_id, proxy_id)
            credentials = cargo.credentials[place.credential_id]
            known = {name: row[name] for name in ("host", "port", "protocol")}
            proxy = Proxy.model_validate(
                {**known, "pool_id": pool_id, "credentials": credentials, "template": False},
                context=RECORDED,
            )
            prints = vault.fingerprints(pool_id, proxy)
            stored.append((*place, vault.seal(credentials, place), *prints))
        if "rotate_id" in row:
            place = Place(UUID(row["rotate_id"]), pool_id, proxy_id)
            link = cargo.links[place.credential_id]
            print_ = vault.link_prints(pool_id, proxy_id, link)[0]
            stored.append((*place, vault.seal_link(link, place), print_, print_))
    names = ("ids", "pool_ids", "proxy_ids", "secret", "account", "identity")
    for page in batches(stored):
        values = dict(zip(names, map(list, zip(*page, strict=True)), strict=True))
        yield Query(_keep_secrets_statement(commands.schema), values)


def _sealed_sources(commands: Commands, cargo: PoolCargo) -> Iterable[Query]:
    for row in cargo.of("sources"):
        place = SourcePlace(UUID(row["secret_id"]), UUID(row["id"]))
        source = cargo.sources[place.source_id]
        headers = {name: value.get_secret_value() for name, value in source.headers.items()}
        secret = commands.vault.seal_source(source.url.get_secret_value(), headers, place)
        values = {"id": place.secret_id, "source_id": place.source_id, "secret": secret}
        yield Query(_keep_source_secret_statement(commands.schema), values)


def _refuse(commands: Commands, order: RefusePool) -> Program[PoolMove]:
    schema, move = commands.schema, order.move
    refuse = _append_query(
        schema, move.pool_id, move.pool_name, [cancelled_fact(move, order.came_from)]
    )
    yield [
        moves.pool_turn(schema, move.pool_id),
        moves.move_query(schema, move.move_id),
        lambda answers: None if answers[1] else refuse,
    ]
    return (yield from _known(commands, move.move_id))


# What the steps have in common


def _move(commands: Commands, move_id: UUID) -> Program[PoolMove | None]:
    rows = yield moves.move_query(commands.schema, move_id)
    return _move_in(rows)


def _move_in(rows: Rows) -> PoolMove | None:
    return moves.move_from_row(rows[0]) if rows else None


def _known(commands: Commands, move_id: UUID) -> Program[PoolMove]:
    move = yield from _move(commands, move_id)
    if move is None:
        raise PoolNotFoundError(f"There is no move {move_id} of a pool here.", move_id=move_id)
    return move


def _append_query(schema: str, pool_id: UUID, pool_name: str, facts: Sequence[Fact]) -> Query:
    """Return the query that appends events, in order.

    Raises
    ------
    ConflictError
        If they are too much for one statement.
    """
    pages = list(_pages(facts))
    if sum(map(len, pages)) > MOST_BYTES:
        raise ConflictError(
            f"pool {pool_name!r} is too large to move: what it carries is more than "
            f"{MOST_BYTES >> 20} MB; cancel the move, and move its proxies to several pools",
            pool_name=pool_name,
        )
    return _append_pages_query(schema, pool_id, pool_name, pages)


def _append_pages_query(schema: str, pool_id: UUID, pool_name: str, pages: list[str]) -> Query:
    values = {"pool_id": pool_id, "pool_name": pool_name, "pages": pages}
    return Query(_append_statement(schema), {**origin(), **values})


def _pages(facts: Sequence[Fact]) -> Iterator[str]:
    """Yield events as arrays of JSON, none of them too large."""
    page: list[str] = []
    size = 0
    for place, fact in enumerate(facts):
        row = json.dumps({**fact._asdict(), "place": place, "data": _stripped(fact.data)})
        if page and size + len(row) > PAGE_BYTES:
            yield f"[{','.join(page)}]"
            page, size = [], 0
        page.append(row)
        size += len(row)
    yield f"[{','.join(page)}]"


def _append_queries(
    schema: str, pool_id: UUID, pool_name: str, facts: Sequence[Fact]
) -> list[Query]:
    return [
        _append_pages_query(schema, pool_id, pool_name, [page])
        for batch in batches(facts, FACTS)
        for page in _pages(batch)
    ]


def _stripped(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def _rename_query(schema: str, pool_id: UUID, name: str) -> Query:
    return Query(_rename_statement(schema), {**origin(), "pool_id": pool_id, "name": name})


_NAMED_POOL = ("PoolRegistered", "ProxyRegistered")
"""Types of events that have no ``pool_name`` beside their pool's own name."""


@by_schema
def _append_statement() -> Any:
    unnested = sa.func.unnest(parameter("pages", ARRAY(sa.Text)))
    page = unnested.table_valued("rows", name="page").render_derived()
    given = (
        sa.func.jsonb_to_recordset(sa.cast(page.c.rows, JSONB))
        .table_valued(
            sa.column("place", sa.Integer),
            sa.column("type", sa.Text),
            sa.column("proxy_id", sa.Uuid),
            sa.column("status", sa.Text),
            sa.column("max_concurrency", sa.Integer),
            sa.column("data", JSONB),
            name="g",
        )
        .render_derived(with_types=True)
    )
    named = [sa.literal_column(f"'{name}'", sa.Text) for name in _NAMED_POOL]
    is_state = given.c.status.is_not(None)
    row = event_row(
        given.c.type,
        after=State(
            given.c.status,
            sa.case((is_state, sa.literal_column("0", sa.Integer))),
            given.c.max_concurrency,
        ),
        proxy_id=given.c.proxy_id,
        pool_name=sa.case((given.c.type.in_(named), sa.null()), else_=parameter("pool_name")),
        data=given.c.data,
    )
    of_pages = page.join(given, sa.true())
    appended = append(sa.select(row).select_from(of_pages).order_by(given.c.place))
    return sa.select(
        sa.func.min(appended.c.position).label("first"),
        sa.func.max(appended.c.position).label("last"),
        sa.func.count().label("appended"),
    ).select_from(appended)


@by_schema
def _rename_statement() -> sa.Select[Any]:
    """Append that a pool has another name, and all else as it is."""
    known = sa.select(pools).where(pools.c.id == POOL_ID).with_for_update().cte("known")
    described = {own.name: known.c[own.name] for own in pools.c if own.name != "id"}
    data = json_object(**{**described, "name": parameter("name")})
    appended = append(sa.select(event_row("PoolChanged", data=data)).select_from(known))
    return sa.select(appended.c.position)


@by_schema
def _inspect_statement() -> sa.Select[Any]:
    has_secret = sa.or_(
        sa.exists().where(
            proxies.c.pool_id == pools.c.id,
            sa.or_(proxies.c.credential_id.is_not(None), proxies.c.rotate_id.is_not(None)),
        ),
        sa.exists().where(sources.c.pool_id == pools.c.id),
    )
    found = sa.select(pools.c.id, has_secret.label("has_secrets"))
    return found.where(pools.c.name == parameter("name"))


@by_schema
def _taken_statement() -> sa.Select[Any]:
    """Return a pool that has a name or an id."""
    return sa.select(pools.c.id).where(
        sa.or_(pools.c.name == parameter("name"), pools.c.id == POOL_ID)
    )


@by_schema
def _named_statement() -> sa.Select[Any]:
    """Return a pool if it has this name."""
    return sa.select(pools.c.id).where(pools.c.id == POOL_ID, pools.c.name == parameter("name"))


@by_schema
def _clashes_statement() -> Any:
    """Return proxies that have some ids, and sources that have some names."""
    by_id = sa.select(proxies.c.id, sa.cast(sa.null(), sa.Text).label("name")).where(
        proxies.c.id == sa.func.any(parameter("ids", ARRAY(sa.Uuid)))
    )
    by_name = sa.select(sources.c.id, sources.c.name).where(
        sources.c.name == sa.func.any(parameter("names", ARRAY(sa.Text)))
    )
    return by_id.union_all(by_name).limit(ONE)


@by_schema
def _drop_tickets_statement() -> Any:
    """Delete the places in a pool's queue, and return whose they were."""
    tickets = waiting_tickets.c
    dropped = sa.delete(waiting_tickets).where(tickets.pool_id == POOL_ID)
    return dropped.returning(tickets.process_id)


@by_schema
def _held_statement() -> sa.Select[Any]:
    active = sa.literal_column("'active'", sa.Text)
    held = sa.select(leases.c.id).where(leases.c.pool_id == POOL_ID, leases.c.status == active)
    return held.order_by(leases.c.proxy_id, leases.c.id)


@by_schema
def _lock_turns_statement() -> sa.Select[Any]:
    """Lock who refreshes the sources of a pool: what is found then is recorded before or never."""
    own = sa.select(sources.c.id).where(sources.c.pool_id == POOL_ID)
    turns = sa.select(source_turns.c.source_id).where(source_turns.c.source_id.in_(own))
    return turns.order_by(source_turns.c.source_id).with_for_update()


@lru_cache(maxsize=8)
def _head_statement(schema: str) -> Statement:
    """Return the statement that seals the log and returns the head of its chain."""
    statement = call_of(schema, "head_v1", {})
    return statement._replace(columns=("last_seq", "root"), writes=True)


@lru_cache(maxsize=32)
def _rows_statement(projection: Projection) -> Callable[[str], Statement]:
    """Return the query for a pool's rows of a read model."""
    own = projection.table.c["id" if projection is projections.POOLS else "pool_id"]
    return by_schema(lambda: projection.live().where(own == POOL_ID))


@by_schema
def _asking_statement() -> sa.Select[Any]:
    """Return the consumers whose lease starts a pool counts."""
    asked = sa.select(lease_starts.c.consumer_id).where(lease_starts.c.pool_id == POOL_ID)
    return sa.select(consumers).where(consumers.c.id.in_(asked)).order_by(consumers.c.name)


@by_schema
def _arrival_statement() -> sa.Select[Any]:
    """Return with which move a pool came here last, and where its events begin.

    A move that was cancelled brought the pool back if it had left: then it was registered again.
    Both are few and have an index, while what a pool brought is anywhere in the log.
    """
    stays = [sa.literal_column(f"'{each}'", sa.Text) for each in ("arrived", "cancelled")]
    has_come = sa.exists().where(
        events.c.pool_id == POOL_ID,
        events.c.type == sa.literal_column("'PoolRegistered'", sa.Text),
        events.c.position > pool_moves.c.position,
    )
    return (
        sa.select(sa.cast(pool_moves.c.move_id, sa.Text).label("move_id"), pool_moves.c.position)
        .where(pool_moves.c.pool_id == POOL_ID, pool_moves.c.stage.in_(stays), has_come)
        .order_by(pool_moves.c.position.desc())
        .limit(ONE)
    )


@by_schema
def _brought_bans_statement() -> sa.Select[Any]:
    """Return who banned the proxies that a pool brought along."""
    data = events.c.data
    found = sa.select(data).where(
        events.c.pool_id == POOL_ID,
        events.c.type == sa.literal_column("'PoolStateCarried'", sa.Text),
        events.c.position > parameter("position", sa.BigInteger),
        data["arrived"].astext == sa.literal_column("'true'", sa.Text),
        data["move_id"].astext == parameter("move_id"),
        data["read_model"].astext == sa.literal_column(f"'{BANS}'", sa.Text),
    )
    return found.order_by(events.c.position)


@by_schema
def _bans_statement() -> sa.Select[Any]:
    """Return the last change of status of the proxies that are banned, since the pool is here."""
    state, changed = available_proxies.c, events.c
    banned = sa.select(state.proxy_id).where(
        state.pool_id == POOL_ID, state.status == sa.literal_column("'banned'", sa.Text)
    )
    return (
        sa.select(
            changed.proxy_id,
            changed.recorded_at,
            changed.actor,
            changed.correlation_id,
            changed.data["reason"].astext.label("reason"),
            changed.status_after,
        )
        .ext(distinct_on(changed.proxy_id))
        .where(
            changed.pool_id == POOL_ID,
            changed.type == sa.literal_column("'ProxyChanged'", sa.Text),
            changed.position > parameter("position", sa.BigInteger),
            changed.status_before != changed.status_after,
            changed.proxy_id.in_(banned),
        )
        .order_by(changed.proxy_id, changed.position.desc())
    )


@by_schema
def _last_position_statement() -> sa.Select[Any]:
    """Return the highest position of the transaction."""
    own = events.c.tx == sa.func.pg_current_xact_id()
    last = sa.select(sa.func.max(events.c.position).label("last"))
    return last.where(own, events.c.pool_id == POOL_ID)


@by_schema
def _event_statement() -> sa.Select[Any]:
    position = parameter("position", sa.BigInteger)
    return sa.select(events.c.data, events.c.position).where(events.c.position == position)


@by_schema
def _carried_statement() -> sa.Select[Any]:
    span = events.c.position.between(
        parameter("first", sa.BigInteger), parameter("last", sa.BigInteger)
    )
    is_carried = events.c.type == sa.literal_column("'PoolStateCarried'", sa.Text)
    of_move = events.c.data["move_id"].astext == parameter("move_id")
    return sa.select(events.c.data).where(span, is_carried, of_move).order_by(events.c.position)


@by_schema
def _secrets_statement() -> sa.Select[Any]:
    own = proxy_credentials.c
    return sa.select(own.id, own.proxy_id, own.secret).where(own.pool_id == POOL_ID)


@by_schema
def _source_secrets_statement() -> sa.Select[Any]:
    own = source_secrets.c
    ids = sa.func.any(parameter("ids", ARRAY(sa.Uuid)))
    return sa.select(own.id, own.secret).where(own.source_id == ids)


@by_schema
def _forget_sources_statement() -> sa.Select[Any]:
    return sa.select(schema_function("forget_source_secrets_v1", type_=sa.Text).label("done"))


@by_schema
def _advance_statement() -> sa.Select[Any]:
    beyond = parameter("beyond", sa.BigInteger)
    call = schema_function("advance_positions_v1", beyond, type_=sa.Text)
    return sa.select(call.label("done"))


@by_schema
def _keep_secrets_statement() -> Any:
    columns = ("id", "pool_id", "proxy_id", "secret", "account", "identity")
    given = (
        sa.func.unnest(
            *(parameter(name, ARRAY(sa.Uuid)) for name in ("ids", "pool_ids", "proxy_ids")),
            *(parameter(name, ARRAY(sa.LargeBinary)) for name in ("secret", "account", "identity")),
        )
        .table_valued(*columns)
        .render_derived()
    )
    kept = sa.insert(proxy_credentials).from_select([*columns], sa.select(*given.c))
    return kept.returning(proxy_credentials.c.id)


@by_schema
def _keep_source_secret_statement() -> Any:
    row = {
        "id": parameter("id", sa.Uuid),
        "source_id": parameter("source_id", sa.Uuid),
        "secret": parameter("secret", sa.LargeBinary),
    }
    return sa.insert(source_secrets).values(row).returning(source_secrets.c.id)


_STEPS: dict[type, Callable[[Commands, Any], Program[Any]]] = {
    InspectPool: _inspect,
    CheckArrival: _check_arrival,
    BeginMove: _begin,
    DrainMove: _drain,
    DepartPool: _depart,
    ReadCargo: lambda commands, order: _cargo(commands, order.move),
    ReceivePool: _receive,
    RefusePool: _refuse,
    FinishMove: _finish,
    CancelMove: _cancel,
}
