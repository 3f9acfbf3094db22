"""Examine what the role may do, and whether its key opens the credentials of proxies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ...errors import SecretKeyError
from ...storage.postgres import PostgresStorage
from ...storage.postgres.vault import Place, Vault
from .findings import Diagnosis, Reader, Result

SAMPLE = 20
"""How many credentials are opened: one key closed most of them."""

_RIGHTS = """
    SELECT current_user AS role,
           (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
           pg_has_role(current_user, nspowner, 'USAGE') AS owns,
           has_table_privilege(format('%%I.events', %(schema)s::text), 'SELECT') AS reads,
           has_table_privilege(format('%%I.leases', %(schema)s::text), 'INSERT') AS leases
    FROM pg_namespace WHERE nspname = %(schema)s
"""
_MAY_READ = (
    "SELECT has_table_privilege(format('%%I.proxy_credentials', %(schema)s::text), 'SELECT') AS may"
)
_SECRETS = """
    SELECT id, pool_id, proxy_id, secret FROM {ledger}.proxy_credentials LIMIT %(limit)s
"""


def rights(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine what the role may do in the ledger."""
    return judged_rights(**reader.row(_RIGHTS, schema=reader.schema))


def judged_rights(
    role: str, is_superuser: bool, owns: bool, reads: bool, leases: bool
) -> Diagnosis:
    """Judge the rights of a role."""
    if not reads:
        advice = "grant it what it needs: `pharox db grant --reader ROLE`, or `--app ROLE`"
        return Diagnosis("rights", Result.PROBLEM, f"{role} may not read the log", advice)
    if is_superuser:
        finding = f"{role} is a superuser, whom nothing keeps from changing the log"
        return Diagnosis("rights", Result.OK, f"{finding}; for others: `pharox db grant`")
    if owns:
        return Diagnosis("rights", Result.OK, f"{role} owns the ledger, and may do everything")
    what = "lease" if leases else "only read"
    return Diagnosis("rights", Result.OK, f"{role} may {what}")


def secret_key(reader: Reader, storage: PostgresStorage) -> Diagnosis:
    """Examine whether the key is there, and opens credentials that are kept."""
    if not reader.row(_MAY_READ, schema=reader.schema)["may"]:
        finding = "this role may not read credentials, and needs no key"
        return Diagnosis("secret key", Result.OK, finding)
    rows = reader.rows(_SECRETS, limit=SAMPLE)
    opened = [
        _opens(storage.vault, row["secret"], Place(row["id"], row["pool_id"], row["proxy_id"]))
        for row in rows
    ]
    return judged_key(storage.vault.has_keys, opened)


def judged_key(has_keys: bool, opened: Sequence[bool]) -> Diagnosis:
    """Judge the key by the credentials that it opened, and did not."""
    closed = len(opened) - sum(opened)
    if closed:
        return Diagnosis(
            "secret key",
            Result.PROBLEM,
            f"{closed} of {len(opened)} credentials that were tried cannot be opened"
            if has_keys
            else "there is no key, and proxies have credentials",
            "set PHAROX_SECRET_KEY to the key that they were imported with, the old one after it",
        )
    if opened:
        return Diagnosis("secret key", Result.OK, "the key opens the credentials of proxies")
    finding = "the key is set" if has_keys else "no key, and no proxy has credentials"
    return Diagnosis("secret key", Result.OK, finding)


def _opens(vault: Vault, secret: bytes, place: Place) -> bool:
    """Return whether the key opens a secret: a login, or the link of a mobile proxy."""
    for opening in (vault.open, vault.open_link):
        with suppress(SecretKeyError):
            opening(secret, place)
            return True
    return False
