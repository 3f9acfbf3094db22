"""``pharox targets`` and ``pharox cooldown``: how proxies fare at targets, and rests by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError, PharoxError
from ..history.describing import counted, lasting, rules_in_words
from ..models import TargetOutcomes, TargetRules, TargetSummary, rule_target_of, rules_for
from ..models.text import escape_unprintable, url_of
from .banning import Reason, proxies_named
from .checking import checked_rules, duration_of, statuses_of
from .once import Commands
from .output import Format, Output, print_rows
from .pools import named
from .session import ledger
from .showing import PAGE, AsJson, in_utc, print_json, say

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

_Row = tuple[object, ...]

_TARGETS = (
    "target",
    "pool",
    "proxies",
    "resting",
    "blocked",
    "unclear",
    "succeeded",
    "last refusal",
    "next back",
    "rules",
)
_NOTHING = "there is nothing to show: `pharox targets` lists what holders of leases report"
_PAIRS = ("proxy", "target", "pool", "last", "reported", "in a row", "succeeded", "rests for")

_Host = Annotated[
    str,
    typer.Argument(
        metavar="HOST", help="A host, or a URL with one; *.HOST for all hosts below it."
    ),
]
_Target = Annotated[
    str | None,
    typer.Option("--target", metavar="HOST", help="Only this target: a host, or a URL with one."),
]


_STATUSES = {
    "ok_statuses": "ok",
    "blocked_statuses": "blocked",
    "target_failed_statuses": "target_failed",
}
"""The fields of rules that have statuses, and the kind that these are."""

app = Commands()


@app.callback(invoke_without_command=True)
def targets(
    context: typer.Context,
    *,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Only proxies of this pool.")
    ] = None,
    target: _Target = None,
    proxy: Annotated[
        str | None,
        typer.Option(metavar="PROXY", help="Only this proxy: its id, host:port or URL."),
    ] = None,
    cooling: Annotated[
        bool, typer.Option("--cooling", help="Only proxies that rest for a target now, one by one.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """List the targets that outcomes were reported of, and how many proxies rest for each.

    With --target, --proxy or --cooling it lists proxies, each with its last outcome there.
    """
    if context.invoked_subcommand is not None:
        return
    with ledger(context) as storage:
        if pool is not None:
            named(storage, pool)
        if target is None and proxy is None and not cooling:
            rules = {known.rules.target: known.rules for known in storage.list_target_rules()}
            row = partial(_target_row, rules)
            summaries = _summaries(storage, pool)
            print_rows(output, summaries, _TARGETS, row, fields=TargetSummary, empty=_NOTHING)
            return
        chosen: dict[str, Any] = {"target": target, "cooling": cooling}
        if proxy is not None:
            chosen["proxy_id"] = proxies_named(storage, [proxy])[0].id
        pairs = _pairs(storage, pool, chosen)
        print_rows(output, pairs, _PAIRS, _pair_row, fields=TargetOutcomes, empty=_NOTHING)


@app.command("set")
def set_rules(
    context: typer.Context,
    target: _Host,
    *,
    ok_status: Annotated[
        str | None, typer.Option(metavar="STATUSES", help="Statuses that are a success.")
    ] = None,
    blocked_status: Annotated[
        str | None,
        typer.Option(metavar="STATUSES", help="Statuses that are a refusal, such as 403,429."),
    ] = None,
    target_failed_status: Annotated[
        str | None,
        typer.Option(metavar="STATUSES", help="Statuses with which the target itself fails."),
    ] = None,
    blocked_if_body: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="What in the first 64 KiB of a body is a refusal, whatever its case.",
        ),
    ] = None,
) -> None:
    """Say for the whole fleet what answers of a target mean.

    What is not named stays; '' is none. All workers go by it within 40 seconds.
    """
    statuses = {
        "ok_statuses": ok_status,
        "blocked_statuses": blocked_status,
        "target_failed_statuses": target_failed_status,
    }
    changes: dict[str, Any] = {
        name: statuses_of(text) for name, text in statuses.items() if text is not None
    }
    if blocked_if_body is not None:
        changes["blocked_if_body"] = blocked_if_body or None
    if not changes:
        raise InvalidInputError("say what to set; see `pharox targets set --help`")
    host = rule_target_of(target)
    with ledger(context) as storage:
        known = {each.rules.target: each.rules for each in storage.list_target_rules()}
        before = known[host].model_dump() if host in known else {"target": host}
        _check_stored(before, changes)
        rules = checked_rules(**{**before, **changes})
        storage.set_target_rules(rules)
    say(f"rules for {rules.target}: {rules_in_words(rules.facts)}")


@app.command("unset")
def unset_rules(context: typer.Context, target: _Host) -> None:
    """Have the default rules hold for a target again; fail if it has no others."""
    with ledger(context) as storage:
        if not storage.unset_target_rules(target):
            raise PharoxError(f"{rule_target_of(target)} has no rules of its own")
    say(f"the default rules hold for {rule_target_of(target)} again")


@app.command("rules")
def list_rules(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the targets that have rules of their own."""
    with ledger(context) as storage:
        listed = storage.list_target_rules()
    print_rows(
        output,
        listed,
        ("target", "rules", "set"),
        lambda known: (
            known.rules.target,
            rules_in_words(known.rules.facts),
            in_utc(known.set_at),
        ),
        fields=(*TargetRules.model_fields, "set_at"),
        attributes=lambda known: {
            **known.rules.model_dump(mode="json"),
            "set_at": known.set_at.isoformat(),
        },
        empty="no target has rules of its own: `pharox targets set HOST` says what answers mean",
    )


def cooldown(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="PROXY", help="The proxy's id, host:port or URL.")],
    *,
    target: Annotated[
        str, typer.Option(metavar="HOST", help="For which target: a host, or a URL with one.")
    ],
    duration: Annotated[
        float | None,
        typer.Option("--for", metavar="TIME", parser=duration_of, help="How long: 90s, 30m, 2h."),
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End its rest now.")] = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Have a proxy rest for one target, or end that; for others it is leased as before."""
    from ..storage.reports import CoolDownRequest  # noqa: PLC0415 - it takes a while to import

    if end == (duration is not None):
        raise InvalidInputError("give either --for TIME or --end")
    with ledger(context) as storage:
        (proxy,) = proxies_named(storage, [name])
        request = CoolDownRequest(proxy.id, target, duration, reason)
        until = storage.set_cool_down(request)
    if as_json:
        print_json(
            {
                "proxy_id": str(proxy.id),
                "target": request.target,
                "cools_until": until and until.isoformat(),
            }
        )
        return
    address = f"{url_of(proxy.protocol, proxy.host, proxy.port)} ({proxy.id})"
    rests = "does not rest" if until is None else "rests"
    when = "" if until is None else f" until {in_utc(until)}"
    print(escape_unprintable(f"{address} {rests} for {request.target}{when}"))


def _check_stored(before: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raise :class:`InvalidInputError` if a status is of another kind by the rules that stay."""
    for field in _STATUSES.keys() & before.keys() - changes.keys():
        given = {status for name in _STATUSES for status in changes.get(name, ())}
        if twice := sorted(given.intersection(before[field])):
            raise InvalidInputError(
                f"the rules of {before['target']} that are there already have "
                f"{', '.join(map(str, twice))} as {_STATUSES[field]}, and `set` adds to them: "
                f"give --{_STATUSES[field].replace('_', '-')}-status without it, too"
            )


def _summaries(storage: PostgresStorage, pool: str | None) -> Iterator[TargetSummary]:
    """Yield targets, page by page."""
    last, is_full = None, True
    while is_full:
        page = storage.summarize_targets(pool, after=last, limit=PAGE)
        yield from page
        is_full = len(page) == PAGE
        last = page[-1] if page else None


def _pairs(
    storage: PostgresStorage, pool: str | None, chosen: dict[str, Any]
) -> Iterator[TargetOutcomes]:
    """Yield pairs, page by page."""
    last, is_full = None, True
    while is_full:
        page = storage.list_target_outcomes(pool, **chosen, after=last, limit=PAGE)
        yield from page
        is_full = len(page) == PAGE
        last = page[-1] if page else None


def _target_row(rules: Mapping[str, TargetRules], target: TargetSummary) -> _Row:
    own = rules_for(rules, target.target)
    return (
        target.target,
        target.pool_name,
        target.pairs,
        target.cooling,
        target.blocked,
        target.unclear,
        _percent(target.success_share),
        target.refused_at and in_utc(target.refused_at),
        target.free_at and in_utc(target.free_at),
        own and rules_in_words(own.facts),
    )


def _pair_row(pair: TargetOutcomes) -> _Row:
    status = f" ({pair.status})" if pair.status else ""
    return (
        pair.address or f"{pair.proxy_id} (removed)",
        pair.target,
        pair.pool_name,
        pair.outcome and f"{pair.outcome.value}{status}",
        pair.reported_at and in_utc(pair.reported_at),
        _streak(pair.streak),
        _percent(pair.success_share),
        pair.remaining_seconds and lasting(pair.remaining_seconds),
    )


def _streak(streak: int) -> str | None:
    if not streak:
        return None
    if streak > 0:
        return counted(streak, "success", "successes")
    return f"{-streak} refused or unclear"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
