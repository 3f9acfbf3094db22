"""Run the migrations over the connection that ``upgrade_schema`` opened, in its transaction.

A migration lists in ``LOCKED`` the tables that it alters. All are locked before the first
change: a session that holds a later lock could be waiting for an earlier one, a deadlock. A table
that this upgrade is yet to make is nobody else's, and is not locked.

The log comes first, as it does where events are appended. A migration that does no more to it than
create an index ``ON ONLY`` it has ``LOG_GETS_INDEX``: that keeps off who appends, and nobody who
reads, as an archive, a page or a subscription may do for minutes.
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
cursor = attributes["connection"].connection.cursor()
if attributes["log_gets_index"] and "events" not in attributes["locked"]:
    cursor.execute(f"LOCK TABLE ONLY {quoted(schema)}.events IN SHARE MODE")
if attributes["locked"]:
    names = [f"{quoted(schema)}.{name}" for name in attributes["locked"]]
    cursor.execute(
        "SELECT name FROM unnest(%s::text[]) WITH ORDINALITY AS wanted (name, place) "
        "WHERE to_regclass(name) IS NOT NULL ORDER BY place",
        [names],
    )
    if tables := ", ".join(name for (name,) in cursor.fetchall()):
        cursor.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
context.run_migrations()
