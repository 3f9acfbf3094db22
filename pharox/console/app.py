"""Put the console together: routes, middleware, and errors as pages.

Each page is a module of ``pages`` with a function ``data`` (what it shows, without HTTP) and a
handler. :data:`ROUTES` is the map of them all.
"""

from __future__ import annotations

import inspect
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ..api.app import ROOT as API_ROOT
from ..api.app import Api
from ..errors import InvalidInputError, PharoxError
from ..models import check_pause
from .access import Authorize
from .console import Console
from .failing import ErrorPages, page_of_error
from .headers import SecurityHeaders
from .pages import (
    act,
    consumer,
    incident,
    lease,
    ledger,
    login,
    overview,
    pool,
    proxy,
    search,
    source,
    target,
    why,
)

ROUTES: list[BaseRoute] = [
    Route("/", overview.page, name="overview"),
    Route("/live", overview.live, name="overview-live"),
    Route("/pools/{pool:uuid}", pool.page, name="pool"),
    Route("/pools/{pool:uuid}/live", pool.live, name="pool-live"),
    Route("/pools/{pool:uuid}/part", pool.part, name="pool-part"),
    Route("/proxies/{proxy:uuid}", proxy.page, name="proxy"),
    Route("/leases/{lease:uuid}", lease.page, name="lease"),
    # Names of consumers and targets may be anything, also what a path would lose.
    Route("/consumer", consumer.page, name="consumer"),
    Route("/target", target.page, name="target"),
    Route("/source", source.page, name="source"),
    Route("/why", why.page, name="why"),
    Route("/incident", incident.page, name="incident"),
    Route("/incident/drawn", incident.drawn, name="incident-drawn"),
    Route("/incident/export", incident.export, name="incident-export"),
    Route("/ledger", ledger.page, name="ledger"),
    Route("/ledger/verify", ledger.start_verify, methods=["POST"], name="verify"),
    Route("/ledger/verify/live", ledger.live, name="verify-live"),
    Route("/ledger/sweeps/live", ledger.sweeps_live, name="sweeps-live"),
    Route("/ledger/rebuild/live", ledger.rebuild_live, name="rebuild-live"),
    Route("/search", search.page, name="search"),
    Route("/actions/{action}/{subject:path}", act.ask, name="act"),
    Route("/actions/{action}/{subject:path}", act.carry_out, name="act-now", methods=["POST"]),
    Route("/login", login.ask, name="login"),
    Route("/login", login.enter, name="login-now", methods=["POST"]),
    Route("/logout", login.leave, name="logout", methods=["POST"]),
]


def application(
    storage: Any,
    authorize: Authorize,
    answer_timeout_s: float,
    secret: str | bytes | None,
    api: Api | None = None,
) -> Starlette:
    """Return the application; see :func:`pharox.console.create_app`."""
    if inspect.iscoroutinefunction(getattr(storage, "list_pools", None)):
        raise InvalidInputError(
            f"the console reads in threads, and {type(storage).__name__} is for asyncio: "
            "pharox.connect() makes another storage of the same ledger",
            value=storage,
        )
    if not check_pause(answer_timeout_s, "answer_timeout_s"):
        raise InvalidInputError("answer_timeout_s must be above 0", value=answer_timeout_s)
    static = StaticFiles(directory=str(files(__package__).joinpath("static")))
    routes = [*ROUTES, Mount("/static", static, name="static")]
    if api is not None:
        routes.append(Mount(API_ROOT, api, name="api"))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(SecurityHeaders), Middleware(ErrorPages)],
        exception_handlers={HTTPException: page_of_error, PharoxError: page_of_error},
    )
    app.state.console = Console(storage, authorize, answer_timeout_s, secret)
    return app
