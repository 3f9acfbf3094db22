"""Build HTML and SVG as a tree, so that nothing is ever pasted into markup.

The standard library's serializer escapes text and attributes; what does not
print (control characters, marks that turn the direction of writing) is made
visible before.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement, tostring

from ...models.text import escape_unprintable


class Tip(str):
    """What the page shows of a mark: a heading, then "name: value" a line; inert already."""

    __slots__ = ()


def add(parent: Element, tag: str, text: str | None = None, /, **attributes: object) -> Element:
    """Append an element and return it.

    Parameters
    ----------
    parent:
        Where to append it.
    tag:
        Its name.
    text:
        What stands in it.
    attributes:
        ``class_`` and ``for_`` stand for names that Python reserves, other
        underscores for hyphens; None leaves an attribute out.
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
    """Return what is told of a mark, without the facts that are None or empty."""
    description = [
        f"{name}: {escape_unprintable(str(value))}"
        for name, value in details
        if value not in (None, "")
    ]
    return Tip("\n".join((escape_unprintable(heading), *description)))


def percent(share: float) -> str:
    """Return a share of the width as SVG writes it."""
    return f"{share * 100:.5f}".rstrip("0").rstrip(".") + "%"


def document(root: Element) -> str:
    """Return a tree as an HTML document."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"
