"""Check that every proxy has the credentials that its last description refers to.

Credentials are not in events, so the fold cannot verify them. *missing*: a proxy refers to
credentials that do not exist. *orphaned*: no proxy refers to the credentials. *unreadable*:
they are bound to another proxy, as after rows were swapped, or no key can decrypt them. The
last check needs a key. A role without the right to read credentials checks nothing here.
"""

from __future__ import annotations

from collections.abc import Generator

from psycopg import sql

from projections import Finding

from ...errors import SecretKeyError
from .driver import Session
from .sql import Statement
from .vault import Place, Vault

CHECK = "credentials"

_MAY_READ = "SELECT has_table_privilege(format('%I.proxy_credentials', {name}), 'SELECT')"
_ALL = """
    SELECT d.id, c.proxy_id, coalesce(d.pool_id, c.pool_id), d.credential_id, c.id, c.secret
    FROM (SELECT id, pool_id, credential_id FROM {ledger}.proxies
          WHERE credential_id IS NOT NULL) AS d
    FULL JOIN {ledger}.proxy_credentials AS c
           ON c.proxy_id = d.id AND c.id = d.credential_id AND c.pool_id = d.pool_id
    ORDER BY coalesce(d.id, c.proxy_id), coalesce(d.credential_id, c.id)
"""


def verify_credentials(session: Session, ledger: str, vault: Vault) -> Generator[Finding]:
    """Yield the credentials of a ledger that are missing, orphaned or unreadable."""
    may_read = sql.SQL(_MAY_READ).format(name=sql.Literal(ledger))
    if not session.rows(Statement(may_read.as_bytes(), (), {}, ("may",)))[0]["may"]:
        return
    query = sql.SQL(_ALL).format(ledger=sql.Identifier(ledger))
    columns = ("used_by", "kept_for", "pool_id", "used", "kept", "secret")
    for row in session.stream(Statement(query.as_bytes(), (), {}, columns)):
        proxy_id = row["used_by"] or row["kept_for"]
        key = {"proxy_id": str(proxy_id), "pool_id": str(row["pool_id"])}
        if row["kept"] is None:
            yield Finding(CHECK, key, None, {"credential_id": str(row["used"])})
        elif row["used"] is None:
            yield Finding(CHECK, key, {"credential_id": str(row["kept"])}, None)
        elif vault.has_keys:
            place = Place(row["used"], row["pool_id"], proxy_id)
            if not _is_readable(vault, row["secret"], place):
                kept = {"credential_id": str(row["kept"])}
                yield Finding(CHECK, key, {**kept, "readable": False}, {**kept, "readable": True})


def _is_readable(vault: Vault, secret: bytes, place: Place) -> bool:
    try:
        vault.open(secret, place)
    except SecretKeyError:
        return False
    return True
