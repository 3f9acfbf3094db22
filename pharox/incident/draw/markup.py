"""Build HTML and SVG as a tree, so that no text is ever pasted into markup.

The standard library's serializer escapes text and attributes. Unprintable characters
(control characters, marks of writing direction) are made visible before.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement, tostring

from ...models.text import escape_unprintable


class Tip(str):
    """The tooltip of a mark: a heading, then one "name: value" per line, already escaped."""

    __slots__ = ()


def add(parent: Element, tag: str, text: str | None = None, /, **attributes: object) -> Element:
    """Append an element and return it.

    Parameters
    ----------
    parent:
        The element to append it to.
    tag:
        The name of the element.
    text:
        The text of the element.
    attributes:
        ``class_`` and ``for_`` stand for names that Python reserves; other
        underscores become hyphens. None omits an attribute.
    """
    given = {
        name.rstrip("_").replace("_", "-"): value
        if isinstance(value, Tip)
        else escape_unprintable(str(value))
        for name, value in attributes.items()
        if value is not None
    }
    element = SubElement(parent, tag, given)
    if text is not None:
        element.text = escape_unprintable(text)
    return element


def tip(heading: str, details: Iterable[tuple[str, object]]) -> Tip:
    """Return the tooltip of a mark, without details that are None or empty."""
    description = [
        f"{name}: {escape_unprintable(str(value))}"
        for name, value in details
        if value not in (None, "")
    ]
    return Tip("\n".join((escape_unprintable(heading), *description)))


def percent(share: float) -> str:
    """Return a share of the width as an SVG percentage."""
    return f"{share * 100:.5f}".rstrip("0").rstrip(".") + "%"


def document(root: Element) -> str:
    """Return a tree as an HTML document."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"
