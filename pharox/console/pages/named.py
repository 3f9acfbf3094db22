"""The page of something that its address names by ``?name=``: a consumer, a target or a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...errors import InvalidInputError
from ..console import reader
from ..rendering import render
from ..story import Here, wanted_of


async def named_page(request: Request, kind: str, data: Callable[..., Any]) -> Response:
    """Answer with the page of what a request names.

    Parameters
    ----------
    kind:
        The name of the route, and of the template.
    data:
        Returns what the page shows, of a storage, its past, a name and the window that is wanted.
    """
    console = await reader(request)
    asked = name_of(request), wanted_of(request.query_params)
    shown = await console.read(data, console.storage, console.figures.past, *asked)
    return render(request, f"{kind}.html", shown=shown, here=Here(kind, {}, {"name": shown.name}))


def name_of(request: Request) -> str:
    """Return the name that a request asks for.

    Raises
    ------
    InvalidInputError
        If it asks for none.
    """
    name = request.query_params.get("name", "")
    if not name:
        raise InvalidInputError("This address lacks a name: it ends with ?name= and the name.")
    return name
