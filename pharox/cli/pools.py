"""``pharox pools``: list the pools, register one, change or remove it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConflictError, InvalidInputError, PoolNotFoundError
from ..models import CoolDown, ProxyPool, SelectorStrategy, check_selector
from .checking import checked_cool_down, checked_pool, cool_down_of, duration_of, limit_of
from .describing import counted
from .once import Commands
from .session import ledger
from .showing import AsJson, print_json, print_table, say

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

NO_POOLS = "there are no pools yet; `pharox import SOURCE --pool NAME` creates one"

_COLUMNS = (
    "pool",
    "id",
    "leases slow",
    "rests",
    "held for",
    "cools down",
    "by default",
    "description",
)

_AfterRelease = Annotated[
    float | None,
    typer.Option(
        "--rest-after-release",
        metavar="TIME",
        parser=duration_of,
        help="How long a proxy is not leased after a release of it: 30 (seconds), 5m; 0: none.",
    ),
]
_AfterExpiry = Annotated[
    float | None,
    typer.Option(
        "--rest-after-expiry",
        metavar="TIME",
        parser=duration_of,
        help="The same after a lease ran out or was revoked.",
    ),
]
_MaxHeld = Annotated[
    float | None,
    typer.Option(
        "--max-held",
        metavar="TIME",
        parser=duration_of,
        help="How long renewals may keep a lease since it was acquired: 90s, 1h; 0: any time.",
    ),
]

_CoolDown = Annotated[
    dict[str, Any] | None,
    typer.Option(
        "--cool-down",
        metavar="RULE",
        parser=cool_down_of,
        help=(
            "How a proxy rests for a target that refused it: base=30s,factor=2,max=15m,jitter=0.1,"
            "after=2; what is not named keeps its value."
        ),
    ),
]
_NoCoolDown = Annotated[
    bool, typer.Option("--no-cool-down", help="No proxy rests for a target, whatever it says.")
]
_Selector = Annotated[
    str | None,
    typer.Option(
        metavar="SELECTOR",
        help="Which proxy is leased where no selector is asked for: "
        f"{', '.join(SelectorStrategy)}; '' for pharox's own.",
    ),
]
_LeaseFor = Annotated[
    float | None,
    typer.Option(
        "--lease",
        metavar="TIME",
        parser=duration_of,
        help="How long a lease lasts where no duration is asked for: 60s, 5m; 0: pharox's own.",
    ),
]
_MaxConcurrency = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="How many leases a proxy may have at once that is added without saying it, or "
        "`unlimited`.",
    ),
]

app = Commands(help="List the pools; register, change or remove one.", invoke_without_command=True)


@app.callback()
def pools(context: typer.Context, as_json: AsJson = False) -> None:
    """List the pools; register, change or remove one."""
    if context.invoked_subcommand is None:
        list_pools(context, as_json=as_json)


@app.command("list")
def list_pools(context: typer.Context, as_json: AsJson = False) -> None:
    """List the pools with their settings, as `pharox pools` does; `stats` counts proxies."""
    with ledger(context) as storage:
        known = storage.list_pools()
    if as_json:
        for pool in known:
            print_json(pool)
    elif known:
        rows = (
            (
                p.name,
                p.id,
                "yes" if p.lease_slow else "no",
                _rests(p),
                f"{p.max_held_seconds:g} s" if p.max_held_seconds else "any time",
                _cools(p),
                _defaults(p),
                p.description,
            )
            for p in known
        )
        print_table(_COLUMNS, rows)
    else:
        say(NO_POOLS)


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    description: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its description.")
    ] = None,
    lease_slow: Annotated[
        bool, typer.Option("--lease-slow", help="Lease SLOW proxies too, after all others.")
    ] = False,
    rest_after_release: _AfterRelease = None,
    rest_after_expiry: _AfterExpiry = None,
    max_held: _MaxHeld = None,
    cool_down: _CoolDown = None,
    no_cool_down: _NoCoolDown = False,
    selector: _Selector = None,
    lease: _LeaseFor = None,
    max_concurrency: _MaxConcurrency = None,
) -> None:
    """Register a pool and print its id."""
    pool = checked_pool(
        name=name,
        description=description,
        lease_slow=lease_slow,
        rest_after_release_seconds=rest_after_release or None,
        rest_after_expiry_seconds=rest_after_expiry or None,
        max_held_seconds=max_held or None,
        cool_down=_cool_down(None, cool_down, no_cool_down),
        selector=check_selector(selector) if selector else None,
        lease_seconds=lease or None,
        max_concurrency=limit_of(max_concurrency) if max_concurrency else None,
    )
    with ledger(context) as storage:
        storage.save_pool(pool)
    print(pool.id)


@app.command("set")
def set_pool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    new_name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Rename it.")
    ] = None,
    description: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its new description; '' for none.")
    ] = None,
    lease_slow: Annotated[
        bool | None,
        typer.Option(
            "--lease-slow/--no-lease-slow",
            help="Whether SLOW proxies are leased, after all others.",
        ),
    ] = None,
    rest_after_release: _AfterRelease = None,
    rest_after_expiry: _AfterExpiry = None,
    max_held: _MaxHeld = None,
    cool_down: _CoolDown = None,
    no_cool_down: _NoCoolDown = False,
    selector: _Selector = None,
    lease: _LeaseFor = None,
    max_concurrency: _MaxConcurrency = None,
) -> None:
    """Change a pool: its name, description, rests, bounds and defaults, or if SLOW are leased.

    What is leased already, and proxies that are there, stay as they are.
    """
    given = {"name": new_name, "lease_slow": lease_slow}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    durations = {
        "rest_after_release_seconds": rest_after_release,
        "rest_after_expiry_seconds": rest_after_expiry,
        "max_held_seconds": max_held,
        "lease_seconds": lease,
    }
    for field, seconds in durations.items():
        if seconds is not None:
            changes[field] = seconds or None
    if selector is not None:
        changes["selector"] = check_selector(selector) if selector else None
    if max_concurrency is not None:
        changes["max_concurrency"] = limit_of(max_concurrency)
    if description is not None:
        changes["description"] = description or None
    if not (changes or cool_down or no_cool_down):
        raise InvalidInputError("say what to change; see `pharox pools set --help`")
    with ledger(context) as storage:
        pool = named(storage, name)
        changes["cool_down"] = _cool_down(pool.cool_down, cool_down, no_cool_down)
        storage.save_pool(checked_pool(**{**pool.model_dump(), **changes}))
    print(pool.id)


@app.command("remove")
def remove_pool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Remove its proxies too, and end their leases.")
    ] = False,
) -> None:
    """Remove a pool. The log keeps what happened in it."""
    with ledger(context) as storage:
        pool = named(storage, name)
        stats = storage.get_pool_stats(name)
        if stats is not None and stats.total_proxies and not force:
            proxies = counted(stats.total_proxies, "proxy", "proxies")
            leases = counted(stats.total_leases, "active lease", "active leases")
            raise ConflictError(
                f"pool {name!r} has {proxies} and {leases}: nothing was removed. --force removes "
                "the proxies and ends the leases",
                pool_id=pool.id,
            )
        storage.delete_pool(str(pool.id))
    print(pool.id)


def _rests(pool: ProxyPool) -> str:
    """Return how long the proxies of a pool rest after a release and after an expiry."""
    release, expiry = pool.rest_after_release_seconds, pool.rest_after_expiry_seconds
    return f"{release or 0:g} s, {expiry or 0:g} s" if release or expiry else "no"


def _cool_down(
    known: CoolDown | None, changes: dict[str, Any] | None, no_cool_down: bool
) -> CoolDown | None:
    """Return the rule of a pool after the options; None is the default rule."""
    if changes and no_cool_down:
        raise InvalidInputError("give either --cool-down or --no-cool-down")
    if no_cool_down:
        return (known or CoolDown()).model_copy(update={"base_seconds": 0.0})
    return known if changes is None else checked_cool_down(known or CoolDown(), changes)


def _cools(pool: ProxyPool) -> str:
    """Return how the proxies of a pool rest for a target, as --cool-down takes it."""
    rule = pool.cool_down or CoolDown()
    if rule.base_seconds == 0:
        return "no"
    return (
        f"base={rule.base_seconds:g},factor={rule.factor:g},max={rule.max_seconds:g},"
        f"jitter={rule.jitter:g},after={rule.after}"
    )


def _defaults(pool: ProxyPool) -> str | None:
    """Return what a pool gives who does not say it, or None if it is pharox's own."""
    limit = pool.max_concurrency
    parts = (
        pool.selector,
        f"{pool.lease_seconds:g} s" if pool.lease_seconds else None,
        counted(limit, "lease at once", "leases at once") if limit else None,
    )
    return ", ".join(filter(None, parts)) or None


def named(storage: PostgresStorage, name: str) -> ProxyPool:
    """Return the pool with this name; raises :class:`PoolNotFoundError`."""
    pool = storage.get_pool_by_name(name)
    if pool is None:
        raise PoolNotFoundError(f"no pool is named {name!r}", name=name)
    return pool
