"""The timeline of the incident page, of one pool: a line for each proxy, a bar for each lease.

It reads each event of the window, so it is drawn where there are few (:data:`MOST_EVENTS`); the
chart of the page counts the rest. The state at its beginning comes from the pool's past, not from
a fold of the whole log.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, tostring

from markupsafe import Markup

from pharox.log import Extract

from ..history.past.shapes import Past, PoolThen
from ..incident.draw.lanes import MARKS, draw_lane
from ..incident.draw.legend import add_item
from ..incident.draw.markup import add
from ..incident.draw.selection import MOST_COLOURS, select
from ..incident.gather.opening import Opening
from ..incident.gather.picture import Picture
from ..incident.gather.running_state import RunningState
from ..incident.gather.window import Choice, Window
from ..incident.wording import count
from ..models import ProxyPool

MOST_EVENTS = 2000
"""How many events a timeline reads."""

MOST_LANES = 40
"""How many proxies it shows."""


def draw_timeline(
    storage: Any, past: Past, pool: ProxyPool, then: PoolThen, window: Window
) -> Markup | None:
    """Return the timeline of a window; None if there is nothing in it.

    Parameters
    ----------
    then:
        The pool at the window's beginning.
    window:
        The window, of at most :data:`MOST_EVENTS` events.
    """
    extract = Extract(window.after, window.upto, pool_id=pool.id)
    events = list(storage.history(extract))
    touched = {event.proxy_id for event in events if event.proxy_id}
    touched |= {lease.proxy_id for lease in then.leases.values()}
    addresses = past.addresses(pool.id, list(touched), window.upto)
    begins = Opening({pool.id: pool.name}, dict(addresses))
    begins.add(past, pool.id, then)
    running_state = RunningState(begins)
    picture = Picture(window, Choice(frozenset({pool.id})), begins, running_state)
    for event in events:
        running_state.take(event)
        picture.take(event)
    selection = select(picture.pools(), window)
    lanes = [lane for _, of_pool in selection.pools for lane in of_pool]
    if not lanes:
        return None
    root = Element("div", {"class": "lanes"})
    defs = add(add(root, "svg", class_="defs", width=0, height=0, aria_hidden="true"), "defs")
    for status, path in MARKS.items():
        add(defs, "path", id=f"mark-{status}", d=path)
    legend = add(root, "div", class_="keys")
    for number, (name, leases) in enumerate(selection.consumers[:MOST_COLOURS]):
        item = add_item(legend, f"c{number}")
        add(item, "bdi", f"{name} ({leases:,})")
    for lane in lanes[:MOST_LANES]:
        row = add(root, "div", class_="row")
        place = lane.address.rpartition("://")[2]
        add(add(row, "div", class_="label", title=lane.address), "bdi", place)
        draw_lane(add(row, "div", class_="track"), lane, selection.style)
    if len(lanes) > MOST_LANES:
        more = count(len(lanes) - MOST_LANES, "more proxy", "more proxies")
        add(root, "p", f"{more} had leases or changes.", class_="quiet small")
    return Markup(tostring(root, encoding="unicode", method="html"))  # noqa: S704 - built as a tree
