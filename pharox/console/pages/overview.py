"""The overview: what needs a look, and each pool with what is leased, free, resting and banned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

from ..alerts import Alert, Facts, Watch
from ..console import Console, reader
from ..drawing import Gauge, Spark
from ..figures import Figures, PoolFigures
from ..figures.activity import Activity
from ..live import stream
from ..rendering import render, render_text


@dataclass(frozen=True, slots=True)
class PoolCard:
    """One pool of the overview. ``misses`` are those of the last quarter of an hour by reason."""

    figures: PoolFigures
    gauge: Gauge
    spark: Spark
    misses: Counter[str]
    alerts: int


@dataclass(frozen=True, slots=True)
class Overview:
    """What the overview shows. Unless ``is_whole``, misses are those of what was read so far."""

    at: datetime
    pools: Sequence[PoolCard]
    alerts: Sequence[Alert]
    is_whole: bool


def data(figures: Figures, activity: Activity, watch: Watch) -> Overview:
    """Return what the overview shows now."""
    now = figures.now()
    activity.advance(now)
    is_whole = activity.is_whole
    pools = figures.pools()
    slots = {pool.id: activity.of(pool.id) for pool in pools}
    alerts = watch.look(
        Facts(now, pools, slots, figures.subscriptions(), figures.sources(), figures.moves())
    )
    about = Counter(alert.found.pool_id for alert in alerts)
    cards = [
        PoolCard(
            pool,
            Gauge.of(pool.shares),
            Spark.of(pool.available, pool.total, slots[pool.id], now),
            sum((slot.misses for slot in slots[pool.id].values()), Counter()),
            about[pool.id],
        )
        for pool in pools
    ]
    return Overview(now, cards, alerts, is_whole)


async def page(request: Request) -> Response:
    """Answer with the overview."""
    console = await reader(request)
    return render(request, "overview.html", overview=await _shared(console))


async def live(request: Request) -> Response:
    """Answer with the stream of the overview."""
    console = await reader(request)

    async def fragment() -> str:
        return render_text(request, "parts/overview.html", overview=await _shared(console))

    return await stream(request, fragment)


async def _shared(console: Console) -> Overview:
    return await console.shared("overview", data, console.figures, console.activity, console.watch)
