"""``pharox pools``: list the pools, register one, change or remove it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConflictError, InvalidInputError, PoolNotFoundError
from ..history.describing import counted
from ..models import (
    CoolDown,
    PoolLimits,
    Proxy,
    ProxyPool,
    RotationPolicy,
    SelectorStrategy,
    check_selector,
)
from ..models.budgets import shown_budgets
from .checking import (
    CostPerGb,
    CostPerLease,
    budgets_of,
    checked_cool_down,
    checked_limits,
    checked_pool,
    checked_rotation,
    cool_down_of,
    duration_of,
    limit_of,
    pace_of,
    prices_of,
    rotation_of,
)
from .once import Commands
from .output import Format, Output, print_rows
from .session import ledger

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
    "rotates",
    "bounds",
    "by default",
    "costs",
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


class Counted(StrEnum):
    """Whether failures that holders report are counted."""

    yes = "yes"
    no = "no"
    default = "default"

    @property
    def value_of_pool(self) -> bool | None:
        """What a pool has for it."""
        return None if self is Counted.default else self is Counted.yes


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
_Rotate = Annotated[
    dict[str, Any] | None,
    typer.Option(
        "--rotate",
        metavar="RULE",
        parser=rotation_of,
        help=(
            "When a proxy with a rotate_url takes another exit, after each lease (release) or when "
            "a target refused it (blocked): on=release,within=60s,every=4m,settle=10s; what is not "
            "named keeps its value."
        ),
    ),
]
_NoRotate = Annotated[
    bool, typer.Option("--no-rotate", help="A proxy takes another exit only if it is asked for.")
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

_PerConsumer = Annotated[
    int | None,
    typer.Option(
        "--leases-per-consumer",
        metavar="N",
        min=0,
        help="How many leases a consumer may hold at once; 0: any number.",
    ),
]
_PerTarget = Annotated[
    int | None,
    typer.Option(
        "--leases-per-target",
        metavar="N",
        min=0,
        help="How many leases there may be at once for one target; 0: any number.",
    ),
]
_Paces = Annotated[
    list[str] | None,
    typer.Option(
        "--pace",
        metavar="WHOSE:N/TIME",
        help="How many leases of a proxy, a pair of proxy and target, or a consumer may begin in "
        "any such time: proxy:5/60s, pair:1/10s, consumer:100/1h. Several may be given; they "
        "replace those before. '' for none.",
    ),
]
_Budget = Annotated[
    dict[str, Any] | None,
    typer.Option(
        metavar="BUDGETS",
        parser=budgets_of,
        help=(
            "What may be used in a day of UTC, of the pool and by each consumer: money=25,"
            "bytes=10GB,consumer-money=2.5,consumer-bytes=1GB; what is not named stays, 0 is none."
        ),
    ),
]
_ReportedFailures = Annotated[
    Counted | None,
    typer.Option(
        help="Whether a proxy that holders report as failed has failed a health check, too; by "
        "default each worker's manager says it.",
    ),
]

app = Commands(help="List the pools; register, change or remove one.", invoke_without_command=True)


@app.callback()
def pools(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the pools; register, change or remove one."""
    if context.invoked_subcommand is None:
        list_pools(context, output)


@app.command("list")
def list_pools(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the pools with their settings, as `pharox pools` does; `stats` counts proxies."""
    with ledger(context) as storage:
        known = storage.list_pools()
    print_rows(output, known, _COLUMNS, _row, fields=ProxyPool, empty=NO_POOLS)


def _row(pool: ProxyPool) -> tuple[object, ...]:
    held = pool.max_held_seconds
    return (
        pool.name,
        pool.id,
        "yes" if pool.lease_slow else "no",
        _rests(pool),
        f"{held:.15g} s" if held else "any time",
        _cools(pool),
        _rotates(pool),
        _bounds(pool),
        _defaults(pool),
        costs(pool),
        pool.description,
    )


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
    rotate: _Rotate = None,
    no_rotate: _NoRotate = False,
    selector: _Selector = None,
    lease: _LeaseFor = None,
    max_concurrency: _MaxConcurrency = None,
    leases_per_consumer: _PerConsumer = None,
    leases_per_target: _PerTarget = None,
    pace: _Paces = None,
    cost_per_gb: CostPerGb = None,
    cost_per_lease: CostPerLease = None,
    budget: _Budget = None,
    reported_failures: _ReportedFailures = None,
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
        rotation=_rotation(None, rotate, no_rotate),
        selector=check_selector(selector) if selector else None,
        lease_seconds=lease or None,
        max_concurrency=limit_of(max_concurrency) if max_concurrency else None,
        limits=_limits(None, leases_per_consumer, leases_per_target, pace, budget),
        reported_failures=reported_failures and reported_failures.value_of_pool,
        **prices_of(cost_per_gb, cost_per_lease),
    )
    with ledger(context) as storage:
        storage.save_pool(pool)
    print(pool.id)


@app.command("set")
def set_pool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="POOL")],
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
    rotate: _Rotate = None,
    no_rotate: _NoRotate = False,
    selector: _Selector = None,
    lease: _LeaseFor = None,
    max_concurrency: _MaxConcurrency = None,
    leases_per_consumer: _PerConsumer = None,
    leases_per_target: _PerTarget = None,
    pace: _Paces = None,
    cost_per_gb: CostPerGb = None,
    cost_per_lease: CostPerLease = None,
    budget: _Budget = None,
    reported_failures: _ReportedFailures = None,
) -> None:
    """Change a pool: its name, description, rests, bounds, defaults, prices, budgets, or if SLOW.

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
    changes |= prices_of(cost_per_gb, cost_per_lease)
    if reported_failures is not None:
        changes["reported_failures"] = reported_failures.value_of_pool
    if description is not None:
        changes["description"] = description or None
    bounds = (leases_per_consumer, leases_per_target, pace, budget)
    rules = (cool_down, no_cool_down, rotate, no_rotate)
    if not (changes or any(rules) or bounds != (None,) * len(bounds)):
        raise InvalidInputError("say what to change; see `pharox pools set --help`")
    with ledger(context) as storage:
        pool = named(storage, name)
        changes["cool_down"] = _cool_down(pool.cool_down, cool_down, no_cool_down)
        changes["rotation"] = _rotation(pool.rotation, rotate, no_rotate)
        changes["limits"] = _limits(pool.limits, *bounds)
        storage.save_pool(checked_pool(**{**pool.model_dump(), **changes}))
    print(pool.id)


@app.command("remove")
def remove_pool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="POOL")],
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


def _rotation(
    known: RotationPolicy | None, changes: dict[str, Any] | None, no_rotate: bool
) -> RotationPolicy | None:
    """Return the rule of a pool for rotations after the options; None is none."""
    if changes and no_rotate:
        raise InvalidInputError("give either --rotate or --no-rotate")
    if no_rotate:
        return None
    return checked_rotation(known, changes) if changes else known


def _rotates(pool: ProxyPool) -> str | None:
    """Return when the proxies of a pool take another exit, as --rotate takes it."""
    rule = pool.rotation
    if rule is None:
        return None
    times = (
        f"{name}={seconds:g}s"
        for name, seconds in (
            ("within", rule.within_seconds),
            ("every", rule.every_seconds),
            ("settle", rule.settle_seconds),
        )
        if seconds
    )
    return ",".join((f"on={rule.on}", *times))


def _cools(pool: ProxyPool) -> str:
    """Return how the proxies of a pool rest for a target, as --cool-down takes it."""
    rule = pool.cool_down or CoolDown()
    if rule.base_seconds == 0:
        return "no"
    return (
        f"base={rule.base_seconds:g},factor={rule.factor:g},max={rule.max_seconds:g},"
        f"jitter={rule.jitter:g},after={rule.after}"
    )


_COUNTING = {
    None: None,
    True: "reported failures count",
    False: "reported failures do not count",
}


def _limits(
    known: PoolLimits | None,
    per_consumer: int | None,
    per_target: int | None,
    paces: list[str] | None,
    budgets: dict[str, Any] | None,
) -> PoolLimits | None:
    """Return the limits of a pool after the options."""
    numbers = {"leases_per_consumer": per_consumer, "leases_per_target": per_target}
    changes: dict[str, Any] = {
        name: number or None for name, number in numbers.items() if number is not None
    }
    if paces:
        changes["paces"] = tuple(pace_of(text) for text in paces if text)
    changes |= budgets or {}
    return checked_limits(known, changes) if changes else known


def _bounds(pool: ProxyPool) -> str | None:
    """Return the limits of a pool, paces and budgets as options take them, or None without any."""
    limits = pool.limits or PoolLimits()
    per_consumer, per_target = limits.leases_per_consumer, limits.leases_per_target
    parts = (
        f"{per_consumer} a consumer" if per_consumer else None,
        f"{per_target} a target" if per_target else None,
        *(f"{pace.per}:{pace.starts}/{pace.seconds:g}s" for pace in limits.paces),
        shown_budgets(limits),
    )
    return ", ".join(filter(None, parts)) or None


def _defaults(pool: ProxyPool) -> str | None:
    """Return what a pool gives who does not say it, or None if it is pharox's own."""
    limit = pool.max_concurrency
    parts = (
        pool.selector,
        f"{pool.lease_seconds:g} s" if pool.lease_seconds else None,
        counted(limit, "lease at once", "leases at once") if limit else None,
        _COUNTING[pool.reported_failures],
    )
    return ", ".join(filter(None, parts)) or None


def costs(priced: ProxyPool | Proxy) -> str | None:
    """Return the prices of a pool or a proxy, None if it has none."""
    parts = (
        f"{price:f} a {unit}" if price is not None else None
        for price, unit in ((priced.cost_per_gb, "GB"), (priced.cost_per_lease, "lease"))
    )
    return ", ".join(filter(None, parts)) or None


def named(storage: PostgresStorage, name: str) -> ProxyPool:
    """Return the pool with this name; raises :class:`PoolNotFoundError`."""
    pool = storage.get_pool_by_name(name)
    if pool is None:
        raise PoolNotFoundError(f"no pool is named {name!r}", name=name)
    return pool
