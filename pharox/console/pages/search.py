"""The search box of the frame: find a pool, a proxy, a consumer, a lease, a target or a source.

Names are matched whole, ids and addresses also by their beginning. One match leads to its page,
several are listed. Each look-up reads a few rows by key; for an address the database looks through
the hosts of all proxies. Leases are found by the whole id, those held now also by its beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pharox.log import Extract

from ...errors import InvalidInputError
from ...history.addresses import address_of, names, without_login
from ...history.sealed_log import archived_upto, first
from ...models import check_text, target_of
from ...models.text import url_of
from ...storage.validation import id_from_text
from ..console import reader
from ..rendering import render, url
from .consumer import was_ever

LISTED = 20
"""How many matches are listed."""

LOOKED = 1_000
"""How many proxies are looked at whose host or id begins so."""

_LONGEST = 500
_SHORTEST = 4
_HEX = re.compile(r"[0-9a-fA-F-]+")


class Match(NamedTuple):
    """Something that was found: what it is, its name, and its page."""

    kind: str
    name: str
    route: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SearchPage:
    """What was found; ``has_more`` if there were more than are listed."""

    text: str
    matches: Sequence[Match] = ()
    has_more: bool = False


def data(storage: Any, text: str) -> SearchPage:
    """Return what a text may mean, surest first."""
    text = text.strip()
    if not text or len(text) > _LONGEST:
        return SearchPage(text[:_LONGEST])
    try:
        check_text(text)
    except InvalidInputError:
        return SearchPage(text)
    found = list(islice(_matches(storage, text), LISTED + 1))
    return SearchPage(text, found[:LISTED], len(found) > LISTED)


def _matches(storage: Any, text: str) -> Iterator[Match]:
    for pool in storage.list_pools():
        if text in (pool.name, str(pool.id)):
            yield Match("pool", pool.name, "pool", {"pool": pool.id})
    if (uuid := id_from_text(text)) is not None:
        yield from _of_id(storage, uuid)
    if was_ever(storage, text):
        yield Match("consumer", text, "consumer", {"name": text})
    for source in storage.list_sources():
        if text in (source.name, source.host):
            yield Match("source", source.name, "source", {"name": source.name})
    if uuid is None:
        yield from _targets(storage, text)
        yield from _proxies(storage, text)


def _of_id(storage: Any, uuid: UUID) -> Iterator[Match]:
    begin = archived_upto(storage)
    proxy = storage.get_bare_proxy(uuid)
    if proxy is not None or first(storage, Extract(begin, proxy_id=uuid)) is not None:
        yield Match("proxy", address_of(proxy) if proxy else str(uuid), "proxy", {"proxy": uuid})
    if first(storage, Extract(begin, lease_id=uuid)) is not None:
        yield Match("lease", str(uuid), "lease", {"lease": uuid})


def _targets(storage: Any, text: str) -> Iterator[Match]:
    try:
        target = target_of(text)
    except InvalidInputError:
        return
    rules = {each.rules.target for each in storage.list_target_rules()}
    if target in rules or storage.list_target_outcomes(target=target, limit=1):
        yield Match("target", target, "target", {"name": target})


def _proxies(storage: Any, text: str) -> Iterator[Match]:
    """Yield the proxies whose address is this or begins so, and those whose id begins so."""
    wanted = without_login(text)
    beginning = text.lower() if len(text) >= _SHORTEST and _HEX.fullmatch(text) else None
    exact: list[Match] = []
    others: list[Match] = []
    for proxy_id, address in _candidates(storage, wanted, beginning):
        match = Match("proxy", address, "proxy", {"proxy": proxy_id})
        if names(wanted, address):
            exact.append(match)
        elif (len(wanted) >= _SHORTEST and _begins(wanted, address)) or (
            beginning is not None and str(proxy_id).startswith(beginning)
        ):
            others.append(match)
    yield from exact or others
    if beginning is not None and not exact:
        yield from _held(storage, beginning)


_CANDIDATES = """
SELECT id, protocol, host, port FROM {schema}.proxies
WHERE starts_with(host, %(host)s) OR starts_with(id::text, %(id)s)
ORDER BY host, port, id LIMIT %(limit)s
"""


def _candidates(storage: Any, wanted: str, beginning: str | None) -> Iterable[tuple[UUID, str]]:
    """Return the ids and addresses of proxies that may be meant, without reading them all."""
    place = wanted.rpartition("://")[2]
    host = place.rpartition(":")[0] if ":" in place and not place.startswith("[") else place
    if not hasattr(storage, "session"):
        proxies = (p for pool in storage.list_pools() for p in storage.list_proxies(str(pool.id)))
        return ((proxy.id, address_of(proxy)) for proxy in proxies)
    from ...history.past.stretch import rows  # noqa: PLC0415 - it comes with an extra

    values = {
        "host": host.strip("[]").partition("]")[0],
        "id": beginning or "no id begins so",
        "limit": LOOKED,
    }
    with storage.session() as session:
        found = rows(session, storage.schema, _CANDIDATES, values)
    return ((row[0], url_of(*row[1:])) for row in found)


def _begins(wanted: str, address: str) -> bool:
    return address.startswith(wanted) or address.partition("://")[2].startswith(wanted)


def _held(storage: Any, beginning: str) -> Iterator[Match]:
    """Yield the leases held now whose id begins so."""
    for lease in storage.list_held_leases(limit=1000):
        if str(lease.id).startswith(beginning):
            yield Match("lease", str(lease.id), "lease", {"lease": lease.id})


async def page(request: Request) -> Response:
    """Answer with what was found, or lead to it if it is one thing."""
    console = await reader(request)
    shown = await console.read(data, console.storage, request.query_params.get("q", ""))
    if len(shown.matches) == 1:
        (match,) = shown.matches
        return RedirectResponse(url(request, match.route, **match.parameters), 303)
    status = 200 if shown.matches or not shown.text else 404
    return render(request, "search.html", shown=shown, status_code=status)
