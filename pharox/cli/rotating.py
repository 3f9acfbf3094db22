"""``pharox rotate``: have a lease, or a mobile proxy, take another exit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from ..errors import InvalidInputError, PharoxError
from .banning import print_proxy, proxies_named
from .checking import duration_of
from .leasing import hand_over
from .session import ledger
from .showing import AsJson, print_json

if TYPE_CHECKING:
    from ..models import Lease, RotationAnswer
    from ..storage.postgres import PostgresStorage


def rotate(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="LEASE_ID|PROXY",
            help="A lease of a gateway; or a mobile proxy: its id, host:port or URL.",
        ),
    ],
    *,
    within: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration_of,
            help="How long to try to give a proxy another exit: 60s, 5m; as its pool says if not "
            "given.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a lease of a gateway, or a mobile proxy, take another exit.

    A lease: its proxy has to be a template with {session}. Its id is printed, and the URL that is
    for the new exit, with the proxy's credentials. A sticky session that has the lease's exit takes
    the same one. Its holder goes on with the exit that it has, unless it rotates the lease itself.

    A proxy: it has to have a rotate_url. Nobody is granted it until its link has answered, or
    the time is over. While leases hold it, their ends are waited for. The exit status is 1 if it
    has no other exit then.
    """
    with ledger(context) as storage:
        lease = _lease(storage, name)
        if lease is None:
            _rotate_proxy(storage, name, within, as_json=as_json)
            return
        if within is not None:
            raise InvalidInputError("--within is for a proxy with a rotate_url, not for a lease")
        lease.exit = storage.rotate_exit(lease.id)
        proxy = storage.get_proxy(str(lease.proxy_id))
    hand_over(lease.carry(proxy.with_exit(lease.exit)), as_json=as_json)


def _lease(storage: PostgresStorage, name: str) -> Lease | None:
    """Return the lease with this id, if it is one of a lease."""
    try:
        return storage.get_lease(str(UUID(name)))
    except ValueError:
        return None


def _rotate_proxy(
    storage: PostgresStorage, name: str, within: float | None, *, as_json: bool
) -> None:
    from ..manager import ProxyManager  # noqa: PLC0415 - SQLAlchemy takes a while to import

    try:
        (proxy,) = proxies_named(storage, [name])
    except PharoxError as error:
        if not _is_id(name):
            raise
        raise PharoxError(f"there is no lease and no proxy with the id {name}") from error
    answer = ProxyManager(storage).rotate_proxy(proxy.id, within_seconds=within)
    if as_json:
        print_json({"proxy_id": str(proxy.id), **_fields(answer)})
    else:
        print_proxy(proxy, _in_words(answer), as_json=False)
    if not answer.is_rotated:
        raise typer.Exit(1)


def _is_id(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True


def _fields(answer: RotationAnswer) -> dict[str, object]:
    return {
        "rotated": answer.is_rotated,
        "exit_ip": answer.exit_ip,
        "failure": answer.failure and answer.failure.value,
        "status": answer.status,
    }


def _in_words(answer: RotationAnswer) -> str:
    if answer.is_rotated:
        return f"has another exit{f', {answer.exit_ip}' if answer.exit_ip else ''}"
    why = {
        "refused": f"its link answered {answer.status}",
        "timeout": "its link did not answer in time",
        "unreachable": "its link could not be reached",
        "unreadable": "its link cannot be read: see PHAROX_SECRET_KEY, or save it again",
        "held": "leases held it",
    }[answer.failure.value if answer.failure else "held"]
    return f"has the same exit: {why}"
