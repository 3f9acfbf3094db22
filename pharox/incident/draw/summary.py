"""Summarize a pool's window in sentences, shown first on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

from ...models import LeaseStatus
from ..gather.shapes import PoolPicture
from ..gather.window import Window
from ..wording import REASONS, count, span
from .cause import bans, causes, missed_by

LISTED = 5
"""How many targets are named that refused proxies, and how many proxies of each."""


def sentences(pool: PoolPicture, window: Window, miss_slot_s: float) -> Iterator[str]:
    """Yield the notable findings about a pool, the worst first."""
    yield from _misses(pool, window)
    if pool.misses:
        yield _most_misses(pool, window, miss_slot_s)
    if pool.exists:
        yield from causes(pool, window, miss_slot_s)
        yield from bans(pool, window)
    yield from missed_by(pool)
    if pool.exists:
        yield from _availability(pool, window)
        yield from _endings(pool, window)
        yield from _sources(pool, window)
        yield from _refusals(pool, window)
        yield from _changes(pool)


def time_without(pool: PoolPicture, window: Window) -> timedelta:
    """Return how long a pool that had proxies had none available."""
    closed = [*pool.points, pool.points[-1]._replace(at=window.end)]
    dry = (b.at - a.at for a, b in pairwise(closed) if a.total and not a.available)
    return sum(dry, timedelta())


def _misses(pool: PoolPicture, window: Window) -> Iterator[str]:
    reasons = pool.miss_reasons
    if not (pool.first_miss and pool.last_miss):
        yield "No acquisition missed."
        return
    first, last = (
        window.format_moment(at, roughly=True) for at in (pool.first_miss, pool.last_miss)
    )
    when = f"at {first}" if first == last else f"between {first} and {last}"
    why = "; ".join(
        REASONS[reason] + (f" ({number:,})" if len(reasons) > 1 else "")
        for reason, number in reasons.most_common()
    )
    yield f"{count(reasons.total(), 'acquisition')} found nothing {when}: {why}."


def _most_misses(pool: PoolPicture, window: Window, slot_s: float) -> str:
    """Say which consumer missed most and, if there are several time slots, in which one."""
    total = pool.miss_reasons.total()
    consumer, most = pool.miss_consumers.most_common(1)[0]
    those = f"{most:,} of them by" if most < total else "All by" if total > 1 else "By"
    if len(pool.misses) == 1:
        return f"{those} {consumer}."
    worst = max(pool.misses.values(), key=lambda slot: slot.reasons.total())
    begins = window.format_moment(worst.begins, roughly=slot_s >= 1)
    where = f"{worst.reasons.total():,} in the {span(slot_s)} from {begins}"
    return f"{those} {consumer}; at the worst, {where}."


def _availability(pool: PoolPicture, window: Window) -> Iterator[str]:
    filled = [point for point in pool.points if point.total]
    if not filled:
        yield "The pool had no proxy."
        return
    dry = time_without(pool, window)
    if dry:
        first = next(point for point in filled if not point.available)
        since = (
            "from the start"
            if first.at <= window.start
            else f"first at {window.format_moment(first.at, roughly=True)}"
        )
        yield f"No proxy was available for {span(dry)} in all, {since}."
    else:
        worst = min(filled, key=lambda point: (point.available / point.total, -point.total))
        yield (
            f"At the worst, {worst.available:,} of {count(worst.total, 'proxy', 'proxies')} "
            f"{'was' if worst.available == 1 else 'were'} available"
            + (
                f", at {window.format_moment(worst.at, roughly=True)}."
                if worst.at > window.start
                else ", at the start."
            )
        )


def _endings(pool: PoolPicture, window: Window) -> Iterator[str]:
    bars = list(pool.bars)
    expired = Counter(bar.consumer for bar in bars if bar.ending is LeaseStatus.EXPIRED)
    before = sum(bar.began < window.start for bar in bars)
    began = f", {before:,} of which began before the window" if before else ""
    yield f"{count(len(bars), 'lease')} in all{began}."
    if expired:
        consumer, most = expired.most_common(1)[0]
        share = "all" if most == expired.total() else f"{most:,} of them"
        whose = f", {share} held by {consumer}" if 2 * most >= expired.total() else ""
        yield f"{count(expired.total(), 'lease')} ran out instead of being released{whose}."
    if revoked := sum(bar.ending is LeaseStatus.REVOKED for bar in bars):
        yield f"{count(revoked, 'lease')} {'was' if revoked == 1 else 'were'} revoked."


def _sources(pool: PoolPicture, window: Window) -> Iterator[str]:
    """Yield which sources took proxies away or failed: those that took most come first."""
    worst = sorted(pool.sources.items(), key=lambda each: (-each[1].went, -each[1].failed))
    for source, news in worst[:LISTED]:
        if news.took_at is not None:
            when = window.format_moment(news.took_at, roughly=True)
            yield (
                f"Source {source} no longer listed {news.went:,} of "
                f"{count(news.had, 'proxy', 'proxies')} at {when}."
            )
        if news.failed_at is not None:
            since = window.format_moment(news.failed_at, roughly=True)
            yield f"Source {source} failed from {since} on, and changed nothing: {news.reason}."


def _refusals(pool: PoolPicture, window: Window) -> Iterator[str]:
    """Yield which targets refused which proxies, and since when: those that did most often."""
    worst = sorted(pool.refusals.items(), key=lambda each: -each[1].total)
    for target, refused in worst[:LISTED]:
        most = sorted(refused.proxies.items(), key=lambda each: -each[1][0])
        whom = [
            f"{address} ({number:,}, since {window.format_moment(since, roughly=True)})"
            for address, (number, since) in most[:LISTED]
        ]
        if len(most) > LISTED:
            more = "at least " if refused.more else ""
            whom.append(f"{more}{count(len(most) - LISTED, 'other proxy', 'other proxies')}")
        since = window.format_moment(refused.since, roughly=True)
        requests = count(refused.total, "request")
        yield f"{target} refused {requests} since {since}: {', '.join(whom)}."
    elsewhere = sum(refused.total for _, refused in worst[LISTED:]) + pool.refused_elsewhere
    if elsewhere:
        yield f"Other targets refused {count(elsewhere, 'request')}."


def _changes(pool: PoolPicture) -> Iterator[str]:
    """Yield the status changes, except those of new proxies."""
    became = Counter(
        "removed" if mark.becomes is None else f"to {mark.becomes.status.value}"
        for mark in pool.marks
        if mark.was is not None and (mark.becomes is None or mark.becomes.status != mark.was.status)
    )
    if became:
        description = ", ".join(f"{number:,} {what}" for what, number in became.most_common())
        yield f"Changes of status: {description}."
