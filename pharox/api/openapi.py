"""Write the OpenAPI 3.1 description of the API, from the table of operations and their models."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from pydantic_core import to_json

from .answers import ProblemAnswer
from .operations import OPERATIONS, Operation
from .problems import KINDS

MAX_CORRELATION_LENGTH = 200
"""How long the header ``X-Correlation-Id`` may be, which events then have."""

_REF = "#/components/schemas/{model}"
_OF_ALL = (
    "invalid_json",
    "invalid_request",
    "token_missing",
    "token_unknown",
    "token_expired",
    "not_allowed",
    "too_large",
    "internal",
    "ledger_unavailable",
    "outcome_unknown",
    "shutting_down",
)
"""The problems that any operation may have."""

_INTRODUCTION = """\
Lease proxies, and give them back. Each request has a token (`pharox tokens add`), which acts as its
consumer. What goes wrong is a problem (RFC 9457): act on its `code`. A `lease_id` of your own, a
UUID, makes an acquisition safe to repeat.
"""


@cache
def description(root: str, longest_wait_s: float, mounted: str = "") -> bytes:
    """Return the description as JSON.

    Parameters
    ----------
    root:
        The path that all paths begin with.
    longest_wait_s:
        How long a request may wait, in seconds.
    mounted:
        The path that the application is mounted at, which may end with ``root``.
    """
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ProblemAnswer, "serialization")]
    for operation in OPERATIONS.values():
        if operation.body is not None:
            wanted.append((operation.body, "validation"))
        wanted += [(model, "serialization") for model in operation.answers.values()]
    known, definitions = models_json_schema(list(dict.fromkeys(wanted)), ref_template=_REF)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS.values():
        place = root + operation.path + ("{lease_id}" if operation.path.endswith("/") else "")
        paths.setdefault(place, {})[operation.method.lower()] = _described(operation, known)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "pharox",
            "version": "1",
            "description": f"{_INTRODUCTION}A request waits {longest_wait_s:g} s at most.\n",
        },
        "servers": [{"url": mounted.removesuffix(root) or "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
    }
    return to_json(document, indent=2)


def _described(operation: Operation, known: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the right `{operation.right.value}`.",
        "parameters": [*_parameters(operation)],
        "responses": {
            **{
                str(status): {
                    "description": _WORDS[status],
                    "content": {"application/json": {"schema": known[(model, "serialization")]}},
                }
                for status, model in operation.answers.items()
            },
            **_problems(operation, known),
        },
    }
    if operation.body is not None:
        content = {"application/json": {"schema": known[(operation.body, "validation")]}}
        found["requestBody"] = {"required": True, "content": content}
    return found


_WORDS = {200: "It is done, or was done before.", 201: "It is granted."}


_JOB = {
    "name": "X-Correlation-Id",
    "in": "header",
    "description": "The job that the events of the request are attributed to.",
    "schema": {"type": "string", "maxLength": MAX_CORRELATION_LENGTH},
}
_RETRY_AFTER = {
    "description": "In how many seconds to ask again, if time helps.",
    "schema": {"type": "integer", "minimum": 0},
}
_MAY_PASS = {409, 429, 503}
"""The statuses of problems that may say when to ask again."""


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [_JOB] + [
        {"name": name, "in": "query", "description": words, "schema": {"type": "string"}}
        for name, words in operation.query.items()
    ]
    if operation.path.endswith("/"):
        schema = {"type": "string", "format": "uuid"}
        parameters.append({"name": "lease_id", "in": "path", "required": True, "schema": schema})
    return parameters


def _problems(operation: Operation, known: Any) -> dict[str, Any]:
    """Return the problems of an operation by their status, each with its codes."""
    codes: dict[int, list[str]] = {}
    for code in (*_OF_ALL, *operation.problems):
        codes.setdefault(KINDS[code].status, []).append(code)
    schema = known[(ProblemAnswer, "serialization")]
    return {
        str(status): {
            "description": " ".join(f"`{code}`: {KINDS[code].meaning}" for code in each),
            "content": {"application/problem+json": {"schema": schema}},
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status in _MAY_PASS else {}),
        }
        for status, each in sorted(codes.items())
    }
