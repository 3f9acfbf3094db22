"""Sources: save and list them, claim one to refresh it, and record what was found.

The URL and the headers are encrypted in ``source_secrets``. ``source_turns`` has who refreshes a
source now: a claim that has run out may be taken by another process, and who lost its claim
records nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert

from projections.available_proxies import available_proxies
from projections.pools import pools
from projections.proxies import proxies
from projections.sources import sources

from ...errors import PoolNotFoundError, SecretKeyError
from ...models import (
    MAX_SOURCES,
    ListOptions,
    ProxyPool,
    ProxySource,
    SourceCounts,
    SourceStatus,
)
from ..sources import (
    RefreshResult,
    SourceClaim,
    Validators,
    check_same_pool,
    data_of,
    event_to_tell,
    source_unknown,
    too_many_sources,
)
from .appending import append, event_row, json_object, origin
from .driver import Program
from .reporting import in_utc
from .sql import ONE, POOL_ID, Query, by_schema, now, parameter, schema_function
from .tables import source_secrets, source_turns
from .vault import SourcePlace, Vault

PoolByName = Callable[[str], Program[ProxyPool | None]]

_LOCK = 1886547814
"""The advisory lock of saving sources: names are unique, though no constraint can say it."""

_s, _t = sources.c, source_turns.c
_NAME = parameter("source")
_SOURCE_ID = parameter("source_id", sa.Uuid)
_SECRET_ID = parameter("secret_id", sa.Uuid)
_HOLDER = parameter("holder", sa.Uuid)
_SECOND: sa.ColumnElement[Any] = sa.literal_column("interval '1 second'")
_SETTINGS: dict[str, Any] = {
    "host": sa.Text,
    "every_seconds": sa.Double,
    "max_removed": sa.Text,
    "enabled": sa.Boolean,
    "options": JSONB,
    "secret_id": sa.Uuid,
}


class SourceCommands:
    """The programs of sources for one schema."""

    def __init__(self, schema: str, vault: Vault, pool_by_name: PoolByName) -> None:
        self._schema, self._vault, self._pool_by_name = schema, vault, pool_by_name

    def save(self, source: ProxySource) -> Program[bool]:
        """Add a source or change its settings. Return whether that is a change."""
        while True:
            pool = yield from self._pool_by_name(source.pool_name)
            if pool is None:
                raise PoolNotFoundError(
                    f"Pool {source.pool_name!r} not found.", pool_name=source.pool_name
                )
            values = yield from self._values_to_save(source)
            lock = Query(_lock_statement(self._schema), {"lock": _LOCK, "ledger": self._schema})
            save = Query(_save_statement(self._schema), {**values, "pool_id": pool.id})
            forget = Query(_forget_statement(self._schema), {})
            _, ((answer),), _ = yield [lock, save, forget]
            if answer["is_full"]:
                raise too_many_sources(source.name)
            if answer["is_current"]:
                return bool(answer["saved"])

    def _values_to_save(self, source: ProxySource) -> Program[dict[str, Any]]:
        """Return the values of the statement. The secret stays as it is unless it is another."""
        row = yield from self._row(source.name)
        source_id, secret_id, secret = uuid4(), uuid4(), None
        if row is not None:
            check_same_pool(source, row["pool_name"])
            source_id = row["id"]
        if row is not None and self._has_secret(row, source):
            secret_id = row["secret_id"]
        else:
            headers = {k: v.get_secret_value() for k, v in source.headers.items()}
            place = SourcePlace(secret_id, source_id)
            secret = self._vault.seal_source(source.url.get_secret_value(), headers, place)
        facts = source.facts()
        return {
            **origin(),
            **facts,
            "options": json.dumps(facts["options"]),
            "pool_name": source.pool_name,
            "source_id": source_id,
            "known_id": row and row["id"],
            "known_secret_id": row and row["secret_id"],
            "secret_id": secret_id,
            "secret": secret,
        }

    def get(self, name: str) -> Program[ProxySource]:
        """Return the settings of a source with its secrets."""
        row = yield from self._known_row(name)
        return self._opened(row)

    def listed(self, pool_name: str | None) -> Program[list[SourceStatus]]:
        """Return all sources, or those of a pool, by name."""
        rows = yield Query(_list_statement(self._schema), {"source": None, "pool": pool_name})
        return [status_of(row) for row in rows]

    def remove(self, name: str) -> Program[bool]:
        """Remove a source. Return whether there was one."""
        values = {**origin(), "source": name}
        remove = Query(_remove_statement(self._schema), values)
        answers = yield [remove, Query(_forget_statement(self._schema), {})]
        return bool(answers[0][0]["removed"])

    def claim(
        self, name: str, for_seconds: float, *, only_due: bool
    ) -> Program[SourceClaim | None]:
        """Claim a source to refresh it; None if another has it, or it is not due."""
        row = yield from self._known_row(name)
        holder = uuid4()
        values = {
            "source_id": row["id"],
            "holder": holder,
            "seconds": for_seconds,
            "only_due": only_due,
            "every": row["every_seconds"],
            "saved_at": row["saved_at"],
        }
        if only_due and not row["enabled"]:
            return None
        self._opened(row)  # Whoever has no key for it must not keep others from it.
        claimed = yield Query(_claim_statement(self._schema), values)
        if not claimed:
            return None
        saved = yield from self._row(name)
        if saved is None or saved["id"] != row["id"]:
            return None  # It was removed meanwhile.
        row = saved
        (counted,) = yield Query(_owned_statement(self._schema), _owner(row))
        is_known = row["secret_id"] == row["turn_secret_id"] and row["owned"] == counted["owned"]
        known = Validators(row["etag"], row["last_modified"])
        return SourceClaim(
            self._opened(row),
            status_of(row),
            row["secret_id"],
            holder,
            claimed[0]["claimed_at"].astimezone(UTC),
            counted["owned"],
            known if is_known and any(known) else None,
        )

    def hold(self, claim: SourceClaim, for_seconds: float) -> Program[bool]:
        """Extend a claim. Return False if it was lost."""
        values = {"source_id": claim.status.id, "holder": claim.holder, "seconds": for_seconds}
        rows = yield Query(_hold_statement(self._schema), values)
        return bool(rows)

    def finish(self, claim: SourceClaim, result: RefreshResult | None) -> Program[bool]:
        """Record a refresh and give the claim back. Return False if the claim was lost."""
        known = {"source_id": claim.status.id, "holder": claim.holder}
        if result is None:
            rows = yield Query(_give_back_statement(self._schema), known)
            return bool(rows)
        queries = []
        if (told := event_to_tell(claim.status, result, claim.claimed_at)) is not None:
            type_, data = told
            values = {
                **origin(),
                **known,
                "type": type_,
                "data": json.dumps(data_of(claim.status, data)),
                "pool_name": claim.status.pool_name,
                "pool_id": claim.status.pool_id,
            }
            queries.append(Query(_tell_statement(self._schema), values))
        found = {
            **known,
            "failed": result.failure is not None,
            "secret_id": claim.secret_id,
            "etag": result.validators.etag,
            "last_modified": result.validators.last_modified,
            "owned": result.owned,
        }
        answers = yield [*queries, Query(_finish_statement(self._schema), found)]
        return bool(answers[-1])

    def rotate(self) -> Program[int]:
        """Encrypt the secrets of all sources again with the first key. Return how many."""
        rows = yield Query(_secrets_statement(self._schema), {"source": None, "pool": None})
        rotated, failure = 0, None
        for row in rows:
            try:
                url, headers = self._vault.open_source(row["secret"], _place(row))
            except SecretKeyError as error:
                failure = failure or error
                continue
            secret = self._vault.seal_source(url, headers, _place(row))
            values = {"secret_id": row["secret_id"], "secret": secret}
            yield Query(_rotate_statement(self._schema), values)
            rotated += 1
        if failure is not None:
            raise failure
        return rotated

    def _row(self, name: str) -> Program[Mapping[str, Any] | None]:
        """Return the row of a source with its secret, or None."""
        rows = yield Query(_secrets_statement(self._schema), {"source": name, "pool": None})
        return rows[0] if rows else None

    def _known_row(self, name: str) -> Program[Mapping[str, Any]]:
        row = yield from self._row(name)
        if row is None:
            raise source_unknown(name)
        return row

    def _has_secret(self, row: Mapping[str, Any], source: ProxySource) -> bool:
        """Return whether a row has the secrets of a source.

        One that cannot be read counts as another: to save the source again is what its error says
        to do when the key is lost.
        """
        try:
            return _same_secret(self._opened(row), source)
        except SecretKeyError:
            return False

    def _opened(self, row: Mapping[str, Any]) -> ProxySource:
        opened = self._vault.open_source(row["secret"], _place(row))
        return source_of(row, row["pool_name"], *opened)


def source_of(
    row: Mapping[str, Any], pool_name: str, url: str, headers: Mapping[str, str]
) -> ProxySource:
    """Return the source that a row of the read model describes, with what was encrypted of it."""
    return ProxySource(
        name=row["name"],
        pool_name=pool_name,
        url=url,
        headers=headers,
        every_seconds=row["every_seconds"],
        max_removed=row["max_removed"],
        enabled=row["enabled"],
        options=ListOptions(**row["options"]),
    )


def status_of(row: Mapping[str, Any]) -> SourceStatus:
    """Return the source in a row of the list."""
    times = ("saved_at", "checked_at", "succeeded_at", "refreshed_at", "failed_at")
    same = ("id", "name", "pool_id", "pool_name", "host", "every_seconds", "max_removed", "enabled")
    return SourceStatus(
        **{name: row[name] for name in (*same, "failure")},
        **{name: row[name] and in_utc(row[name]) for name in times},
        options=ListOptions(**row["options"]),
        counts=row["counts"] and SourceCounts(**row["counts"]),
        failures=row["failures"] or 0,
    ).due_by(row["now"])


def _same_secret(known: ProxySource, wanted: ProxySource) -> bool:
    return (known.url, known.headers) == (wanted.url, wanted.headers)


def _place(row: Mapping[str, Any]) -> SourcePlace:
    return SourcePlace(row["secret_id"], row["id"])


def _owner(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"pool_id": row["pool_id"], "source": row["name"]}


@by_schema
def _list_statement() -> sa.Select[Any]:
    """Query sources with their pools and turns: all, one, or those of a pool."""
    return _listed(with_secrets=False)


@by_schema
def _secrets_statement() -> sa.Select[Any]:
    """Query the same with their secrets, which not every role may read."""
    return _listed(with_secrets=True)


def _listed(*, with_secrets: bool) -> sa.Select[Any]:
    pool = parameter("pool")
    found: Any = sources.join(pools, pools.c.id == _s.pool_id)
    found = found.outerjoin(source_turns, _t.source_id == _s.id)
    if with_secrets:
        found = found.outerjoin(source_secrets, source_secrets.c.id == _s.secret_id)
    return (
        sa.select(
            *_s,
            pools.c.name.label("pool_name"),
            now.label("now"),
            *([source_secrets.c.secret] if with_secrets else []),
            *(_t[name] for name in ("checked_at", "succeeded_at", "failures", "owned")),
            *(_t[name] for name in ("etag", "last_modified")),
            _t.secret_id.label("turn_secret_id"),
        )
        .select_from(found)
        .where(
            sa.or_(_NAME.is_(None), _s.name == _NAME),
            sa.or_(pool.is_(None), pools.c.name == pool),
        )
        .order_by(_s.name)
    )


@by_schema
def _lock_statement() -> sa.Select[Any]:
    """Wait until nobody else saves a source of this ledger, until the transaction's end."""
    lock, ledger = parameter("lock", sa.Integer), parameter("ledger")
    return sa.select(
        sa.cast(sa.func.pg_advisory_xact_lock(lock, sa.func.hashtext(ledger)), sa.Text)
    )


@by_schema
def _save_statement() -> sa.Select[Any]:
    """Append that a source is saved, and keep its secret, unless it was changed meanwhile."""
    known = sa.select(sources).where(_s.name == _NAME).cte("known")
    one = sa.select(ONE.label("one")).subquery("one")
    wanted = {name: parameter(name, type_) for name, type_ in _SETTINGS.items()}
    is_new = known.c.id.is_(None)
    is_current = sa.and_(
        known.c.id.is_not_distinct_from(parameter("known_id", sa.Uuid)),
        known.c.secret_id.is_not_distinct_from(parameter("known_secret_id", sa.Uuid)),
    )
    number = sa.select(sa.func.count()).select_from(sources).scalar_subquery()
    is_full = sa.and_(is_new, number >= MAX_SOURCES)
    differs = sa.or_(*(known.c[name].is_distinct_from(value) for name, value in wanted.items()))
    found = one.outerjoin(known, sa.true())
    data = json_object(source=_NAME, source_id=_SOURCE_ID, **wanted)
    row = event_row("SourceSaved", pool_name=parameter("pool_name"), data=data)
    appended = append(
        sa.select(row).select_from(found).where(is_current, ~is_full, sa.or_(is_new, differs))
    )
    secret = parameter("secret", sa.LargeBinary)
    kept = (
        sa.insert(source_secrets)
        .from_select(
            ["id", "source_id", "secret"],
            sa.select(_SECRET_ID, _SOURCE_ID, secret)
            .select_from(appended)
            .where(secret.is_not(None)),
        )
        .cte("kept")
    )
    saved = sa.select(sa.func.count()).select_from(appended).scalar_subquery()
    answer = sa.select(
        is_current.label("is_current"), is_full.label("is_full"), saved.label("saved")
    )
    return answer.select_from(found).add_cte(kept)


@by_schema
def _forget_statement() -> sa.Select[Any]:
    """Delete the secrets and the turns that no source has any more."""
    return sa.select(schema_function("forget_source_secrets_v1", type_=sa.Text))


@by_schema
def _remove_statement() -> sa.Select[Any]:
    """Append that a source is removed."""
    known = (
        sa.select(_s.id, _s.pool_id, pools.c.name.label("pool_name"))
        .select_from(sources.join(pools, pools.c.id == _s.pool_id))
        .where(_s.name == _NAME)
        .with_for_update(of=sources)
        .cte("known")
    )
    data = json_object(source=_NAME, source_id=known.c.id)
    row = event_row(
        "SourceRemoved", pool_id=known.c.pool_id, pool_name=known.c.pool_name, data=data
    )
    appended = append(sa.select(row).select_from(known))
    return sa.select(sa.func.count().label("removed")).select_from(appended)


@by_schema
def _claim_statement() -> Any:
    """Claim a source whose turn is free, and that is due if it has to be."""
    held_until = now + parameter("seconds", sa.Double) * _SECOND
    taken = sa.select(_s.id, _HOLDER, held_until).where(_s.id == _SOURCE_ID)
    upsert = insert(source_turns).from_select(["source_id", "holder", "held_until"], taken)
    is_free = sa.or_(_t.held_until.is_(None), _t.held_until <= now)
    is_due = sa.or_(
        ~parameter("only_due", sa.Boolean),
        _t.checked_at.is_(None),
        _t.checked_at < parameter("saved_at", sa.DateTime(timezone=True)),
        _t.checked_at + parameter("every", sa.Double) * _SECOND <= now,
    )
    return upsert.on_conflict_do_update(
        constraint=source_turns.primary_key,
        set_={name: upsert.excluded[name] for name in ("holder", "held_until")},
        where=sa.and_(is_free, is_due),
    ).returning(now.label("claimed_at"))


@by_schema
def _owned_statement() -> sa.Select[Any]:
    """Count the proxies of a source that do not drain."""
    return (
        sa.select(sa.func.count().label("owned"))
        .select_from(owned())
        .where(available_proxies.c.drains.is_not(sa.true()))
    )


def owned() -> sa.Join:
    """Return the proxies of a source, which may drain, with their states."""
    return proxies.join(
        available_proxies,
        sa.and_(
            available_proxies.c.proxy_id == proxies.c.id,
            available_proxies.c.pool_id == proxies.c.pool_id,
            proxies.c.pool_id == POOL_ID,
            proxies.c.source == _NAME,
        ),
    )


def _held() -> Any:
    return sa.and_(_t.source_id == _SOURCE_ID, _t.holder == _HOLDER)


@by_schema
def _hold_statement() -> Any:
    held_until = now + parameter("seconds", sa.Double) * _SECOND
    return (
        sa.update(source_turns).values(held_until=held_until).where(_held()).returning(_t.source_id)
    )


@by_schema
def _give_back_statement() -> Any:
    free = {"holder": sa.null(), "held_until": sa.null()}
    return sa.update(source_turns).values(free).where(_held()).returning(_t.source_id)


@by_schema
def _tell_statement() -> sa.Select[Any]:
    """Append what a refresh found, if the claim is still held and the source is there."""
    turn = sa.select(_t.source_id).where(_held()).with_for_update().cte("turn")
    row = event_row(
        parameter("type"), pool_name=parameter("pool_name"), data=parameter("data", JSONB)
    )
    found = turn.join(sources, _s.id == turn.c.source_id)
    appended = append(sa.select(row).select_from(found))
    return sa.select(sa.func.count().label("told")).select_from(appended)


@by_schema
def _finish_statement() -> Any:
    """Give the claim back, and remember the answer, so that the next one can be told from it."""
    failed = parameter("failed", sa.Boolean)
    found = {
        name: sa.case((failed, sa.null()), else_=parameter(name, column.type))
        for name, column in _t.items()
        if name in ("secret_id", "etag", "last_modified", "owned")
    }
    values = {
        **found,
        "holder": sa.null(),
        "held_until": sa.null(),
        "checked_at": now,
        "succeeded_at": sa.case((failed, _t.succeeded_at), else_=now),
        "failures": sa.case((failed, _t.failures + ONE), else_=sa.literal_column("0", sa.Integer)),
    }
    return sa.update(source_turns).values(values).where(_held()).returning(_t.source_id)


@by_schema
def _rotate_statement() -> Any:
    secret = parameter("secret", sa.LargeBinary)
    return (
        sa.update(source_secrets)
        .values(secret=secret)
        .where(source_secrets.c.id == _SECRET_ID)
        .returning(source_secrets.c.id)
    )
