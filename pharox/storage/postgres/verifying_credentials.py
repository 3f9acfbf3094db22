"""Check that every proxy has the credentials, and the link, that its last description refers to.

Credentials are not in events, so the fold cannot verify them. *missing*: a proxy refers to
credentials that do not exist. *orphaned*: no proxy refers to the credentials. *unreadable*:
they are bound to another proxy, as after rows were swapped, or no key can decrypt them. The
last check needs a key. A role without the right to read credentials checks nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

from psycopg import sql

from projections import Finding

from ...errors import SecretKeyError
from .driver import Session
from .sql import Statement
from .vault import Place, SourcePlace, Vault

CHECK = "credentials"

_MAY_READ = "SELECT has_table_privilege(format('%I.%I', {ledger}, {table}), 'SELECT')"
_ALL = """
    SELECT d.id, c.proxy_id, coalesce(d.pool_id, c.pool_id), d.credential_id, c.id, c.secret,
           coalesce(d.is_link, false)
    FROM (SELECT id, pool_id, credential_id, false AS is_link FROM {ledger}.proxies
          WHERE credential_id IS NOT NULL
          UNION ALL
          SELECT id, pool_id, rotate_id, true FROM {ledger}.proxies
          WHERE rotate_id IS NOT NULL) AS d
    FULL JOIN {ledger}.proxy_credentials AS c
           ON c.proxy_id = d.id AND c.id = d.credential_id AND c.pool_id = d.pool_id
    -- A pool that has left for another ledger may need its own again, until it is there.
    WHERE d.id IS NOT NULL OR NOT EXISTS (
        SELECT FROM {ledger}.pool_moves AS m WHERE m.pool_id = c.pool_id AND m.stage = 'departed')
    ORDER BY coalesce(d.id, c.proxy_id), coalesce(d.credential_id, c.id)
"""

_SOURCES = """
    SELECT s.id, s.secret_id, c.id, c.secret
    FROM {ledger}.sources AS s
    LEFT JOIN {ledger}.source_secrets AS c ON c.id = s.secret_id AND c.source_id = s.id
    ORDER BY s.id
"""


def verify_credentials(session: Session, ledger: str, vault: Vault) -> Generator[Finding]:
    """Yield the credentials of a ledger that are missing, orphaned or unreadable."""
    if not _may_read(session, ledger, "proxy_credentials"):
        return
    query = sql.SQL(_ALL).format(ledger=sql.Identifier(ledger))
    columns = ("used_by", "kept_for", "pool_id", "used", "kept", "secret", "is_link")
    for row in session.stream(Statement(query.as_bytes(), (), {}, columns)):
        proxy_id = row["used_by"] or row["kept_for"]
        key = {"proxy_id": str(proxy_id), "pool_id": str(row["pool_id"])}
        if row["kept"] is None:
            yield Finding(CHECK, key, None, {"credential_id": str(row["used"])})
        elif row["used"] is None:
            yield Finding(CHECK, key, {"credential_id": str(row["kept"])}, None)
        elif vault.has_keys:
            place = Place(row["used"], row["pool_id"], proxy_id)
            open_it = vault.open_link if row["is_link"] else vault.open
            if not _is_readable(open_it, row["secret"], place):
                kept = {"credential_id": str(row["kept"])}
                yield Finding(CHECK, key, {**kept, "readable": False}, {**kept, "readable": True})
    if _may_read(session, ledger, "source_secrets"):
        yield from _source_secrets(session, ledger, vault)


def _source_secrets(session: Session, ledger: str, vault: Vault) -> Generator[Finding]:
    """Yield the URLs of a ledger's sources that are missing or unreadable."""
    query = sql.SQL(_SOURCES).format(ledger=sql.Identifier(ledger))
    columns = ("source_id", "secret_id", "kept", "secret")
    for row in session.stream(Statement(query.as_bytes(), (), {}, columns)):
        key, used = {"source_id": str(row["source_id"])}, {"secret_id": str(row["secret_id"])}
        if row["kept"] is None:
            yield Finding(CHECK, key, None, used)
        elif vault.has_keys:
            place = SourcePlace(row["secret_id"], row["source_id"])
            if not _succeeds(partial(vault.open_source, row["secret"], place)):
                yield Finding(CHECK, key, {**used, "readable": False}, {**used, "readable": True})


def _may_read(session: Session, ledger: str, table: str) -> bool:
    query = sql.SQL(_MAY_READ).format(ledger=sql.Literal(ledger), table=sql.Literal(table))
    return bool(session.rows(Statement(query.as_bytes(), (), {}, ("may",)))[0]["may"])


def _is_readable(open_it: Callable[[bytes, Place], object], secret: bytes, place: Place) -> bool:
    return _succeeds(partial(open_it, secret, place))


def _succeeds(opens: Callable[[], object]) -> bool:
    try:
        opens()
    except SecretKeyError:
        return False
    return True
