"""Ask to confirm an action, carry it out, and say what was done.

An action has a page that anybody with its access can link to. It shows whom it is about and asks
for a reason; the form is sent back to the same path. What is done is recorded with the actor and a
correlation id of its own, so that the log tells who did what and why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import parse_qsl
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...errors import ConflictError, InvalidInputError, PharoxError
from ...events.attribution import attributed, current_attribution
from ..access import Access, Action
from ..actions import DEEDS, Deed, Subject
from ..console import Console, doer
from ..failing import status_of
from ..identity import peer
from ..jobs import Work
from ..rendering import render, url

LONGEST_FORM = 20_000
LONGEST_REASON = 500


async def ask(request: Request) -> Response:
    """Answer with the page that asks to confirm an action, or that says it was done."""
    deed, console = await _begin(request)
    name = _name(request)
    said = console.signer.said(request.query_params.get("said", ""))
    if said is not None:
        return render(request, "done.html", deed=deed, said=said, back=_page(request))
    subject = await console.read(deed.find, console.storage, name)
    return _form(request, console, deed, subject)


async def carry_out(request: Request) -> Response:
    """Carry an action out, and lead to the page that says what was done."""
    deed, console = await _begin(request)
    access: Access = request.state.access
    values = await form_of(request)
    console.signer.check_form(request, access.actor, values.pop("token", ""))
    console.pacer.check(access.actor or peer(request))
    subject = await console.read(deed.find, console.storage, _name(request))
    try:
        said = await console.act(_do, deed, console, _name(request), values, access.actor)
    except PharoxError as error:
        return _form(request, console, deed, subject, values, error)
    place = url(
        request,
        "act",
        action=deed.action.value,
        subject=_name(request),
        said=console.signer.say(said),
        back=_page_of(request, subject),
    )
    return RedirectResponse(place, 303)


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields that a form has sent.

    Raises
    ------
    HTTPException
        413 if they are too many, 400 if they are no text.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_FORM:
            raise HTTPException(413, "This form is longer than the console takes.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict"))
    except ValueError:
        raise HTTPException(400, "This is no form of the console.") from None


async def _begin(request: Request) -> tuple[Deed, Console]:
    try:
        action = Action(request.path_params["action"])
    except ValueError:
        raise HTTPException(404) from None
    return DEEDS[action], await doer(request, action)


def _do(deed: Deed, console: Console, name: str, values: dict[str, str], actor: str | None) -> str:
    reason = values.get("reason", "").strip()
    if not reason:
        raise InvalidInputError("say why: the reason stands in the log")
    if len(reason) > LONGEST_REASON:
        raise InvalidInputError(f"a reason has at most {LONGEST_REASON} characters")
    with attributed(actor=actor or "console", correlation_id=f"console-{uuid4()}"):
        if deed.job is None:
            return deed.carry_out(console.storage, name, values, reason)
        carry_out = partial(deed.carry_out, console.storage, name, values, reason)
        return _start(
            console, deed.action.value, partial(deed.job, console.storage, name), carry_out
        )


def _start(console: Console, kind: str, work: Work, carry_out: Callable[[], str]) -> str:
    """Start a job, unless one of its kind runs; what begins it is carried out before."""
    said: list[str] = []
    actor, _ = current_attribution()
    if not console.jobs.start(kind, work, actor=actor, before=lambda: said.append(carry_out())):
        running = console.jobs.of(kind)
        what = f": {running.what}" if running is not None and running.what else ""
        raise ConflictError(f"a {kind} is running already{what}", name=kind)
    return said[0]


def _form(
    request: Request,
    console: Console,
    deed: Deed,
    subject: Subject,
    values: dict[str, str] | None = None,
    error: PharoxError | None = None,
) -> Response:
    """Return the form, with what was typed in and what was wrong with it, if anything."""
    access: Access = request.state.access
    return render(
        request,
        "act.html",
        status_code=200 if error is None else status_of(error),
        deed=deed,
        subject=subject,
        values=values,
        problem=None if error is None else str(error),
        token=console.signer.form_token(access.actor, request.url.path),
        back=_page_of(request, subject),
        longest_reason=LONGEST_REASON,
    )


def _name(request: Request) -> str:
    return str(request.path_params["subject"])


def _page(request: Request) -> str:
    """Return the page to go back to: one of ours, whatever a link says."""
    back = request.query_params.get("back", "")
    return back if is_own(request, back) else url(request, "overview")


def _page_of(request: Request, subject: Subject) -> str:
    if subject.page is None:
        return url(request, "overview")
    return url(request, subject.page, **(subject.parameters or {}))


def is_own(request: Request, place: str) -> bool:
    """Return whether a link leads to a page of this console."""
    root = url(request, "overview")
    return place.startswith(root) and not place.startswith("//") and "\\" not in place
