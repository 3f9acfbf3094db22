"""Hold llms.txt to the pages: it names each one, apart from the first and the single decisions."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _check(_app: Sphinx, environment: BuildEnvironment) -> None:
    text = (Path(environment.srcdir) / "llms.txt").read_text(encoding="utf-8")
    named = re.findall(r"\]\((\S+)\.html\)", text)
    apart = ("decisions/0", "index")
    pages = [page for page in environment.found_docs if not page.startswith(apart)]
    for page in sorted(set(named) ^ set(pages)):
        logger.warning("llms.txt and the pages differ in %s", page, type="llms")


def setup(app: Sphinx) -> dict[str, bool]:
    """Have Sphinx compare them when it has read all pages."""
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}
