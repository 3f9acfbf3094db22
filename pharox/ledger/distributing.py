"""Place a ledger on a node of a Citus cluster, and find the node that has it.

A node of a cluster is a PostgreSQL server of its own. A ledger is in the schema of one node, which
Citus does not distribute (:mod:`pharox.storage.postgres.citus`); who leases connects to that node.
The cluster says which nodes there are, the nodes which ledgers they have: nothing else is kept, so
there is nothing that could be wrong. Moving a ledger that has events is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import URL, create_engine

from ..errors import DatabaseError, DatabaseUnavailableError, InvalidInputError
from ..storage.postgres import PostgresStorage
from ..storage.postgres.citus import check_undistributed, is_in_use
from ..storage.postgres.schema import check_version

_LOCK = 1885890940
"""The advisory lock of the coordinator: one ledger is placed at a time."""

_IS_COORDINATOR = "SELECT citus_is_coordinator()"
_NODES = """
SELECT nodename, nodeport, groupid = 0
FROM pg_catalog.pg_dist_node
WHERE noderole = 'primary' AND isactive AND (shouldhaveshards OR groupid = 0)
ORDER BY nodename, nodeport
"""
# Where Citus distributes a schema, each node has empty tables of these names.
_LEDGERS = """
SELECT n.nspname::text
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'last_tick'
JOIN pg_catalog.pg_class AS v ON v.relnamespace = n.oid AND v.relname = 'alembic_version'
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_dist_partition AS distributed WHERE distributed.logicalrelid = c.oid
)
"""


class Placed(NamedTuple):
    """Where a ledger is.

    Parameters
    ----------
    host, port:
        The node, as the cluster names it.
    url:
        The URL for those who lease, without its password.
    is_new:
        Whether the ledger has been created now.
    """

    host: str
    port: int
    url: str
    is_new: bool

    @property
    def node(self) -> str:
        """The node as ``host:port``."""
        return f"{self.host}:{self.port}"


class _Node(NamedTuple):
    host: str
    port: int
    is_coordinator: bool
    ledgers: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


def distribute(storage: PostgresStorage, to: str | None = None) -> Placed:
    """Create a ledger on a node of a Citus cluster, unless a node has it, and check it.

    Parameters
    ----------
    storage:
        The coordinator's database, and the name of the ledger's schema.
    to:
        The node as ``host:port``; if None, the worker with the fewest ledgers.

    Raises
    ------
    InvalidInputError
        If no worker has that name, or another node has the ledger.
    DatabaseError
        If the database is not that of a coordinator, Citus distributes the schema, or a node
        refuses to create it.
    DatabaseUnavailableError
        If a node cannot be reached: it might have the ledger.
    """
    with _coordinator(storage) as connection:
        nodes = list(_nodes(storage, connection))
        found = _holder(nodes, storage.schema)
        chosen = _chosen(nodes, to) if found is None else found
        if to not in (None, chosen.name):
            raise InvalidInputError(
                f"ledger {storage.schema!r} is on {chosen.name} already: create another one on "
                f"{to}, and move its pools there",
                node=chosen.name,
            )
        with closing(_on(storage, chosen.host, chosen.port)) as there:
            if found is None:
                there.upgrade_schema()
            check_version(there.schema_version(), there.schema)
            url = there.engine.url.set(drivername="postgresql", password=None)
    return Placed(chosen.host, chosen.port, url.render_as_string(), found is None)


def locate(storage: PostgresStorage) -> Placed | None:
    """Return the node that has a ledger, or None.

    ``storage`` and errors are those of :func:`distribute`.
    """
    with _coordinator(storage) as connection:
        found = _holder(list(_nodes(storage, connection)), storage.schema)
    if found is None:
        return None
    url = _url_of(storage, found.host, found.port).set(drivername="postgresql", password=None)
    return Placed(found.host, found.port, url.render_as_string(), is_new=False)


@contextmanager
def _coordinator(storage: PostgresStorage) -> Iterator[psycopg.Connection[Any]]:
    """Open a transaction of the coordinator during which nobody else places a ledger."""
    with storage.session(keep=False) as session:
        connection = session.connection
        if not is_in_use(connection):
            raise DatabaseError(
                "the database is not part of a Citus cluster: elsewhere `pharox db upgrade` "
                "creates a ledger, on any number of servers"
            )
        if connection.execute(_IS_COORDINATOR).fetchone() != (True,):
            raise DatabaseError(
                "the database is that of a worker: connect to the cluster's coordinator"
            )
        check_undistributed(connection, storage.schema)
        connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK,))
        yield connection


def _nodes(storage: PostgresStorage, connection: psycopg.Connection[Any]) -> Iterator[_Node]:
    """Ask each node which ledgers it has, beginning with the coordinator."""
    own = storage.engine.url
    info = connection.info
    yield _Node(own.host or info.host, own.port or info.port, True, _ledgers(connection))
    for host, port, is_coordinator in connection.execute(_NODES).fetchall():
        if is_coordinator:
            continue
        with closing(_on(storage, host, port)) as there:
            try:
                with there.session(keep=False) as session:
                    yield _Node(host, port, False, _ledgers(session.connection))
            except DatabaseUnavailableError as error:
                raise DatabaseUnavailableError(
                    f"node {host}:{port} of the cluster, which might have the ledger, cannot be "
                    f"reached: {error}",
                    node=f"{host}:{port}",
                ) from error


def _ledgers(connection: psycopg.Connection[Any]) -> frozenset[str]:
    return frozenset(name for (name,) in connection.execute(_LEDGERS).fetchall())


def _holder(nodes: Sequence[_Node], schema: str) -> _Node | None:
    holders = [node for node in nodes if schema in node.ledgers]
    if len(holders) > 1:
        names = ", ".join(node.name for node in holders)
        raise DatabaseError(
            f"several nodes have a ledger {schema!r}: {names}. They are ledgers of their own: "
            "rename one of the schemas, or drop it if nobody leases there",
            schema=schema,
        )
    return holders[0] if holders else None


def _chosen(nodes: Sequence[_Node], to: str | None) -> _Node:
    workers = [node for node in nodes if not node.is_coordinator]
    if to is not None:
        for node in workers:
            if node.name == to:
                return node
        names = ", ".join(node.name for node in workers) or "none"
        raise InvalidInputError(f"the cluster has no worker {to}; there are: {names}", node=to)
    if not workers:
        raise DatabaseError("the cluster has no worker: add one with citus_add_node()")
    return min(workers, key=lambda node: len(node.ledgers))


def _url_of(storage: PostgresStorage, host: str, port: int) -> URL:
    """Return the storage's URL with another server."""
    url = storage.engine.url
    query = {name: value for name, value in url.query.items() if name not in ("host", "port")}
    return url.set(host=host, port=port, query=query)


def _on(storage: PostgresStorage, host: str, port: int) -> PostgresStorage:
    engine = create_engine(
        _url_of(storage, host, port),
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=1,
    )
    return PostgresStorage(engine, schema=storage.schema)
