"""Whatever is sent gets an answer of ours, and whoever is gone has no lease."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pharox import AsyncInMemoryStorage, DatabaseError, InMemoryStorage
from pharox.api import create_app
from pharox.api.app import MAX_BODY_BYTES
from pharox.api.operations import GIVEN_BACK, OPERATIONS
from pharox.api.tokens import Tokens
from pharox.storage.postgres import PostgresStorage
from tests.api.conftest import ROOT, Asker, asking, token_of
from tests.api.test_operations import ASKS
from tests.conftest import AnyStorage, fill, for_tasks

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(st.characters(), max_size=20),
        st.sampled_from(
            ["a", "00000000-0000-0000-0000-000000000000", "\x00", "\ud800", "http://["]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = sorted(
    {
        name
        for operation in OPERATIONS.values()
        if operation.body is not None
        for name in operation.body.model_fields
    }
    | {"kind", "status", "host", "country", "all_of", "key", "seconds"}
)


def test_no_body_is_a_fault_of_ours() -> None:
    """Fields of the wrong kind, unknown ones, and bytes that are no JSON are refused with 400."""
    storage = InMemoryStorage()
    fill(storage, 1, name="a")
    headers = token_of(storage)
    loop = asyncio.new_event_loop()
    api = Asker(create_app(for_tasks(storage)))

    @given(
        st.sampled_from([each for each in OPERATIONS.values() if each.body is not None]),
        st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4),
        st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=20)),
    )
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    def refuses(operation: Any, changes: dict[str, Any], raw: bytes | None) -> None:
        path, body = ASKS[operation.name]
        content = raw if raw is not None else json.dumps({**body, **changes}).encode()
        answer = loop.run_until_complete(api.ask("POST", path, headers, content=content))
        assert answer.status_code < 500, answer.text
        if answer.status_code == 400:
            assert answer.json()["code"] in {"invalid_json", "invalid_request"}

    try:
        refuses()
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("fault", "asked"),
    [
        ("pool", {"pool": ""}),
        ("pool", {}),
        ("lease_second: Extra", {"pool": "a", "lease_second": 5}),
        ("lease_seconds", {"pool": "a", "lease_seconds": 0}),
        ("wait_seconds", {"pool": "a", "wait_seconds": 61}),
        ("lease_id", {"pool": "a", "lease_id": "7"}),
        ("target", {"pool": "a", "target": "two words"}),
        ("filters.asn", {"pool": "a", "filters": {"asn": "x"}}),
        ("latitude and longitude", {"pool": "a", "filters": {"latitude": 5}}),
        ("fall back", {"pool": "a", "fallback": ["a"]}),
        ("selector", {"pool": "a", "selector": "best"}),
    ],
)
def test_a_refusal_names_the_field(fault: str, asked: dict[str, Any]) -> None:
    """So that it can be mended without a look into the server."""
    storage = InMemoryStorage()

    async def use(api: Asker) -> None:
        answer = await api.post("/acquire", token_of(storage), **asked)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert fault in answer.json()["detail"]

    asking(storage, use)


def test_sizes_are_bounded() -> None:
    """A body, however it is sent, the name of a job, and how deep JSON may be."""
    storage = InMemoryStorage()
    headers = token_of(storage)

    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * (MAX_BODY_BYTES // 10)

    async def use(api: Asker) -> None:
        whole = await api.ask("POST", "/acquire", headers, content=b" " * (MAX_BODY_BYTES + 1))
        assert (whole.status_code, whole.headers["connection"]) == (413, "close")
        assert (await api.ask("POST", "/acquire", headers, content=chunks())).status_code == 413
        for job in ("x" * 201, "ü", "a\tb"):
            named: Any = {**headers, "X-Correlation-Id": job.encode()}
            refused = await api.post("/acquire", named, pool="a")
            assert refused.status_code == 400
        deep = b'{"pool":"a","filters":' + b'{"all_of":[' * 5000 + b"]}" * 5000 + b"}"
        assert (await api.ask("POST", "/acquire", headers, content=deep)).status_code == 400

    asking(storage, use)


class Connection:
    """A connection as a server tells an application of it, which can be cut off."""

    def __init__(self, headers: dict[str, str], body: dict[str, Any]) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": f"{ROOT}/acquire",
            "query_string": b"",
            "headers": [(key.lower().encode(), each.encode()) for key, each in headers.items()],
        }
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
        self.cut = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self.cut.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def alone(
    storage: AnyStorage,
    use: Callable[[Any, Any], Any],
    registry: CollectorRegistry | None = None,
) -> None:
    async def run() -> None:
        ours = for_tasks(storage)
        try:
            await use(create_app(ours, registry=registry), ours)
        finally:
            if not isinstance(ours, AsyncInMemoryStorage):
                await ours.close()

    asyncio.run(run())


def test_a_lease_that_nobody_received_is_given_back(any_storage: AnyStorage) -> None:
    """Whether its client left before it was granted, or while it waited."""
    fill(any_storage, 1, name="a", max_concurrency=1)
    headers = token_of(any_storage)

    async def use(app: Any, ours: Any) -> None:
        left = Connection(headers, {"pool": "a"})
        left.cut.set()
        await app(left.scope, left.receive, left.send)
        assert left.sent == []
        first = Connection(headers, {"pool": "a"})
        await app(first.scope, first.receive, first.send)
        assert first.sent[0]["status"] == 201
        waits = Connection(headers, {"pool": "a", "wait_seconds": 50})
        task = asyncio.create_task(app(waits.scope, waits.receive, waits.send))
        await waiting(ours, 1)
        waits.cut.set()
        await task
        await waiting(ours, 0)
        assert waits.sent == []

    registry = CollectorRegistry()
    alone(any_storage, use, registry)
    gone = {"operation": "acquire", "status": "499"}
    assert registry.get_sample_value("pharox_api_requests_total", gone) == 2
    ends = [each for each in any_storage.events() if each.type == "LeaseReleased"]
    assert [each.reason for each in ends] == [GIVEN_BACK]


def test_who_waits_is_sent_away_when_the_server_stops(any_storage: AnyStorage) -> None:
    """It hears so at once, and its place is given up."""
    fill(any_storage, 1, name="a", max_concurrency=1)
    headers = token_of(any_storage)

    async def use(app: Any, ours: Any) -> None:
        first = Connection(headers, {"pool": "a"})
        await app(first.scope, first.receive, first.send)
        waits = Connection(headers, {"pool": "a", "wait_seconds": 50})
        task = asyncio.create_task(app(waits.scope, waits.receive, waits.send))
        await waiting(ours, 1)
        app.stop_waiting()
        await task
        assert waits.sent[0]["status"] == 503
        assert json.loads(waits.sent[1]["body"])["code"] == "shutting_down"
        await waiting(ours, 0)

    alone(any_storage, use)


async def waiting(storage: Any, number: int) -> None:
    """Wait until as many requests wait for a proxy."""
    async with asyncio.timeout(30):
        while sum(each.waiting for each in await storage.queue_stats()) != number:
            await asyncio.sleep(0.01)


def test_a_token_withdrawn_while_its_bearer_waits_gets_nothing(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was granted meanwhile is given back."""
    fill(any_storage, 1, name="a", max_concurrency=1)
    headers = token_of(any_storage)
    monkeypatch.setattr("pharox.api.tokens.REFRESH_S", 0)

    async def use(app: Any, ours: Any) -> None:
        first = Connection(headers, {"pool": "a"})
        await app(first.scope, first.receive, first.send)
        lease_id = json.loads(first.sent[1]["body"])["lease_id"]
        waits = Connection(headers, {"pool": "a", "wait_seconds": 50})
        task = asyncio.create_task(app(waits.scope, waits.receive, waits.send))
        await waiting(ours, 1)
        (token,) = await ours.list_api_tokens()
        await ours.withdraw_api_token(token.id)
        await ours.release_lease(await ours.get_lease(lease_id))
        await task
        assert waits.sent[0]["status"] == 401
        assert (await ours.get_pool_stats("a")).total_leases == 0

    alone(any_storage, use)


def test_who_waits_for_the_tokens_shares_one_read() -> None:
    """And its failure, so that a ledger that does not answer is not asked in turn by each."""
    storage, reads = AsyncInMemoryStorage(), []

    async def fails() -> Any:
        reads.append(1)
        await asyncio.sleep(0)
        raise DatabaseError("gone")

    async def use() -> None:
        tokens = Tokens(storage)
        asked = (tokens.of("Bearer x") for _ in range(20))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(each) for each in outcomes} == {DatabaseError}
        assert len(reads) == 1
        with pytest.raises(DatabaseError):  # The next one asks anew.
            await tokens.of("Bearer x")
        assert len(reads) == 2

    storage.list_api_tokens = fails  # type: ignore[method-assign]
    asyncio.run(use())


def test_a_right_of_a_later_version_is_not_granted(postgres: PostgresStorage) -> None:
    """A token that has it is known, and the others are served."""
    ours, later = token_of(postgres), token_of(postgres, "later")
    with postgres.engine.begin() as connection:
        connection.execute(
            sa.text(
                f"UPDATE {postgres.schema}.api_tokens SET rights = '[\"fly\"]' "
                "WHERE consumer = 'later'"
            )
        )

    async def use(api: Asker) -> None:
        assert (await api.get("/stats", ours)).status_code == 200
        refused = await api.get("/stats", later)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")

    asking(postgres, use)
