"""Draw the legend of colours and shapes, and the buttons that change the view."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from ...models import ProxyStatus
from ..wording import count
from .lanes import ABSENT, ENDINGS, OTHERS, SIGNS
from .markup import add
from .selection import MOST_COLOURS, Selection

_MOVES = (
    ("earlier", "←", "Show earlier"),
    ("later", "→", "Show later"),
    ("closer", "+", "Magnify"),
    ("farther", "\N{MINUS SIGN}", "Show more"),
    ("all", "Whole window", "Show the whole window"),
)


def draw_tools(body: Element, selection: Selection) -> None:
    """Draw the legend and the buttons."""
    tools = add(body, "section", class_="tools", aria_label="Legend and tools")
    choice = add(tools, "div", class_="choice", role="group", aria_label="Colour leases by")
    add(choice, "span", "Colour leases by")
    for colour, words in (("consumer", "consumer"), ("ending", "how they ended")):
        pressed = "true" if colour == "consumer" else "false"
        add(choice, "button", words, type="button", data_set_colour=colour, aria_pressed=pressed)
    _draw_consumers(add(tools, "div", class_="legend by-consumer"), selection)
    endings = add(tools, "div", class_="legend by-ending")
    for word in ENDINGS.values():
        add(add_item(endings, f"lease e-{word}"), "span", word)
    _draw_signs(add(tools, "div", class_="legend"))
    zoom = add(tools, "div", class_="choice", role="group", aria_label="Time axis")
    for action, label, words in _MOVES:
        add(zoom, "button", label, type="button", data_zoom=action, title=words)
    add(zoom, "span", "or drag across the picture", class_="hint")


def add_item(legend: Element, swatch: str, tag: str = "span", **attributes: object) -> Element:
    """Append a legend entry with its swatch; the caller adds the text."""
    item = add(legend, tag, class_="item", **attributes)
    svg = add(item, "svg", width=16, height=12, aria_hidden="true")
    add(svg, "rect", width=16, height=12, rx=2, class_=swatch)
    return item


def _draw_consumers(legend: Element, selection: Selection) -> None:
    for name, leases in selection.consumers[:MOST_COLOURS]:
        swatch = f"lease {selection.style.colours[name]}"
        item = add_item(
            legend, swatch, "button", type="button", data_only=name, aria_pressed="false"
        )
        add(item, "bdi", name)
        add(item, "small", f"{leases:,}")
    if rest := selection.consumers[MOST_COLOURS:]:
        item = add_item(legend, f"lease {OTHERS}")
        add(item, "span", count(len(rest), "other consumer"))
        add(item, "small", f"{sum(leases for _, leases in rest):,}")


def _draw_signs(legend: Element) -> None:
    for name, words, place in (
        ("from-before", "began before the window", 0),
        ("goes-on", "still held at its end", 16),
        ("ran-out", "ran out (expired)", 15),
    ):
        item = add_item(legend, f"lease {OTHERS}")
        box = add(item[0], "svg", x=place, class_="end")
        add(box, "path", d=SIGNS[name].format(half=6, tall=12, below=14), class_=name)
        add(item, "span", words)
    for status in (*ProxyStatus, ABSENT):
        item = add(legend, "span", class_="item")
        svg = add(item, "svg", width=14, height=14, aria_hidden="true")
        add(svg, "use", href=f"#mark-{status}", x=7, y=7, class_=f"mark s-{status}")
        add(item, "span", "not in the pool" if status == ABSENT else f"became {status}")
