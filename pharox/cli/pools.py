"""``pharox pools`` and ``pharox proxies``: what there is to lease."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import PoolNotFoundError
from .checking import checked_pool
from .once import Commands
from .session import ledger
from .showing import AsJson, print_json, print_table, say

NO_POOLS = "there are no pools yet; `pharox import SOURCE --pool NAME` makes one"

app = Commands(help="List the pools, or register one.", invoke_without_command=True)


@app.callback()
def pools(context: typer.Context, as_json: AsJson = False) -> None:
    """List the pools, or register one."""
    if context.invoked_subcommand is not None:
        return
    with ledger(context) as storage:
        known = storage.list_pools()
    if as_json:
        for pool in known:
            print_json(pool)
    elif known:
        rows = ((p.name, p.id, "yes" if p.lease_slow else "no", p.description) for p in known)
        print_table(("pool", "id", "leases slow", "description"), rows)
    else:
        say(NO_POOLS)


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is for.")] = None,
    lease_slow: Annotated[
        bool, typer.Option("--lease-slow", help="Lease SLOW proxies too, after all others.")
    ] = False,
) -> None:
    """Register a pool and print its id."""
    pool = checked_pool(name=name, description=description, lease_slow=lease_slow)
    with ledger(context) as storage:
        storage.save_pool(pool)
    print(pool.id)


def proxies(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The pool's name.")],
    as_json: AsJson = False,
) -> None:
    """List a pool's proxies, without their credentials."""
    with ledger(context) as storage:
        known = storage.get_pool_by_name(pool)
        if known is None:
            raise PoolNotFoundError(f"no pool is named {pool!r}", name=pool)
        listed = storage.iter_proxies(known.id, with_credentials=False)
        if as_json:
            for proxy in listed:
                print_json(proxy.model_dump(mode="json", exclude={"credentials"}))
            return
        print_table(
            ("id", "url", "status", "leases", "limit", "country", "city", "asn", "isp", "source"),
            (
                (
                    proxy.id,
                    proxy.url,
                    proxy.status,
                    proxy.current_leases,
                    proxy.max_concurrency,
                    proxy.country,
                    proxy.city,
                    proxy.asn,
                    proxy.isp,
                    proxy.source,
                )
                for proxy in listed
            ),
        )
