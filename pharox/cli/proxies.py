"""``pharox proxies``: list a pool's proxies, change some, drain or remove them.

All named proxies are looked up before any is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr

from ..errors import ConflictError, InvalidInputError, ProxyNotFoundError
from ..history.describing import counted, shown_status
from ..models import Proxy, ProxyStatus
from .banning import Names, Reason, print_proxy, proxies_named
from .bulk import rare_collections
from .checking import CostPerGb, CostPerLease, Weight, checked_credentials, limit_of, prices_of
from .narrowing import Wide
from .once import Commands, OnceGroup
from .output import Format, Output, print_rows
from .pools import named
from .proxy_table import in_use, print_listed
from .session import ledger
from .showing import AsJson, print_table

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

Force = Annotated[
    bool, typer.Option("--force", help="Remove leased proxies too, and end their leases.")
]
Text = Annotated[str | None, typer.Option(metavar="TEXT", help="Its new value; '' for none.")]


class Shared(StrEnum):
    """What several proxies may share."""

    EXIT_IP = "exit_ip"


class _ListByDefault(OnceGroup):
    """A group that runs its command ``list`` if the first word is not a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert ``list`` before a word that is not a command."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = Commands(
    cls=_ListByDefault,
    help="List a pool's proxies, change some, drain or remove them.",
    no_args_is_help=True,
)


@app.command("list")
def list_proxies(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The pool's name.")],
    *,
    resting: Annotated[
        bool, typer.Option("--resting", help="Only those that rest or are banned.")
    ] = False,
    duplicates: Annotated[
        Shared | None,
        typer.Option(help="List the groups of proxies that share this instead."),
    ] = None,
    wide: Wide = False,
    output: Output = Format.TABLE,
) -> None:
    """List a pool's proxies with who holds them and their last checks, without credentials.

    Columns in which none of the first thousand proxies has a value are left out.
    """
    with rare_collections(), ledger(context) as storage:
        known = named(storage, pool)
        listed = storage.iter_proxies(known.id, with_credentials=False)
        if resting:
            listed = (proxy for proxy in listed if _is_resting(proxy))
        if duplicates is not None:
            _list_duplicates(listed, output)
        else:
            print_listed(output, in_use(storage, known.name, listed), wide=wide)


def _is_resting(proxy: Proxy) -> bool:
    return proxy.rests_until is not None or proxy.status is ProxyStatus.BANNED


def _list_duplicates(listed: Iterator[Proxy], output: Format) -> None:
    """Print the groups of proxies that share an exit, ordered by their addresses."""
    groups: dict[str, list[Proxy]] = {}
    for proxy in listed:
        if proxy.exit_ip is not None:
            groups.setdefault(proxy.exit_ip, []).append(proxy)
    shared = [(ip, group) for ip, group in sorted(groups.items()) if len(group) > 1]
    if output is not Format.TABLE:
        groups_of = (
            {"exit_ip": ip, "proxies": [{"id": str(p.id), "url": p.url} for p in group]}
            for ip, group in shared
        )
        print_rows(output, groups_of, (), lambda _: (), fields=("exit_ip", "proxies"))
        return
    print_table(
        ("exit", "id", "url", "status", "source"),
        (
            (
                exit_ip,
                proxy.id,
                proxy.url,
                shown_status(proxy.status, drains=proxy.draining),
                proxy.source,
            )
            for exit_ip, group in shared
            for proxy in group
        ),
    )


@app.command("set")
def set_proxies(
    context: typer.Context,
    names: Names,
    *,
    status: Annotated[ProxyStatus | None, typer.Option(help="Its new status.")] = None,
    max_concurrency: Annotated[
        str | None,
        typer.Option(metavar="N", help="How many leases it may have at once, or `unlimited`."),
    ] = None,
    source: Text = None,
    country: Text = None,
    city: Text = None,
    isp: Text = None,
    cost_per_gb: CostPerGb = None,
    cost_per_lease: CostPerLease = None,
    weight: Weight = None,
    user: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Its new user; the password stays. '' removes the credentials."
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file with its new password in the first line; - for standard input. Other "
            "users could see an argument.",
        ),
    ] = None,
    rotate_url_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file with the link that gives it another exit in the first line, which is "
            "empty for none; - for standard input.",
        ),
    ] = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Change the status, limit of leases, description, prices, weight or credentials of proxies."""
    described = {"source": source, "country": country, "city": city, "isp": isp}
    changes: dict[str, Any] = {
        name: value or None for name, value in described.items() if value is not None
    }
    if max_concurrency is not None:
        changes["max_concurrency"] = limit_of(max_concurrency)
    changes |= prices_of(cost_per_gb, cost_per_lease)
    changes |= {} if weight is None else {"weight": weight}
    changes |= _credentials(user, password_file)
    if rotate_url_file is not None:
        changes["rotate_url"] = SecretStr(_first_line(rotate_url_file, "link").strip())
    if reason is not None and status is None:
        raise InvalidInputError("--reason needs --status")
    if not changes and status is None:
        raise InvalidInputError("say what to change; see `pharox proxies set --help`")
    with ledger(context) as storage:
        found = proxies_named(storage, names)
        for proxy in found:
            if changes:
                _change(storage, proxy, changes)
            if status is not None:
                storage.set_status(proxy.id, status, reason=reason)
            print_proxy(_known(storage, proxy), "is changed", as_json)


@app.command("remove")
def remove_proxies(
    context: typer.Context, names: Names, *, force: Force = False, as_json: AsJson = False
) -> None:
    """Remove proxies from their pools. The log keeps what happened to them."""
    with ledger(context) as storage:
        storage.cleanup_expired_leases()
        found = proxies_named(storage, names)
        if not force:
            _check_idle([proxy for proxy in found if proxy.current_leases], "nothing was removed")
        for proxy in found:
            if force:
                storage.delete_proxy(str(proxy.id))
            elif not storage.remove_idle(proxy.pool_id, [proxy.id]):  # It was leased in between.
                _check_idle([proxy], "it was not removed")
            print_proxy(proxy, "is removed", as_json)


@app.command("drain")
def drain_proxies(
    context: typer.Context, names: Names, *, reason: Reason = None, as_json: AsJson = False
) -> None:
    """Lease proxies no more, and remove each when its last lease ends; undo it with `unban`."""
    with ledger(context) as storage:
        storage.cleanup_expired_leases()
        for found in proxies_named(storage, names):
            proxy = storage.drain_proxy(found.id, reason=reason)
            if proxy is None:
                print_proxy(found, "is removed", as_json)
                continue
            leases = counted(proxy.current_leases, "lease ends", "leases end")
            print_proxy(proxy, f"is removed when {leases}", as_json)


def _check_idle(held: Sequence[Proxy], outcome: str) -> None:
    if held:
        which = ", ".join(str(proxy.id) for proxy in held)
        raise ConflictError(
            f"{counted(len(held), 'proxy is', 'proxies are')} leased: {which}; {outcome}. --force "
            "ends the leases too",
            proxy_ids=tuple(proxy.id for proxy in held),
        )


def _credentials(user: str | None, password_file: Path | None) -> dict[str, Any]:
    """Return the credentials to set, if any are given."""
    if user == "" and password_file is None:
        return {"credentials": None}
    if password_file is None and user is None:
        return {}
    if user is None:
        raise InvalidInputError("--password-file needs --user")
    if password_file is None:
        return {"user": user}  # the password stays
    password = _first_line(password_file)
    return {"credentials": checked_credentials(user=user, password=password)}


def _first_line(path: Path, what: str = "password") -> str:
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            return file.readline().decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidInputError(f"the {what} cannot be read from {path}: {why}") from error


def _change(storage: PostgresStorage, proxy: Proxy, changes: dict[str, Any]) -> None:
    """Change a proxy; read its credentials only if they are kept."""
    stays = "credentials" not in changes
    current = _known(storage, proxy, with_credentials=stays)
    own = {name: value for name, value in changes.items() if name != "user"}
    if not stays or "user" in changes:
        own["template"] = None  # The new credentials say whether it is one.
    if "user" in changes:
        password = current.credentials.password if current.credentials else ""
        own["credentials"] = checked_credentials(user=changes["user"], password=password)
    storage.change_proxy(current.model_copy(update=own))


def _known(storage: PostgresStorage, proxy: Proxy, *, with_credentials: bool = False) -> Proxy:
    read = storage.get_proxy_by_id if with_credentials else storage.get_bare_proxy
    known = read(proxy.id)
    if known is None:
        raise ProxyNotFoundError(f"Proxy {proxy.id} not found.", proxy_id=proxy.id)
    return known
