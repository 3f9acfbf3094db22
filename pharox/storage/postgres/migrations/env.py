"""Run the migrations over the connection that ``upgrade_schema`` opened, in its transaction."""

from alembic import context

attributes = context.config.attributes
schema = attributes["schema"]
context.configure(
    connection=attributes["connection"],
    version_table="alembic_version",
    version_table_schema=schema,
    target_metadata=attributes.get("metadata"),
)
context.run_migrations()
