"""Render the page: one self-contained file that needs no network and no server.

Style and script are inlined. A content security policy in the page allows these two by
their hashes and nothing else: the page can send no request, and nothing that a name
contains can run.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from importlib.resources import files
from xml.etree.ElementTree import Element

from ..gather.picture import Picture
from ..gather.thinning import MOST_LINES
from ..gather.window import Fold, Window
from ..wording import count, full_moment, span
from .charts import AVAILABILITY_SLOTS
from .legend import draw_tools
from .listing import Entry, Listing
from .markup import add, document
from .sections import draw_chart
from .selection import Selection, select


def render(picture: Picture, listing: Listing) -> str:
    """Return the page of a picture and its events."""
    window = picture.folded_window
    selection = select(picture.pools(), window)
    root = Element("html", {"lang": "en", "data-colour": "consumer"})
    _draw_head(root, window)
    body = add(root, "body")
    _draw_header(body, window, listing.seen)
    draw_tools(body, selection)
    draw_chart(body, selection, picture.miss_slot_s)
    notes = add(body, "section", class_="notes")
    add(notes, "h2", "How to read this")
    points = add(notes, "ul")
    for note in _notes(selection):
        add(points, "li", note)
    _draw_events(body, listing)
    add(body, "div", id="tip", role="status", aria_live="polite", hidden="")
    add(body, "script").text = _asset("page.js")
    return document(root)


def _draw_head(root: Element, window: Window) -> None:
    head = add(root, "head")
    add(head, "meta", charset="utf-8")
    add(head, "meta", http_equiv="Content-Security-Policy", content=policy())
    add(head, "meta", name="viewport", content="width=device-width")
    add(head, "meta", name="color-scheme", content="light dark")
    add(head, "title", f"Incident report, {full_moment(window.start)}")
    add(head, "style").text = _asset("page.css")


def _draw_header(body: Element, window: Window, events: int) -> None:
    header = add(body, "header")
    add(header, "h1", "Incident report")
    when = add(header, "p", class_="when")
    add(when, "time", full_moment(window.start), datetime=window.start.isoformat())
    add(when, "span", " to ")
    add(when, "time", full_moment(window.end), datetime=window.end.isoformat())
    places = f"(seq {window.after + 1} to {window.upto})"
    add(when, "span", f" · {span(window.seconds)} · {count(events, 'event')} {places}")
    if window.folds:
        folds = ", ".join(_described(fold, window) for fold in window.folds)
        add(header, "p", f"Folded, as nothing happened: {folds}.", class_="folds")


def _described(fold: Fold, window: Window) -> str:
    start, end = (window.format_moment(moment, roughly=True) for moment in fold)
    return f"{start} to {end} ({span(fold.end - fold.start)})"


def _notes(selection: Selection) -> Iterator[str]:
    window, resolution = selection.style.window, selection.style.resolution
    yield (
        "Each bar is a lease on the proxy of its line, from its acquisition to its release or "
        "expiry. Point at anything for details; click to keep them."
    )
    yield (
        "Available means active and below its capacity. Where this changed more than "
        f"{AVAILABILITY_SLOTS} times, the lowest numbers of every "
        f"{span(window.drawn_seconds / AVAILABILITY_SLOTS)} are drawn."
    )
    yield (
        "A tinted line means that the proxy was not active: slow, inactive, banned, or not in the "
        "pool. Health checks that changed nothing are not drawn."
    )
    yield (
        f"Concurrent leases on one proxy are stacked on up to {MOST_LINES} lines; the last has "
        "the rest."
    )
    if resolution is not None:
        yield (
            "This window is busy: leases and changes that begin in the same "
            f"{span(window.drawn_seconds / resolution)} and are shorter than that share a bar."
        )
    if selection.pools_left_out:
        yield f"{count(selection.pools_left_out, 'pool')} with less activity are not drawn."
    yield (
        "All times are UTC, by the ledger's clock. timeline.jsonl beside this page has every "
        "event with all its fields."
    )


def _draw_events(body: Element, listing: Listing) -> None:
    entries, seen = listing.entries(), listing.seen
    words = f"{seen:,}"
    if len(entries) < seen:
        words = f"{len(entries):,} of {seen:,}; the rest is in timeline.jsonl"
    details = add(body, "details", class_="events")
    add(details, "summary", f"Events ({words})")
    label = add(details, "label", "Only lines with ")
    add(label, "input", type="search", id="find")
    table = add(add(details, "div", class_="scroll"), "table")
    heads = add(add(table, "thead"), "tr")
    for name in Entry._fields:
        add(heads, "th", name, scope="col")
    rows = add(table, "tbody")
    for entry in entries:
        row = add(rows, "tr", class_=f"is-{entry.event}")
        for value in entry:
            add(row, "td", str(value), dir="auto")


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def policy() -> str:
    """Return the policy that allows only the page's own style and script."""
    style, script = (
        b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode()
        for name in ("page.css", "page.js")
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )
