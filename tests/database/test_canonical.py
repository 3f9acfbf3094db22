"""Python makes the same bytes of an event and of a tick as the database that seals them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox import ProxyManager
from pharox.log.canonical import canonical, digest, root
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, run_sql

from .sealing import Connection, check_seal, connected, ticks

DIGEST = """
SELECT pharox.digest(event, 1::smallint) AS digest, (event).data::text AS data
FROM (SELECT row(%(position)s::bigint, %(tx)s::xid8, %(recorded_at)s::timestamptz,
                 %(expires_at)s::timestamptz, %(acquired_at)s::timestamptz, %(pool_id)s::uuid,
                 %(proxy_id)s::uuid, %(lease_id)s::uuid, %(consumer_id)s::uuid,
                 %(leases_before)s::int, %(leases_after)s::int,
                 %(max_concurrency_before)s::int, %(max_concurrency_after)s::int,
                 %(schema_version)s::smallint, %(type)s::text, %(status_before)s::text,
                 %(status_after)s::text, %(selector)s::text, %(consumer)s::text,
                 %(pool_name)s::text, %(actor)s::text, %(correlation_id)s::text,
                 %(proxy_ids)s::uuid[], %(data)s::jsonb)::pharox.events AS event) AS made
"""
ROOT = """
SELECT pharox.root(%(before)s::bytea,
    row(%(last_seq)s::bigint, %(first_seq)s::bigint, %(snapshot)s::pg_snapshot,
        %(anchor)s::bigint, %(system_identifier)s::bigint, %(sealed_at)s::timestamptz,
        ''::bytea, 0::bigint, 0::bigint)::pharox.ticks,
    %(digests)s::bytea) AS root
"""

# What PostgreSQL cannot keep in a text: NUL and halves of surrogate pairs.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ESCAPED = st.text(st.sampled_from("\"\\/\b\f\n\r\t\x01\x1f\x7f\x80\u2028\u2029é\U0001f600<'"))
WORDS = TEXTS | ESCAPED
MOMENTS = st.datetimes(timezones=st.just(UTC)) | st.builds(
    lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us),
    st.integers(-2_000_000, 2_000_000),
)
INTEGERS = st.integers(-(2**31), 2**31 - 1)
BIGINTS = st.integers(-(2**63), 2**63 - 1)
FACTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.fixed_dictionaries(
    {
        "position": BIGINTS,
        "tx": st.integers(0, 2**64 - 1).map(str),
        "recorded_at": MOMENTS,
        "expires_at": st.none() | MOMENTS,
        "acquired_at": st.none() | MOMENTS,
        "type": WORDS,
        "schema_version": st.integers(-(2**15), 2**15 - 1),
        "pool_id": st.uuids(),
        "proxy_id": st.none() | st.uuids(),
        "lease_id": st.none() | st.uuids(),
        "consumer_id": st.none() | st.uuids(),
        **{
            f"{number}_{when}": st.none() | INTEGERS
            for number in ("leases", "max_concurrency")
            for when in ("before", "after")
        },
        "status_before": st.none() | WORDS,
        "status_after": st.none() | WORDS,
        "selector": st.none() | WORDS,
        "pool_name": st.none() | WORDS,
        "consumer": st.none() | WORDS,
        "actor": st.none() | WORDS,
        "correlation_id": st.none() | WORDS,
        "proxy_ids": st.none() | st.lists(st.uuids(), max_size=4),
        "data": st.none() | st.dictionaries(WORDS, FACTS, max_size=4).map(json.dumps),
    }
)


@st.composite
def snapshots(draw: st.DrawFn) -> str:
    """Return what PostgreSQL prints for a snapshot."""
    epoch, span = draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 50))
    xmin = (epoch << 32) + draw(st.integers(3, 2**31))
    running = draw(st.sets(st.integers(xmin, xmin + span - 1))) if span else set[int]()
    return f"{xmin}:{xmin + span}:{','.join(str(xid) for xid in sorted(running))}"


TICKS = st.fixed_dictionaries(
    {
        "last_seq": BIGINTS,
        "first_seq": BIGINTS,
        "snapshot": snapshots(),
        "anchor": BIGINTS,
        "system_identifier": BIGINTS,
        "sealed_at": MOMENTS,
    }
)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection to a ledger."""
    with connected(database_url) as connection:
        yield connection


@given(event=EVENTS)
def test_an_event_has_one_digest(connection: Connection, event: dict[str, Any]) -> None:
    """Whatever is in an event, its digest by Python is the one by the database."""
    sealed = connection.execute(DIGEST, event).fetchone() or {}
    assert digest({**event, "data": sealed["data"]}) == sealed["digest"]


@given(before=st.binary(), tick=TICKS, digests=st.lists(st.binary(min_size=32, max_size=32)))
def test_a_tick_has_one_root(
    connection: Connection, before: bytes, tick: dict[str, Any], digests: list[bytes]
) -> None:
    """Whatever is in a tick, its root by Python is the one by the database."""
    values = {**tick, "before": before, "digests": b"".join(digests)}
    assert connection.execute(ROOT, values).fetchone() == {"root": root(before, tick, digests)}


def test_a_real_log_can_be_checked(postgres: PostgresStorage, database_url: str) -> None:
    """From the rows of a ledger in use, Python makes every digest and every root again."""
    fill(postgres, 3, country="AR", latitude=-34.6, city="Perú \U0001f600 \"'\\")
    manager = ProxyManager(postgres)
    for _ in range(3):
        lease = manager.acquire_proxy("pool", "wörker")
        assert lease is not None
        manager.release_proxy(lease)
        postgres.seal()
        run_sql(postgres.engine, "SELECT pharox.complete_tick()")
    with connected(database_url) as connection:
        assert len(check_seal(connection)) == 11
        assert len(ticks(connection)) == 3


EXAMPLE = {
    "position": 7,
    "tx": "18446744073709551615",
    "recorded_at": datetime(1969, 12, 31, 21, 59, 59, 500000, timezone(timedelta(hours=-2))),
    "type": "ConsumerRegistered",
    "schema_version": 1,
    "pool_id": UUID(int=0),
    "proxy_id": None,
    "lease_id": None,
    "expires_at": datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC),
    "acquired_at": None,
    "consumer_id": UUID(int=1),
    "leases_before": 0,
    "leases_after": None,
    "max_concurrency_before": 1,
    "max_concurrency_after": 2,
    "status_before": "active",
    "status_after": None,
    "selector": None,
    "pool_name": "p",
    "consumer": 'a "b",\'\\\n\x01é\U0001f600\x7f',
    "actor": None,
    "correlation_id": "",
    "proxy_ids": [UUID(int=2), UUID(int=3)],
    "data": '{"consumer_id": "00000000-0000-0000-0000-000000000001"}',
}
BYTES = (
    b"1,7,18446744073709551615,-0.500000,'ConsumerRegistered',1,"
    b"00000000-0000-0000-0000-000000000000,,,"
    b"E'a \"b\",''\\\\\n\x01\xc3\xa9\xf0\x9f\x98\x80\x7f',"
    b"00000000-0000-0000-0000-000000000001,'p',5.000000,,'active',NULL,"
    b"0,,1,2,NULL,NULL,'',"
    b"{00000000-0000-0000-0000-000000000002,00000000-0000-0000-0000-000000000003},"
    b'{"consumer_id": "00000000-0000-0000-0000-000000000001"}'
)


def test_the_bytes_never_change(connection: Connection) -> None:
    """What was sealed once is sealed for good: the bytes of an example, and their digest."""
    assert canonical(EXAMPLE) == BYTES
    assert connection.execute(DIGEST, EXAMPLE).fetchone() == {
        "digest": hashlib.sha256(BYTES).digest(),
        "data": EXAMPLE["data"],
    }
    assert digest({**EXAMPLE, "pool_id": str(UUID(int=0))}) == digest(EXAMPLE)
