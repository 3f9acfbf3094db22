"""``pharox ban`` and ``pharox unban``: set a status that no health check overrides.

All named proxies are looked up before any is changed. A lease on a banned proxy
continues; the proxy is just not leased again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote
from uuid import UUID

import typer

from ..errors import PharoxError, ProxyNotFoundError
from ..history.describing import counted
from ..models import Proxy, ProxyStatus
from ..models.text import escape_unprintable, url_of, without_secrets
from .checking import duration_of
from .session import ledger
from .showing import AsJson, in_utc, print_json

if TYPE_CHECKING:
    from ..history.sealed_log import Beginning
    from ..storage.postgres import PostgresStorage

LISTED = 5
"""How many proxies of one address to list; a gateway has one for each of its users."""

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="PROXY",
        help="The proxy's id, host:port or URL, with the user if several share an address.",
    ),
]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="The reason, for the log.")]


def ban(
    context: typer.Context,
    names: Names,
    *,
    duration: Annotated[
        float | None,
        typer.Option(
            "--for",
            metavar="TIME",
            parser=duration_of,
            help="How long, if not until somebody lifts the ban: 30 (seconds), 5m, 2h.",
        ),
    ] = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Stop leasing proxies, whatever health checks find.

    With --for the ban ends by itself: each gets the status back that it had before.
    """
    with ledger(context) as storage:
        for found in proxies_named(storage, names):
            proxy = storage.set_status(
                found.id, ProxyStatus.BANNED, reason=reason, for_seconds=duration
            )
            print_proxy(proxy, f"{_banned(found, proxy)}{_held(proxy)}", as_json)


def unban(
    context: typer.Context,
    names: Names,
    *,
    reason: Reason = None,
    active: Annotated[
        bool, typer.Option("--active", help="Lease them again at once, without a check.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lift the ban on proxies: each may be leased again after a successful check."""
    status = ProxyStatus.ACTIVE if active else ProxyStatus.INACTIVE
    description = (
        "is active: it may be leased again"
        if active
        else "is inactive until a check succeeds: `pharox sweep` checks it, and "
        "`pharox proxies set PROXY --status active` leases it again without"
    )
    with ledger(context) as storage:
        banned = proxies_named(storage, names)
        _check_banned(banned)
        for proxy in banned:
            drained = "drains no more, and " if proxy.draining else ""
            unbanned = storage.set_status(proxy.id, status, reason=reason)
            print_proxy(unbanned, f"{drained}{description}", as_json)


def proxies_named(storage: PostgresStorage, names: Sequence[str]) -> list[Proxy]:
    """Return the proxies with these ids or addresses, each once."""
    return list({proxy.id: proxy for proxy in _each_of(storage, names)}.values())


def ids_named(storage: PostgresStorage, pool_name: str, names: Sequence[str]) -> list[UUID]:
    """Return the ids of a pool's proxies with these ids or addresses: all that are at an address.

    Raises
    ------
    ProxyNotFoundError
        If no proxy of the pool is at an address.
    """
    from ..history.sealed_log import beginning  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..storage.validation import id_from_text  # noqa: PLC0415

    pool = storage.get_pool_by_name(pool_name)
    ids: list[UUID] = []
    for name in names:
        if (proxy_id := id_from_text(name)) is not None:
            ids.append(proxy_id)
        elif pool is not None:
            found = _at_address(storage, beginning(storage), name)
            here = [proxy.id for proxy in found if proxy.pool_id == pool.id]
            if not here:
                raise _no_proxy(without_secrets(name), f" in pool {pool_name!r}")
            ids += here
    return list(dict.fromkeys(ids))


def _no_proxy(shown: str, where: str = "") -> ProxyNotFoundError:
    return ProxyNotFoundError(
        f"there is no proxy {shown!r}{where}: give its id, host:port or URL", proxy=shown
    )


def _each_of(storage: PostgresStorage, names: Sequence[str]) -> Iterator[Proxy]:
    from ..history.sealed_log import beginning  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..storage.validation import id_from_text  # noqa: PLC0415

    begin = None
    for name in names:
        if (proxy_id := id_from_text(name)) is not None:
            found = storage.get_bare_proxy(proxy_id)
            proxies = [] if found is None else [found]
        else:
            begin = begin or beginning(storage)
            proxies = _at_address(storage, begin, name)
        yield _only(storage, name, proxies)


def _at_address(storage: PostgresStorage, begin: Beginning, address: str) -> list[Proxy]:
    """Return the proxies that are at an address now, found through the log."""
    from ..history.addresses import address_of, names, proxies_at, without_login  # noqa: PLC0415

    wanted, user = without_login(address), _user_in(address)
    read = storage.get_bare_proxy if user is None else storage.get_proxy_by_id
    ever = map(read, proxies_at(storage, begin, address))
    return [
        proxy
        for proxy in ever
        if proxy is not None
        and names(wanted, address_of(proxy))
        and user in (None, proxy.credentials and proxy.credentials.user)
    ]


def _user_in(address: str) -> str | None:
    login, mark, _ = address.strip().rpartition("://")[2].rpartition("@")
    return unquote(login.partition(":")[0]) if mark else None


def _only(storage: PostgresStorage, name: str, proxies: Sequence[Proxy]) -> Proxy:
    shown = without_secrets(name)
    if not proxies:
        raise _no_proxy(shown)
    if len(proxies) > 1:
        pools = {pool.id: pool.name for pool in storage.list_pools()}
        some = [f"{proxy.id} of pool {pools[proxy.pool_id]!r}" for proxy in proxies[:LISTED]]
        more = f" and {len(proxies) - LISTED} more" if len(proxies) > LISTED else ""
        raise PharoxError(
            f"{len(proxies)} proxies are at {shown!r}; give protocol and user, or an id: "
            f"{', '.join(some)}{more}",
            proxy_ids=tuple(proxy.id for proxy in proxies),
        )
    return proxies[0]


def _check_banned(proxies: Sequence[Proxy]) -> None:
    others = [proxy for proxy in proxies if proxy.status is not ProxyStatus.BANNED]
    if others:
        which = ", ".join(
            f"{url_of(proxy.protocol, proxy.host, proxy.port)} is {proxy.status.value}"
            for proxy in others
        )
        is_down = any(proxy.status is ProxyStatus.INACTIVE for proxy in others)
        hint = "; `pharox proxies set PROXY --status active` leases it again" if is_down else ""
        raise PharoxError(
            f"not banned: {which}; nothing was changed{hint}",
            proxy_ids=tuple(proxy.id for proxy in others),
        )


def _banned(before: Proxy, proxy: Proxy) -> str:
    if proxy.banned_until is not None:
        return f"is banned until {in_utc(proxy.banned_until)}"
    was_banned = before.status is ProxyStatus.BANNED and before.banned_until is None
    return "was already banned" if was_banned else "is banned"


def _held(proxy: Proxy) -> str:
    if not proxy.current_leases:
        return ""
    leases = counted(proxy.current_leases, "lease goes on", "leases go on")
    return f"; it is leased right now, and {leases}"


def print_proxy(proxy: Proxy, description: str, as_json: bool) -> None:
    """Print what happened to a proxy, or the proxy as JSON."""
    if as_json:
        print_json(proxy.model_dump(mode="json", exclude={"credentials"}))
    else:
        print(
            escape_unprintable(
                f"{url_of(proxy.protocol, proxy.host, proxy.port)} ({proxy.id}) {description}"
            ),
            flush=True,
        )
