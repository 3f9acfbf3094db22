"""Describe an event as a CloudEvent 1.0, in the structured JSON form.

``source`` and ``id`` together identify an event for ever, so that consumers can drop what
they have seen. The id is the seq. The source names the server cluster, the database and
the schema: a ledger that is restored elsewhere goes on with other events under the same
seqs, and must not be taken for the first one.

``partitionkey``, ``sequence`` and ``correlationid`` are documented extensions of the
specification. There is no ``sequencetype``: the only one defined is a 32-bit integer,
and a seq may be larger.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from pharox.errors import InvalidInputError
from pharox.events import Event
from pharox.models.ids import NIL
from pharox.models.text import escape_unprintable
from pharox.storage.interface import IStorage
from pharox.storage.postgres.sql import by_schema

from ..subscriptions.delivery import subject_of
from ..subscriptions.subscription import in_postgres

TYPE_PREFIX = "pharox."

BEGINNING = b'{"specversion": "1.0"'
"""How each line begins."""

_URI = re.compile(r"[!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")
"""The characters that a URI may have (RFC 3986)."""

_DIGITS = 20
"""Enough for any seq: the extension wants strings that sort as the numbers do."""


def cloud_event(event: Event, source: str) -> dict[str, Any]:
    """Return the attributes and the data of an event as a CloudEvent.

    Parameters
    ----------
    event:
        A sealed event, such as ``storage.events()`` yields of any storage. It carries no
        secrets, and neither does its CloudEvent.
    source:
        A URI reference for the ledger, such as :func:`ledger_source` returns.
    """
    data = event.model_dump(mode="json")
    attributes = {
        "specversion": "1.0",
        "id": str(event.seq),
        "source": source,
        "type": f"{TYPE_PREFIX}{data['type']}",
        "subject": _subject(event),
        "time": data["recorded_at"],
        "datacontenttype": "application/json",
        "partitionkey": subject_of(event),
        "sequence": str(event.seq).zfill(_DIGITS),
        # Attributes are without control characters; the data has what was given.
        "correlationid": event.correlation_id and escape_unprintable(event.correlation_id),
    }
    return {name: value for name, value in attributes.items() if value} | {"data": data}


def line_of(event: Event, source: str) -> bytes:
    """Return the CloudEvent of an event as one line of JSON in ASCII, with its line feed."""
    return json.dumps(cloud_event(event, source)).encode("ascii") + b"\n"


def ledger_source(storage: IStorage) -> str:
    """Return the source of a ledger's events: ``/pharox/CLUSTER/DATABASE/SCHEMA``.

    The cluster is PostgreSQL's ``system_identifier``.

    Raises
    ------
    InvalidInputError
        If the storage is not in PostgreSQL; give a source of your own.
    """
    checked = in_postgres(storage)
    with checked.session() as session:
        (row,) = session.rows(_identity(checked.schema))
    cluster = row["system_identifier"] % 2**64  # the column is signed, the identifier is not
    names = (quote(name, safe="") for name in (row["database"], checked.schema))
    return "/".join(("/pharox", str(cluster), *names))


def check_source(source: str) -> str:
    """Return a source, or raise InvalidInputError if it can be no URI reference."""
    if not _URI.fullmatch(source):
        raise InvalidInputError(
            f"{source!r} is not a URI: give one without spaces, such as /proxies/production",
            value=source,
        )
    return source


@by_schema
def _identity() -> Any:
    """Select what tells one ledger from all others, but for its schema."""
    return sa.select(
        sa.column("system_identifier", sa.BigInteger),
        sa.func.current_database().label("database"),
    ).select_from(sa.func.pg_control_system())


def _subject(event: Event) -> str:
    """Return what an event is about, as a path whose beginning can be filtered for."""
    places = (
        ("pools", event.pool_id if event.pool_id != NIL else None),
        ("proxies", event.proxy_id),
        ("leases", event.lease_id),
    )
    return "/".join(f"{kind}/{id_}" for kind, id_ in places if id_ is not None)
