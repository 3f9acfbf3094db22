"""An API over any storage, asked by an HTTP client in the loop that serves it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry

from pharox import ApiRight, ApiToken, AsyncInMemoryStorage
from pharox.api import create_app
from pharox.api.bodies import MAX_WAIT_S
from pharox.api.openapi import description
from tests.conftest import AnyStorage, for_tasks

BASE = "http://pharox.test"
ROOT = "/api/v1"
Headers = dict[str, str]


def token_of(
    storage: AnyStorage, consumer: str = "go-worker", *rights: ApiRight, pools: tuple[str, ...] = ()
) -> Headers:
    """Issue a token, and return the header that has it."""
    token, text = ApiToken.draw(consumer, rights or tuple(ApiRight), pools=pools)
    storage.add_api_token(token)
    return {"Authorization": f"Bearer {text}"}


class Asker:
    """Asks an API; each answer is held to the description."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE)

    async def post(self, path: str, headers: Headers, **body: Any) -> httpx.Response:
        return await self.ask("POST", path, headers, json=body)

    async def get(self, path: str, headers: Headers, **query: Any) -> httpx.Response:
        return await self.ask("GET", path, headers, params=query)

    async def ask(self, method: str, path: str, headers: Headers, **options: Any) -> httpx.Response:
        answer = await self._client.request(method, ROOT + path, headers=headers, **options)
        check_described(method, path, answer)
        return answer


def asking(
    storage: AnyStorage,
    use: Callable[[Asker], Awaitable[None]],
    registry: CollectorRegistry | None = None,
) -> None:
    """Ask the API of a storage in an event loop of its own."""

    async def run() -> None:
        ours = for_tasks(storage)
        try:
            await use(Asker(create_app(ours, registry=registry)))
        finally:
            if not isinstance(ours, AsyncInMemoryStorage):
                await ours.close()

    asyncio.run(run())


@cache
def described() -> dict[str, Any]:
    """Return the description."""
    document: dict[str, Any] = json.loads(description(ROOT, MAX_WAIT_S))
    return document


def check_described(method: str, path: str, answer: httpx.Response) -> None:
    """Fail if an answer is another one than the description has."""
    kind, body = answer.headers["content-type"], answer.json()
    assert answer.headers["cache-control"] == "no-store"
    if answer.status_code >= 400:
        assert kind == "application/problem+json"
        assert body["status"] == answer.status_code
    words, validator = _answer_described(method, path, answer.status_code, kind)
    validator.validate(body)
    if words is not None and answer.status_code >= 400:
        assert f"`{body['code']}`" in words


@cache
def _answer_described(method: str, path: str, status: int, kind: str) -> tuple[str | None, Any]:
    """Return the words and the schema of an answer with this status."""
    paths, words = described()["paths"], None
    place = next((each for each in (path, _with_id(path)) if ROOT + each in paths), "")
    operation = paths.get(ROOT + place, {}).get(method.lower())
    if operation is None:  # There is no such operation, and the answer says so.
        assert status in {404, 405}
        schema = {"$ref": "#/components/schemas/ProblemAnswer"}
    else:
        found = operation["responses"][str(status)]
        words, schema = found["description"], found["content"][kind]["schema"]
    return words, Draft202012Validator({**schema, "components": described()["components"]})


def _with_id(path: str) -> str:
    return f"{path.rpartition('/')[0]}/{{lease_id}}"
