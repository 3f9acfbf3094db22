"""Render templates: every value is text, every link is relative to where the console is mounted.

Jinja escapes each value. Before that, characters that cannot be seen (control characters, marks of
writing direction) are made visible, as in the command line and the incident report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from ..history.describing import counts_in_words
from ..incident.wording import REASONS, count, full_moment, span, time_of_day
from ..models.text import escape_unprintable
from .access import Access
from .story import KINDS, by_day, linked
from .story.reading import LOOKED

NAVIGATION = [
    ("overview", "Overview"),
    ("why", "Why nothing?"),
    ("incident", "Incident"),
    ("ledger", "Ledger"),
]
"""The pages in the header: the name of each route and its label."""


def render(
    request: Request,
    template: str,
    /,
    *,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> Response:
    """Return a page."""
    html = render_text(request, template, **context)
    return HTMLResponse(html, status_code, headers=headers)


def render_text(request: Request, template: str, /, **context: Any) -> str:
    """Return the HTML of a template, for a page or a part of one."""
    access: Access = getattr(request.state, "access", Access.none())
    return (
        environment()
        .get_template(template)
        .render(
            url=lambda name, /, **parameters: url(request, name, **parameters),
            link=lambda name, text, /, **parameters: link(request, name, text, **parameters),
            path=request.url.path,
            access=access,
            fleet_url=fleet_url(request),
            can_leave=access.may_read and getattr(request.state, "can_leave", False),
            now=datetime.now(UTC),
            **context,
        )
    )


def url(request: Request, name: str, /, **parameters: Any) -> str:
    """Return the path of a route of the console, wherever it is mounted.

    Parameters that the path does not have become the query; None is left out.
    """
    route = _routes(request)[name]
    own = {
        key: quote(value) if isinstance(value := parameters.pop(key), str) else value
        for key in set(getattr(route, "param_convertors", ())) & {*parameters}
    }
    root: str = request.scope.get("root_path", "")
    path = root.rstrip("/") + str(route.url_path_for(name, **own))
    query = {key: value for key, value in parameters.items() if value not in (None, "")}
    return path + (f"?{urlencode(query)}" if query else "")


def _routes(request: Request) -> Mapping[str, BaseRoute]:
    """Return the routes of the console by name: a page has hundreds of links."""
    state = request.app.state
    if not hasattr(state, "routes_by_name"):
        state.routes_by_name = {route.name: route for route in reversed(request.app.routes)}
    known: Mapping[str, BaseRoute] = state.routes_by_name
    return known


def fleet_url(request: Request) -> str | None:
    """Return the path of the overview of the fleet that the console is part of, if it is of one."""
    mounted_at: str | None = getattr(request.app.state, "mounted_at", None)
    if mounted_at is None:
        return None
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/").removesuffix(mounted_at) + "/fleet"


def link(request: Request, name: str, text: str, /, **parameters: Any) -> Markup:
    """Return a name as a link to its page, or as text if the console has no such page."""
    shown = escape_unprintable(text)
    if name not in _routes(request):
        return Markup("<bdi>{}</bdi>").format(shown)
    return Markup('<a href="{}"><bdi>{}</bdi></a>').format(url(request, name, **parameters), shown)


@cache
def environment() -> Environment:
    """Return the environment of all templates."""
    made = Environment(
        loader=PackageLoader("pharox.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    made.filters |= {
        "by_day": by_day,
        "clock": clock,
        "exactly": exactly,
        "found": counts_in_words,
        "linked": linked,
        "moment": moment,
        "number": lambda value: f"{value:,}",
        "span": span,
    }
    made.globals |= {
        "count": count,
        "kinds": list(KINDS),
        "looked": LOOKED,
        "navigation": NAVIGATION,
        "reasons": REASONS,
    }
    return made


def _visible(value: Any) -> Any:
    """Make what a template prints visible. Markup is of our own templates."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return escape_unprintable(value)
    return value


def moment(value: datetime | None) -> Markup:
    """Return a moment as an element: date and time in UTC."""
    return _time(value, full_moment)


def clock(value: datetime | None) -> Markup:
    """Return a moment as an element: the time in UTC, with the date if it is another day."""

    def words(at: datetime) -> str:
        at = at.astimezone(UTC).replace(microsecond=0)
        is_near = abs(datetime.now(UTC) - at) < timedelta(hours=20)
        return time_of_day(at) if is_near else f"{at:%b} {at.day}, {time_of_day(at)}"

    return _time(value, words)


def exactly(value: datetime | None) -> Markup:
    """Return a moment as an element: the time in UTC, with milliseconds."""
    return _time(value, time_of_day)


def _time(value: datetime | None, words: Callable[[datetime], str]) -> Markup:
    if value is None:
        return Markup("\u2013")  # a dash
    iso = value.astimezone(UTC).isoformat()
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        iso, full_moment(value), words(value)
    )
