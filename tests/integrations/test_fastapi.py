"""An endpoint's lease is given back whatever becomes of the endpoint; a miss is 503."""

# FastAPI reads annotations of nested functions, which must not be text: no __future__ here.

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pharox import (
    AsyncLeasedClient,
    AsyncProxyManager,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    OutcomeKind,
    PoolOptions,
    ProxyManager,
    Sticky,
)
from pharox.integrations.fastapi import (
    exception_handlers,
    leased,
    leased_client,
    pharox_lifespan,
)
from pharox.integrations.testing import FIVE, proxy_lab
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, AnyStorage
from tests.integrations.examples import example
from tests.integrations.ledgers import Lab, lab_for_tasks
from tests.integrations.web import uvicorn_serving
from tests.ledger.following import until


@pytest.fixture
def one(any_storage: AnyStorage) -> Iterator[Lab]:
    """A pool of one good proxy, on each storage."""
    with lab_for_tasks(any_storage) as lab:
        yield lab


def application(lab: Lab) -> FastAPI:
    """Return an application whose storage is closed in the end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, AsyncProxyManager]]:
        async with pharox_lifespan(manager=lab.manager)(app) as state:
            yield state
        await lab.close()

    return FastAPI(lifespan=lifespan)


def through(lease: Lease) -> httpx.HTTPTransport:
    return httpx.HTTPTransport(proxy=lease.proxy.url)


def test_sync_and_async_endpoints_hold_a_lease(one: Lab) -> None:
    """Within both the proxy is leased, and works; after the answer it is free."""
    app = application(one)
    dependency = leased(one.pool)

    def in_a_thread(lease: Annotated[Lease, Depends(dependency)]) -> str:
        assert [each.id for each in one.lab.held] == [lease.id]
        with httpx.Client(transport=through(lease)) as client:
            return client.get(one.lab.url("/thread")).text

    async def in_a_task(
        lease: Annotated[Lease, Depends(dependency)], again: Annotated[Lease, Depends(dependency)]
    ) -> str:
        assert again is lease
        return await asyncio.to_thread(in_a_thread, lease)

    app.get("/thread")(in_a_thread)
    app.get("/task")(in_a_task)
    with uvicorn_serving(app) as web:
        for path in ("/thread", "/task", "/thread"):
            assert "good http://shop.example/thread" in web.get(path).text
            assert one.lab.held == []


@pytest.mark.parametrize("scope", ["function", "request"])
def test_a_lease_ends_with_the_function_or_with_the_answer(one: Lab, scope: Any) -> None:
    """A streamed answer holds the proxy only if that is asked for."""
    app = application(one)
    held: list[int] = []

    def stream(lease: Annotated[Lease, Depends(leased(one.pool, scope=scope))]) -> Response:
        def body() -> Iterator[str]:
            held.append(len(one.lab.held))
            yield str(lease.id)

        return StreamingResponse(body())

    app.get("/")(stream)
    with uvicorn_serving(app) as web:
        web.get("/").raise_for_status()
        until(lambda: one.lab.held == [])
    assert held == [1 if scope == "request" else 0]


def test_a_miss_is_503_with_the_time_to_come_back(one: Lab) -> None:
    app = application(one)

    def page(lease: Annotated[Lease, Depends(leased(one.pool, wait_seconds=None))]) -> None: ...
    def other(lease: Annotated[Lease, Depends(leased("no such pool"))]) -> None: ...

    app.get("/")(page)
    app.get("/other")(other)
    with uvicorn_serving(app) as web:
        with one.lab.manager.with_lease(one.pool, "elsewhere", 3600):
            missed = web.get("/")
        assert web.get("/").status_code == 200
        unknown = web.get("/other")
    assert (missed.status_code, missed.json()) == (
        503,
        {"detail": "No proxy is free: at_capacity."},
    )
    assert 3000 < int(missed.headers["retry-after"]) <= 3600
    assert unknown.status_code == 503
    assert "retry-after" not in unknown.headers


def test_what_an_endpoint_raises_gives_the_lease_back(one: Lab) -> None:
    app = application(one)

    async def fails(lease: Annotated[Lease, Depends(leased(one.pool))]) -> None:
        raise RuntimeError("of the endpoint")

    app.get("/")(fails)
    with uvicorn_serving(app) as web:
        for _ in range(2):  # The second would wait, and miss.
            assert web.get("/").status_code == 500
    assert one.lab.held == []


def test_a_cancelled_endpoint_gives_the_lease_back(one: Lab) -> None:
    """As a middleware with a time limit cancels it."""
    app = application(one)

    async def hangs(lease: Annotated[Lease, Depends(leased(one.pool))]) -> None:
        await asyncio.sleep(3600)

    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        async with asyncio.timeout(0.5):
            return await app(scope, receive, send)

    app.get("/")(hangs)
    with uvicorn_serving(impatient) as web:
        assert web.get("/").status_code == 500
        assert one.lab.held == []
        assert len(one.lab.storage.list_leases()) == 1


def test_an_endpoint_whose_lease_is_lost_ends_there(
    one: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    app = application(one)

    async def loses(request: Request, lease: Annotated[Lease, Depends(leased(one.pool))]) -> None:
        await request.state.pharox.revoke_lease(lease.id, "for maintenance")
        await asyncio.sleep(3600)

    app.get("/")(loses)
    with caplog.at_level(logging.WARNING, "pharox"), uvicorn_serving(app) as web:
        answer = web.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "for maintenance" in caplog.text
    assert one.lab.held == []


def test_options_may_depend_on_the_request(one: Lab) -> None:
    app = application(one)

    def chosen(connection: HTTPConnection) -> PoolOptions:
        account = connection.headers["x-account"]
        return {"sticky": Sticky(account), "target": connection.query_params["url"]}

    def page(lease: Annotated[Lease, Depends(leased(one.pool, options_for=chosen))]) -> str:
        return str(lease.target)

    app.get("/")(page)
    with uvicorn_serving(app) as web:
        answer = web.get("/", params={"url": one.lab.url()}, headers={"x-account": "anna"})
    assert answer.json() == "shop.example"
    assert [session.key for session in one.lab.manager.sessions(one.pool)] == ["anna"]


KINDS = {
    "good": (200, [OutcomeKind.OK]),
    "password": (200, [OutcomeKind.OK]),
    "socks": (200, [OutcomeKind.OK]),
    "refusing": (403, [OutcomeKind.BLOCKED]),
    "dying": (500, [OutcomeKind.OK, OutcomeKind.UNCLEAR]),  # its head came
}


@pytest.mark.parametrize("name", KINDS)
def test_a_client_reports_by_itself(any_storage: AnyStorage, name: str) -> None:
    status, kinds = KINDS[name]
    with lab_for_tasks(any_storage, {name: FIVE[name]}) as one:
        app = application(one)

        async def fetch(
            client: Annotated[AsyncLeasedClient, Depends(leased_client(one.pool))],
        ) -> Response:
            answer = await client.get(one.lab.url())
            return PlainTextResponse(answer.text, answer.status_code)

        app.get("/")(fetch)
        with uvicorn_serving(app) as web:
            assert web.get("/").status_code == status
        assert one.lab.held == []
        assert [told.kind for told in one.lab.outcomes] == kinds
        assert {told.target for told in one.lab.outcomes} == {"shop.example"}


def test_an_application_without_a_manager_says_so(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    def page(lease: Annotated[Lease, Depends(leased("pool"))]) -> None: ...

    app.get("/")(page)
    with uvicorn_serving(app) as web:
        assert web.get("/").status_code == 500
    assert "give it lifespan=pharox_lifespan()" in caplog.text


def test_a_manager_that_blocks_is_refused() -> None:
    manager: Any = ProxyManager(InMemoryStorage())
    for call in (
        lambda: pharox_lifespan(manager=manager),
        lambda: leased("pool", manager=manager),
        lambda: leased_client("pool", manager=manager),
    ):
        with pytest.raises(InvalidInputError, match="AsyncProxyManager"):
            call()


def test_starlette_alone_answers_misses_too(one: Lab) -> None:
    async def page(request: Request) -> Response:
        pool = request.state.pharox.pool(one.pool, wait_seconds=None)
        async with pool.lease() as lease:
            return PlainTextResponse(str(lease.id))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, AsyncProxyManager]]:
        async with pharox_lifespan(manager=one.manager)(app) as state:
            yield state
        await one.close()

    app = Starlette(
        routes=[Route("/", page)], lifespan=lifespan, exception_handlers=exception_handlers
    )
    with uvicorn_serving(app) as web:
        assert web.get("/").status_code == 200
        with one.lab.manager.with_lease(one.pool):
            missed = web.get("/")
        assert (missed.status_code, missed.json()["detail"]) == (
            503,
            "No proxy is free: at_capacity.",
        )
        assert int(missed.headers["retry-after"]) > 0


def test_the_lifespan_connects_and_closes(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is left when the server has ended."""
    monkeypatch.setenv("PHAROX_SECRET_KEY", SECRET_KEY)
    url = storage.engine.url.render_as_string(hide_password=False)
    managers: list[AsyncProxyManager] = []
    with lab_for_tasks(storage, {"password": FIVE["password"]}) as one:
        app = FastAPI(lifespan=pharox_lifespan(url))

        async def fetch(
            request: Request,
            client: Annotated[AsyncLeasedClient, Depends(leased_client(one.pool))],
        ) -> str:
            managers.append(request.state.pharox)
            return (await client.get(one.lab.url())).text

        app.get("/")(fetch)
        with uvicorn_serving(app) as web:
            assert web.get("/").json().startswith("password ")
        (told,) = one.lab.outcomes
        assert told.kind is OutcomeKind.OK
        engine: Any = managers[0].storage.engine  # type: ignore[attr-defined]
        assert engine.pool.checkedin() == 0


def test_a_server_without_its_database_does_not_start() -> None:
    app = FastAPI(lifespan=pharox_lifespan("postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(AssertionError, match="did not start"), uvicorn_serving(app):
        pass


def test_the_example_runs(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("PHAROX_DATABASE_URL", url)
    monkeypatch.setenv("PHAROX_SECRET_KEY", SECRET_KEY)
    with proxy_lab({"password": FIVE["password"]}, storage=storage, pool_name="residential") as lab:
        with uvicorn_serving(example("fastapi_app").app) as web:
            page = web.get("/fetch", params={"url": lab.url("/page")})
            status = web.get("/status", params={"url": lab.url("/status/403")})
        assert (page.json(), status.json()) == (f"password {lab.url('/page')}\n", 403)
        assert lab.held == []
        assert [told.kind for told in lab.outcomes] == [OutcomeKind.OK, OutcomeKind.BLOCKED]
