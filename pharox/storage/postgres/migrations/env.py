"""Run the migrations over the connection that ``upgrade_schema`` opened, in its transaction.

A migration lists in ``LOCKED`` the tables that it alters. All are locked before the first
change: a session that holds a later lock could be waiting for an earlier one, a deadlock.
"""

from alembic import context

from pharox.storage.postgres.sql import quoted

attributes = context.config.attributes
schema = attributes["schema"]
context.configure(
    connection=attributes["connection"],
    version_table="alembic_version",
    version_table_schema=schema,
    target_metadata=attributes.get("metadata"),
)
if attributes["locked"]:
    tables = ", ".join(f"{quoted(schema)}.{name}" for name in attributes["locked"])
    lock = f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"
    attributes["connection"].connection.cursor().execute(lock)
context.run_migrations()
