"""A migration such as later ones will be: it adds, and takes nothing away.

More columns, functions beside those of before and others in their place, a type of event, an
index of the log, and a digest that covers what is new.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LOCKED = ("events", "leases")
PRUNES = "IF types && ARRAY['LeasesPruned'] THEN\n        DELETE FROM pharox.leases\n"
"""Where the events of leases are folded, the types of which are told apart there."""


def upgrade() -> None:
    """Add what a later pharox needs, and leave all that the one before calls."""
    for statement in (
        "ALTER TABLE pharox.events ADD COLUMN region text",
        "ALTER TABLE pharox.leases ADD COLUMN renewals integer",
        "CREATE INDEX ix_events_region ON ONLY pharox.events (region, position) "
        "WHERE region IS NOT NULL",
    ):
        _execute(statement)
    _renew("is_event_v1", ("ELSE false", "WHEN 'LeaseMoved' THEN event.data ? 'region' ELSE false"))
    _renew(
        "fold_v1",
        (
            PRUNES,
            "IF types && ARRAY['LeaseMoved'] THEN UPDATE pharox.leases "
            "SET renewals = coalesce(renewals, 0) + 1 FROM unnest(appended) AS event "
            "WHERE leases.id = event.lease_id AND event.type = 'LeaseMoved'; END IF;" + PRUNES,
        ),
    )
    _renew(
        "append_v1",
        ("append_v1", "append_v2"),
        ("proxy_ids, data\n    )", "proxy_ids, data, region\n    )"),
        ("event.data\n    FROM", "event.data, event.data ->> 'region'\n    FROM"),
    )
    _execute("REVOKE ALL ON FUNCTION pharox.append_v2 FROM PUBLIC")
    _renew(
        "lease_commands_v1",
        ("lease_commands_v1", "lease_commands_v3"),
        ("pharox.append_v1(", "pharox.append_v2("),
    )
    _renew(
        "digest",
        (
            "END\n",
            "WHEN 2 THEN sha256(convert_to(json_build_array(2, event.position, event.tx::text, "
            "event.type, event.lease_id, event.data, event.region)::text, 'UTF8')) END\n",
        ),
    )
    _renew("seal", ("position, 1, digest", "position, 2, digest"), ("1::smallint", "2::smallint"))


def _renew(function: str, *changes: tuple[str, str]) -> None:
    """Create a function of the schema, with changes to how it reads."""
    query = f"SELECT pg_get_functiondef('pharox.{function}'::regproc)"
    definition: str = op.get_bind().exec_driver_sql(query).scalar_one()
    for old, new in changes:
        assert old in definition, (function, old)
        definition = definition.replace(old, new)
    _execute(definition)


def _execute(statement: str) -> None:
    op.get_bind().connection.cursor().execute(statement)
