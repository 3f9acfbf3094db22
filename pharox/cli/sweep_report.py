"""Print the progress and the result of a sweep, as text or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich.text import Text

from ..history.describing import counted, lasting
from ..models import LEASABLE, ProxyStatus
from ..models.text import escape_unprintable
from .showing import in_utc, print_json, print_table, progress_bar, say

if TYPE_CHECKING:
    from ..health import SweepSummary
    from .sweep_run import Swept

LISTED = 10
"""How many values of a dimension, such as countries, have a row of their own."""

LABEL_WIDTH = 36
"""How much of a label a table has room for, beside its numbers, on 80 columns."""

_ORDER = (ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.INACTIVE, ProxyStatus.BANNED)


def print_swept(swept: Swept, *, dated: bool, as_json: bool) -> None:
    """Print the result of a sweep; with ``dated`` also when it began."""
    if as_json:
        print_json(_attributes(swept))
    elif swept.summary.checked:
        if dated:
            print(f"\n{in_utc(swept.started_at)}")
        for line in _sentences(swept):
            print(line)
        print()
        _print_groups(swept.summary)
        if not any(swept.summary.statuses[status] for status in LEASABLE):
            say("no check succeeded: is the target reachable without a proxy?")
    elif swept.interrupted:
        say("interrupted before any check was recorded")
    else:
        say("no proxy is due to be checked")


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal only; yield the function that advances it by one."""
    with progress_bar("sweep", "checked", total, stays=False) as update:
        yield partial(update, advance=1)


def _sentences(swept: Swept) -> Iterator[str]:
    summary = swept.summary
    begun = "interrupted: " if swept.interrupted else ""
    proxies = counted(summary.checked, "proxy", "proxies")
    found = [f"{summary.statuses[s]} {s.value}" for s in _ORDER if summary.statuses[s]]
    if summary.unknown:
        found.append(f"{summary.unknown} removed meanwhile")
    yield f"{begun}{proxies} checked in {lasting(swept.seconds)}: found {', '.join(found)}"
    leases = counted(summary.dropped_leases, "lease", "leases")
    held = f", with {leases} held on them" if summary.dropped_leases else ""
    yield f"{summary.dropped} dropped out{held}; {summary.recovered} came back"
    if summary.failures:
        reasons = (f"{number} {reason}" for reason, number in summary.failures.most_common())
        yield f"failures: {', '.join(reasons).replace('_', ' ')}"


def _print_groups(summary: SweepSummary) -> None:
    statuses = [s for s in _ORDER if s is not ProxyStatus.BANNED or summary.statuses[s]]
    rows = (
        (dimension, label, *(found[status] for status in statuses))
        for dimension, groups in summary.by.items()
        for label, found in _most(groups)
    )
    print_table(("by", "value", *(status.value for status in statuses)), rows)


def _most(
    groups: dict[str | None, Counter[ProxyStatus]],
) -> Iterator[tuple[str | None, Counter[ProxyStatus]]]:
    """Yield the most frequent groups with their labels, then all others as one group."""
    ranked = sorted(groups.items(), key=lambda group: (-group[1].total(), group[0] or ""))
    for value, found in ranked[:LISTED]:
        yield None if value is None else _label(value), found
    if others := ranked[LISTED:]:
        together = sum((found for _, found in others), Counter[ProxyStatus]())
        yield counted(len(others), "other", "others"), together


def _label(value: str) -> str:
    text = Text(escape_unprintable(value))
    text.truncate(LABEL_WIDTH, overflow="ellipsis")
    return text.plain


def _attributes(swept: Swept) -> dict[str, object]:
    summary = swept.summary
    return {
        "pool": swept.pool,
        "started_at": in_utc(swept.started_at),
        "seconds": round(swept.seconds, 3),
        "interrupted": swept.interrupted,
        "checked": summary.checked,
        "unknown": summary.unknown,
        "statuses": summary.statuses,
        "dropped": summary.dropped,
        "dropped_leases": summary.dropped_leases,
        "recovered": summary.recovered,
        "failures": summary.failures,
        "by": {
            dimension: [{"value": value, **found} for value, found in groups.items()]
            for dimension, groups in summary.by.items()
        },
    }
