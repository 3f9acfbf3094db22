"""A directive that writes its part of a page out of the code, as Markdown."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective, ABC):
    """Stands for what :meth:`markdown` returns."""

    @abstractmethod
    def markdown(self) -> str:
        """Return the text of the page."""

    def run(self) -> list[nodes.Node]:
        """Parse the text where the directive stands."""
        self.env.note_reread()  # of which modules it was made is not known
        # Apart, as MyST puts what stands before the first heading behind the last section.
        parts = re.split(r"(?m)^(?=#)", self.markdown(), maxsplit=1)
        return [
            node
            for part in parts
            for node in self.parse_text_to_nodes(part, allow_section_headings=True)
        ]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [titles, ["---"] * len(titles), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """Return text as code, or nothing for none."""
    return f"`{text}`" if text else ""


def as_markdown(docstring: str | None) -> str:
    """Return a docstring with its references as code."""
    return re.sub(r":(?:\w+:)?\w+:`~?([^`]+)`", r"`\1`", docstring or "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
