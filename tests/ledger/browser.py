"""Open a page in a real headless Chromium and see what it shows, says and asks for.

Every name leads the browser to a server of the test's own, so that a request
is noticed and none leaves the machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import serving

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


class Shown(NamedTuple):
    """The document after its scripts ran, what the console said, and what was requested."""

    dom: str
    console: list[str]
    requests: list[str]

    def elements(self, class_: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of a class."""
        parser = _Elements(class_)
        parser.feed(self.dom)
        return parser.found


def opened(page: Path, *, width: int = 1400) -> Shown:
    """Open a page as it is, in a window so many pixels wide."""
    assert CHROMIUM is not None
    with (
        tempfile.TemporaryDirectory(prefix="pharox-chromium-") as profile,
        _whole_internet() as (port, requests),
    ):
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                # What it would ask for by itself:
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-features=NetworkTimeServiceQuerying",
                f"--window-size={width},1000",
                f"--host-resolver-rules=MAP * 127.0.0.1:{port}",
                "--virtual-time-budget=2000",
                "--enable-logging=stderr",
                f"--user-data-dir={profile}",
                "--dump-dom",
                page.resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Shown(done.stdout, console, requests)


@contextmanager
def _whole_internet() -> Iterator[tuple[int, list[str]]]:
    """Serve nothing, and note who was asked for what."""
    requests: list[str] = []

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.headers['Host']}{self.path}")
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Nothing) as port:
        yield port, requests


def driven(page: Path, script: str, *, width: int = 1400) -> Any:
    """Return what a script returns that runs in a page, as somebody who uses it."""
    html = page.read_text(encoding="utf-8")
    # The page's own policy would refuse a script that is not its own.
    html = html.replace('http-equiv="Content-Security-Policy"', 'name="was-policy"')
    told = (
        "<script>{const told = document.createElement('pre'); told.id = 'told';"
        f"told.textContent = JSON.stringify((() => {{{script}}})());"
        "document.body.append(told);}</script>"
    )
    copy = page.with_name("driven.html")
    copy.write_text(html.replace("</body>", f"{told}</body>"), encoding="utf-8")
    shown = opened(copy, width=width)
    assert shown.console == []
    parser = _Text("told")
    parser.feed(shown.dom)
    return json.loads(parser.text)


class _Elements(HTMLParser):
    def __init__(self, class_: str) -> None:
        super().__init__()
        self._class = class_
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if self._class in attributes.get("class", "").split():
            self.found.append({"tag": tag, **attributes})


class _Text(HTMLParser):
    def __init__(self, id_: str) -> None:
        super().__init__()
        self._id, self._inside = id_, False
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = ("id", self._id) in attrs

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False
