"""The schema that migrations make is the one that the code describes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

import pharox.storage.postgres.tables  # noqa: F401 - the last of the tables
from pharox import InvalidInputError, ProxyManager, SchemaError
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage, migrations
from pharox.storage.postgres.migrations import HEAD, texts
from projections import metadata
from tests.conftest import (
    SECRET_KEY,
    fill,
    open_async_engine,
    open_engine,
    run_sql,
    types_of,
)

CATALOG = """
SELECT 'column', c.relname, a.attname,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                 a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s::text AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(c.oid)
FROM pg_constraint c
JOIN pg_namespace n ON n.oid = connamespace
WHERE n.nspname = %(schema)s::text AND contype <> 'n'
UNION ALL
SELECT 'index', tablename, indexname, indexdef FROM pg_indexes
WHERE schemaname = %(schema)s::text
UNION ALL
SELECT 'storage', relname, '', array_to_string(reloptions, ',')
FROM pg_class c
JOIN pg_namespace n ON n.oid = relnamespace
WHERE n.nspname = %(schema)s::text AND relkind = 'r'
ORDER BY 1, 2, 3
"""


def catalog(engine: Engine, schema: str) -> list[tuple[str, ...]]:
    """Return all that the database knows of a schema's tables, without the schema's name."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(CATALOG, {"schema": schema}).fetchall()
    return [
        tuple(str(value).replace(f"{schema}.", "") for value in row)
        for row in rows
        if not re.search(r"alembic_version|(events|seals)_0", str(row))  # 0: the first partition
    ]


def test_migrations_and_metadata_agree(empty_database_url: str) -> None:
    """Columns, defaults, constraints, indexes and storage options are the same in both."""
    engine = open_engine(empty_database_url)
    PostgresStorage(engine, schema="migrated").upgrade_schema()
    with engine.connect().execution_options(
        schema_translate_map={"pharox": "described"}
    ) as connection:
        connection.exec_driver_sql("CREATE SCHEMA described")
        metadata.create_all(connection)
    migrated, described = catalog(engine, "migrated"), catalog(engine, "described")
    engine.dispose()
    assert len(migrated) > 80
    assert migrated == described


def test_a_second_run_changes_nothing(empty_database_url: str) -> None:
    """Upgrading an upgraded schema leaves it, and what is in it, as it was."""
    storage = PostgresStorage(open_engine(empty_database_url), secret_keys=[SECRET_KEY])
    storage.upgrade_schema()
    fill(storage, 2)
    before = catalog(storage.engine, "pharox"), types_of(storage)
    storage.upgrade_schema()
    assert (catalog(storage.engine, "pharox"), types_of(storage)) == before
    assert storage.schema_version() == HEAD
    storage.close()


def test_many_may_upgrade_at_once(empty_database_url: str) -> None:
    """Eight upgrades at once leave one schema, and none of them fails."""
    storages = [PostgresStorage(open_engine(empty_database_url)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(PostgresStorage.upgrade_schema, storages))
    assert {storage.schema_version() for storage in storages} == {HEAD}
    for storage in storages:
        storage.close()


def test_head_is_the_newest_migration() -> None:
    """The version that the code asks for is the last one that it brings."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_two_ledgers_live_beside_each_other(empty_database_url: str) -> None:
    """Two schemas in one database, one with an awkward name, do not see each other."""
    engine = open_engine(empty_database_url)
    ours = PostgresStorage(engine, schema='a "quoted" Name %s')
    theirs = PostgresStorage(engine, schema="theirs")
    for storage in (ours, theirs):
        storage.upgrade_schema()
    fill(ours, 2)
    lease = ProxyManager(ours).acquire_proxy("pool")
    assert lease is not None
    assert types_of(theirs) == []
    assert ours.verify() == []
    engine.dispose()


@pytest.mark.parametrize(
    "name",
    ["a :b c", "%(x)s", "a{schema}b{literal}c", "$function$; --", "back\\slash", "\x1b[2J\n'"],
)
def test_a_schema_may_have_any_name(empty_database_url: str, name: str) -> None:
    """What is SQL, a place in a template or a parameter elsewhere is a name here."""
    storage = PostgresStorage(
        open_engine(empty_database_url), schema=name, secret_keys=[SECRET_KEY]
    )
    storage.upgrade_schema()
    fill(storage, 2)
    rebuild(storage)
    schemas = run_sql(
        storage.engine,
        "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^(pg_|information|public)'",
    )
    assert schemas == [(name,)]
    assert storage.verify() == []
    storage.close()


@pytest.mark.parametrize(
    "name", ["", "a\x00b", "\ud800", "x" * 64, "é" * 32, "pg_temp", "a$$; --", 5, None]
)
def test_what_is_no_schemas_name_is_refused(name: Any) -> None:
    """PostgreSQL would refuse it, cut it, or read the end of a function in it."""
    with pytest.raises(InvalidInputError):
        PostgresStorage(open_engine("postgresql+psycopg://"), schema=name, secret_keys=[])
    engine = open_async_engine("postgresql+psycopg://")
    with pytest.raises(InvalidInputError):
        AsyncPostgresStorage(engine, schema=name, secret_keys=[])


def test_a_missing_schema_says_what_to_do(empty_database_url: str) -> None:
    """Without a schema every call names the command that makes one."""
    storage = PostgresStorage(open_engine(empty_database_url))
    with pytest.raises(SchemaError, match="pharox db upgrade"):
        storage.list_pools()
    assert storage.schema_version() is None
    storage.close()


def test_an_outdated_schema_says_what_to_do(database_url: str) -> None:
    """A schema of an earlier version is refused, with the command that helps."""
    storage = PostgresStorage(open_engine(database_url))
    run_sql(storage.engine, "UPDATE pharox.alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaError, match="pharox db upgrade"):
        storage.list_pools()
    storage.close()


def test_a_schema_dropped_under_a_storage_is_told(postgres: PostgresStorage) -> None:
    """A storage whose schema vanishes while it is used says so as well."""
    fill(postgres)
    run_sql(postgres.engine, "DROP SCHEMA pharox CASCADE")
    with pytest.raises(SchemaError, match="pharox db upgrade"):
        ProxyManager(postgres).acquire_proxy("pool")


def test_a_revision_that_names_no_parts_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its file, to whoever writes the next migration."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "0009_odd.py").write_text('revision = "0009"\n')
    monkeypatch.setattr(texts, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"0009_odd\.py assigns PARTS 0 times"):
        list(texts.texts())
