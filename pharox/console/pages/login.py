"""Ask for a token once, and keep who has shown it in a cookie."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...errors import InvalidInputError
from ...models import check_text
from ..console import Console, console_of
from ..identity import COOKIE, TokenAccess
from ..rendering import render, url
from .act import form_of, is_own

LONGEST_NAME = 100


async def ask(request: Request) -> Response:
    """Answer with the form that asks for a token."""
    console, access = _asking(request)
    place = request.query_params.get("to", "")
    if access.known(request) is not None:
        return RedirectResponse(_of_ours(request, place), 303)
    return _form(request, console, place)


async def enter(request: Request) -> Response:
    """Take a token and a name, and lead to the page that was asked for."""
    console, access = _asking(request)
    values = await form_of(request)
    console.signer.check_form(request, None, values.get("form", ""))
    name, place = values.get("name", "").strip(), values.get("to", "")
    if not name or len(name) > LONGEST_NAME:
        problem = f"Say who you are, in at most {LONGEST_NAME} characters: the log has your name."
        return _form(request, console, place, name[:LONGEST_NAME], problem)
    try:
        check_text(name)
        cookie: dict[str, Any] = access.cookie(request, values.get("token", "").strip(), name)
    except InvalidInputError as error:
        return _form(request, console, place, "", str(error))
    except HTTPException as error:
        return _form(request, console, place, name, error.detail, error.status_code)
    answer = RedirectResponse(_of_ours(request, place), 303)
    answer.set_cookie(**cookie)
    return answer


async def leave(request: Request) -> Response:
    """Forget who has logged in."""
    answer = RedirectResponse(url(request, "login"), 303)
    answer.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")
    return answer


def _of_ours(request: Request, place: str) -> str:
    return place if is_own(request, place) else url(request, "overview")


def _asking(request: Request) -> tuple[Console, TokenAccess]:
    """Return the console and what it asks for tokens by; 404 if it does not."""
    console = console_of(request)
    if not isinstance(console.authorize, TokenAccess):
        raise HTTPException(404)
    return console, console.authorize


def _form(
    request: Request,
    console: Console,
    place: str,
    name: str = "",
    problem: str | None = None,
    status: int = 400,
) -> Response:
    return render(
        request,
        "login.html",
        status_code=200 if problem is None else status,
        form=console.signer.form_token(None, request.url.path),
        place=place,
        name=name,
        problem=problem,
        longest_name=LONGEST_NAME,
    )
