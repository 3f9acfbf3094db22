"""Programs for the steps of a list import: match, register, replace and remove proxies.

:mod:`pharox.storage.list_import` decides what happens to each proxy. A proxy with
credentials is found by its fingerprints, so nothing has to be decrypted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import (
    BigInteger,
    Integer,
    LargeBinary,
    Select,
    Text,
    Uuid,
    and_,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from projections.available_proxies import available_proxies
from projections.proxies import proxies

from ...errors import ConflictError, PoolNotFoundError, SecretKeyError
from ...models import Proxy, ProxyPool
from ...models.ids import NIL, derived_id, following, imported_proxy_id
from ..list_import import ChangedProxy, Match
from ..validation import checked_model, id_from_text
from . import reading, registry_statements
from .appending import origin
from .driver import Program, Rows
from .lookups import PAGE
from .reading import description
from .registry import Registry, batches
from .sources import owned
from .sql import POOL_ID, Query, Statement, by_schema, parameter
from .tables import proxy_credentials
from .vault import FINGERPRINT_BYTES, Fingerprints, Place

_c = proxy_credentials.alias("c")
# No condition on the pool: with it the planner would read the whole pool to find one id.
_IN_USE = and_(description.c.id == _c.c.proxy_id, description.c.credential_id == _c.c.id)


class Imports(Registry):
    """The import steps for one schema."""

    def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> Program[list[Match]]:
        """Return a match for each proxy of a list."""
        return self._match(id_from_text(pool_id) or NIL, proxies)

    def _match(self, pool_id: UUID, proxies: Sequence[Proxy]) -> Program[list[Match]]:
        # A missing key raises here, before the first query.
        prints = {
            n: self.vault.known_fingerprints(pool_id, proxy)
            for n, proxy in enumerate(proxies)
            if proxy.credentials is not None
        }
        yield from self.pool(str(pool_id))
        matches = [Match()] * len(proxies)
        bare = [n for n, proxy in enumerate(proxies) if proxy.credentials is None]
        if bare:
            values = {
                "places": bare,
                "hosts": [str(proxies[n].host) for n in bare],
                "ports": [proxies[n].port for n in bare],
                "protocols": [proxies[n].protocol.value for n in bare],
            }
            query = Query(_bare_statement(self.schema), {"pool_id": pool_id, **values})
            for row in (yield query):
                matches[row["place"]] = Match(row["id"])
        if prints:
            rows = yield self._fingerprint_query(_known_statement(self.schema), pool_id, prints)
            for row in rows:
                matches[row["place"]] = Match(row["id"])
        unknown = {n: each for n, each in prints.items() if matches[n].known is None}
        if prints and len(unknown) == len(prints):
            yield from self._check_keys_fit(pool_id)
        if unknown:
            rivals: dict[int, list[UUID]] = {}
            for row in (
                yield self._fingerprint_query(_rivals_statement(self.schema), pool_id, unknown)
            ):
                rivals.setdefault(row["place"], []).append(row["id"])
            for n, found in rivals.items():
                matches[n] = Match(None, tuple(found[:2]))
        return matches

    def ensure_pool(self, pool: ProxyPool) -> Program[UUID]:
        """Register a pool and return its id, or the id of the pool with the same name."""
        try:
            yield from self.save_pool(pool)
        except ConflictError:
            known = yield from self.pool_by_name(pool.name)
            if known is None:
                raise
            return known.id
        return pool.id

    def register_listed(
        self, pool_id: UUID, proxies: Sequence[Proxy]
    ) -> Program[tuple[list[UUID], int]]:
        """Register proxies of a list with derived ids. Return the ids, and how many are new."""
        named = [self._named(pool_id, proxy) for proxy in proxies]
        statement = registry_statements.save_proxies_statement(self.schema, change=False)
        while True:
            ids, rows = yield from self._rows_to_register(pool_id, named)
            if not rows:
                return ids, 0
            values = {**origin(), "pool_id": pool_id, "rows": json.dumps(rows)}
            try:
                answer: Rows = yield Query(statement, values)
            except psycopg.errors.UniqueViolation:
                continue  # A concurrent import registered some of them: look them up again.
            if not answer:
                raise PoolNotFoundError(f"Pool {pool_id} not found.", pool_id=pool_id)
            return ids, answer[0]["new"]

    def replace_credentials(self, changes: Sequence[ChangedProxy]) -> Program[int]:
        """Set the credentials of known proxies from the list. Return how many still exist."""
        replaced = 0
        for batch in batches(changes, PAGE):
            wanted = dict(batch)
            rows = yield Query(
                reading.several_proxies_statement(self.schema), {"ids": list(wanted)}
            )
            proxies = [_with_credentials(row, wanted[row["id"]]) for row in rows]
            yield from self._save_proxies(proxies, change=True, keep_status=True)
            replaced += len(proxies)
        return replaced

    def sourced_page(
        self, pool_id: UUID, source: str | None, first: UUID
    ) -> Program[tuple[list[UUID], UUID | None]]:
        """Return a page of ids of proxies with this source, and the first id of the next."""
        values = {"source": source, "from_id": first, "limit": PAGE}
        rows = yield Query(_sourced_statement(self.schema), {"pool_id": pool_id, **values})
        page = [row["id"] for row in rows]
        return page, following(page[-1]) if len(page) == PAGE else None

    def owned_page(
        self, pool_id: UUID, source: str, first: UUID
    ) -> Program[tuple[list[tuple[UUID, bool]], UUID | None]]:
        """Return a page of ids of a source's proxies, each with whether it drains."""
        values = {"pool_id": pool_id, "source": source, "from_id": first, "limit": PAGE}
        rows = yield Query(_owned_statement(self.schema), values)
        page = [(row["id"], bool(row["drains"])) for row in rows]
        return page, following(page[-1][0]) if len(page) == PAGE else None

    def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID]) -> Program[list[UUID]]:
        """Remove those of the given proxies that are not leased. Return their ids."""
        values = {**origin(), "pool_id": pool_id, "proxies": list(proxy_ids)}
        remove = registry_statements.remove_proxies_statement(
            self.schema, whole_pool=False, idle_only=True
        )
        answers: list[Rows] = yield [
            *(Query(lock, values) for lock in self._removal_locks(whole_pool=False)),
            Query(remove, values),
            Query(registry_statements.forget_credentials_statement(self.schema), values),
        ]
        answer: list[UUID] = answers[-2][0]["removed"]
        return answer

    # Internals

    def _check_keys_fit(self, pool_id: UUID) -> Program[None]:
        """Raise :class:`SecretKeyError` if no key can decrypt the pool's credentials.

        With wrong keys no proxy would match, and each would be registered again.
        """
        query = Query(_some_secrets_statement(self.schema), {"pool_id": pool_id})
        failure: SecretKeyError | None = None
        for row in (yield query):
            try:
                self.vault.open(row["secret"], Place(row["id"], pool_id, row["proxy_id"]))
            except SecretKeyError as error:
                failure = error
            else:
                return
        if failure is not None:
            raise failure

    def _named(self, pool_id: UUID, proxy: Proxy) -> tuple[Proxy, Fingerprints | None]:
        """Return a listed proxy with its derived id, and its fingerprints."""
        prints = None
        if proxy.credentials is None:
            uuid = imported_proxy_id(pool_id, proxy.protocol.value, str(proxy.host), proxy.port)
        else:
            prints = self.vault.fingerprints(pool_id, proxy)
            uuid = derived_id(prints.identity)
        return proxy.model_copy(update={"id": uuid, "pool_id": pool_id}), prints

    def _rows_to_register(
        self, pool_id: UUID, proxies: Sequence[tuple[Proxy, Fingerprints | None]]
    ) -> Program[tuple[list[UUID], list[dict[str, Any]]]]:
        """Return the ids of proxies, and the rows of those that another import did not register.

        If a proxy with the derived id has other credentials by now, a random id is used.
        """
        values = {"ids": [proxy.id for proxy, _ in proxies]}
        rows = yield Query(reading.known_proxies_statement(self.schema), values)
        taken = {row["id"]: row for row in rows}
        ids: list[UUID] = []
        wanted: list[dict[str, Any]] = []
        for proxy, prints in proxies:
            known = taken.get(proxy.id)
            if known is None or not self._is_same(pool_id, proxy, known):
                own = proxy if known is None else proxy.model_copy(update={"id": uuid4()})
                wanted.append(self._row(len(wanted), own, prints=prints))
                ids.append(own.id)
            else:
                ids.append(proxy.id)
        return ids, wanted

    def _is_same(self, pool_id: UUID, proxy: Proxy, known: Mapping[str, Any]) -> bool:
        if known["pool_id"] != pool_id:
            return False
        if proxy.credentials is None:
            return known["credential_id"] is None
        prints = self.vault.known_fingerprints(pool_id, proxy)
        return any(each.identity == known["identity"] for each in prints)

    def _fingerprint_query(
        self, statement: Statement, pool_id: UUID, prints: Mapping[int, Sequence[Any]]
    ) -> Query:
        pairs = [(n, each) for n, several in prints.items() for each in several]
        values = {
            "pool_id": pool_id,
            "places": [n for n, _ in pairs],
            "prints": b"".join(part for _, each in pairs for part in each),
        }
        return Query(statement, values)


def _with_credentials(row: Mapping[str, Any], listed: Proxy) -> Proxy:
    proxy = reading.proxy_from_row(row, None)
    update = {
        "credentials": listed.credentials,
        "template": listed.template,
        "rotate_url": listed.rotate_url,
    }
    return checked_model(proxy.model_copy(update=update), Proxy)


@by_schema
def _bare_statement() -> Select[Any]:
    """Query which of many addresses exist in a pool without credentials."""
    wanted = (
        func.unnest(
            parameter("places", ARRAY(BigInteger)),
            parameter("hosts", ARRAY(Text)),
            parameter("ports", ARRAY(Integer)),
            parameter("protocols", ARRAY(Text)),
        )
        .table_valued("place", "host", "port", "protocol")
        .render_derived()
    )
    same = (description.c[name] == wanted.c[name] for name in ("host", "port", "protocol"))
    found = select(description.c.id).where(
        description.c.pool_id == POOL_ID, *same, description.c.credential_id.is_(None)
    )
    return _each_at_most(1, wanted, found)


def _fingerprints() -> Any:
    """Return the requested fingerprints, passed as one byte string: an array is slower."""
    place = (
        func.unnest(parameter("places", ARRAY(BigInteger)))
        .table_valued("place", with_ordinality="number")
        .render_derived()
    )
    start = (place.c.number - literal_column("1")) * literal_column(str(2 * FINGERPRINT_BYTES))
    parts = (
        func.substring(
            parameter("prints", LargeBinary),
            cast(start, Integer) + literal_column(str(1 + n * FINGERPRINT_BYTES)),
            literal_column(str(FINGERPRINT_BYTES)),
            type_=LargeBinary,
        ).label(name)
        for n, name in enumerate(Fingerprints._fields)
    )
    return select(place.c.place, *parts).cte("asked").prefix_with("MATERIALIZED")


@by_schema
def _known_statement() -> Select[Any]:
    """Query which of many identities exist in a pool."""
    wanted = _fingerprints()
    same = (_c.c.account == wanted.c.account, _c.c.identity == wanted.c.identity)
    return _each_at_most(1, wanted, _in_use().where(*same))


@by_schema
def _rivals_statement() -> Select[Any]:
    """Query up to two proxies of a pool for each of many accounts."""
    wanted = _fingerprints()
    return _each_at_most(2, wanted, _in_use().where(_c.c.account == wanted.c.account))


def _in_use() -> Select[Any]:
    return (
        select(description.c.id)
        .select_from(_c.join(description, _IN_USE))
        .where(_c.c.pool_id == POOL_ID)
    )


def _each_at_most(most: int, wanted: Any, found: Select[Any]) -> Select[Any]:
    """Return up to ``most`` matches for each requested place.

    The limit forces one index lookup each; otherwise the planner joins with the whole pool.
    """
    first = found.limit(literal_column(str(most))).lateral("found")
    return select(wanted.c.place, first.c.id).select_from(wanted.join(first, true()))


@by_schema
def _some_secrets_statement() -> Select[Any]:
    """Query the credentials of some proxies of a pool."""
    columns = (_c.c.id, _c.c.proxy_id, _c.c.secret)
    in_use = select(*columns).select_from(description.join(_c, _IN_USE))
    return in_use.where(description.c.pool_id == POOL_ID).limit(literal_column("3"))


@by_schema
def _sourced_statement() -> Select[Any]:
    """Query a page of the ids of a pool's proxies with a source, or without one."""
    first, limit = parameter("from_id", Uuid), parameter("limit", Integer)
    source = parameter("source")
    return (
        select(description.c.id)
        .where(
            description.c.pool_id == POOL_ID,
            description.c.id >= first,
            description.c.source.is_not_distinct_from(source),
        )
        .order_by(description.c.id)
        .limit(limit)
    )


@by_schema
def _owned_statement() -> Select[Any]:
    """Query a page of the ids of a source's proxies, and whether they drain."""
    first, limit = parameter("from_id", Uuid), parameter("limit", Integer)
    return (
        select(proxies.c.id, available_proxies.c.drains)
        .select_from(owned())
        .where(proxies.c.id >= first)
        .order_by(proxies.c.id)
        .limit(limit)
    )
