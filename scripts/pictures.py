"""Take the pictures of the documentation: `python -m scripts.pictures` writes docs/pictures/.

It shows the incident report of the tests' incident, and the console's pages of it, in a headless
Chromium. Run it by hand when a page has changed: Chromium draws differently on each machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

from playwright.sync_api import Page, expect, sync_playwright
from pydantic import SecretStr

from pharox import (
    HealthCheckResult,
    InMemoryStorage,
    Outcome,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxySource,
    ProxyStatus,
    RotationAnswer,
    RotationPolicy,
    SourceCounts,
    Subscription,
    connect,
)
from pharox.console import create_app
from pharox.incident import write_report
from pharox.log import Extract
from pharox.storage.requests import AcquireRequest
from pharox.storage.sources import RefreshResult
from tests.console.conftest import everything, served
from tests.ledger.incident_story import BULK, START, Incident

PICTURES = Path(__file__).parents[1] / "docs/pictures"
QUALITY = 60
"""Of a WebP: text stays sharp, and a page takes some 40 KB."""


def photograph(page: Path, picture: Path, *, width: int, height: int) -> None:
    """Write the upper part of a page as a PNG."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no chromium on this machine.")
    with tempfile.TemporaryDirectory(prefix="pharox-chromium-") as profile:
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "--virtual-time-budget=2000",
                f"--screenshot={picture}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


class View(NamedTuple):
    """A page of the console: its name, its path, and how much of it a picture has."""

    name: str
    path: str
    height: int = 860
    is_live: bool = False


class Look(NamedTuple):
    """How a page is looked at; ``suffix`` ends the name of its picture."""

    suffix: str
    width: int
    scheme: Literal["dark", "light"]


LOOKS = (
    Look("", 1200, "light"),
    Look("-dark", 1200, "dark"),
    Look("-phone", 390, "light"),
)


def photograph_console(storage: Any, views: Sequence[View]) -> None:
    """Write pages of the console, as a browser has them: light, dark and narrow."""
    chromium = shutil.which("chromium")
    with served(create_app(storage, authorize=everything)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for look in LOOKS:
            for view in views:
                page = browser.new_page(
                    base_url=url,
                    color_scheme=look.scheme,
                    viewport={"width": look.width, "height": view.height},
                )
                page.goto(view.path)
                if view.is_live:
                    expect(page.locator("#live-state")).to_have_text("Live.")
                save(page, PICTURES / f"console-{view.name}{look.suffix}.webp")
                page.close()
        browser.close()


def save(page: Page, picture: Path) -> None:
    """Write what a page shows as a WebP, which has a quarter of a PNG's size."""
    shot = page.context.new_cdp_session(page).send(
        "Page.captureScreenshot", {"format": "webp", "quality": QUALITY}
    )
    picture.write_bytes(b64decode(shot["data"]))


class Scene:
    """The incident, eleven minutes after its beginning, and beside it what else pages show."""

    def __init__(self, storage: Any) -> None:
        self.storage, self.incident = storage, Incident(storage)
        self.incident.play(11)
        self._add_others()
        self._add_sources()
        self._report()
        self.phone = self._rotate()

    def _add_others(self) -> None:
        self.other = ProxyPool(name="datacenter-us")
        self.storage.save_pool(self.other)
        statuses = ("active", "active", "active", "inactive", "active", "slow", "active")
        proxies = [
            Proxy(
                host=f"198.51.100.{number}",
                port=3128,
                protocol="http",
                pool_id=self.other.id,
                status=ProxyStatus(statuses[number % 7]),
                source="acme-list" if number % 2 else "globex-list",
                max_concurrency=1,
            )
            for number in range(1, 240)
        ]
        self.storage.add_proxies_bulk(proxies)
        checks = [
            HealthCheckResult(
                proxy_id=proxy.id,
                status=proxy.status,
                latency_ms=180 + 7 * number,
                protocol=proxy.protocol,
                checked_at=self.incident.clock.now,
            )
            for number, proxy in enumerate(proxies[:140])
        ]
        self.storage.record_health_checks(checks)
        for number in range(90):
            ProxyManager(self.storage).acquire_proxy(
                self.other.name, consumer_name=f"crawler-{number % 9}"
            )

    def _add_sources(self) -> None:
        """Add a source that fails, and one with an entry that cannot be read."""
        outcomes = {
            "acme-list": RefreshResult(
                SourceCounts(listed=120, unchanged=120, kept=2, skipped=1),
                ("line 17 has no port",),
            ),
            "globex-list": RefreshResult(failure="the server answered 403"),
        }
        for name, result in outcomes.items():
            url = SecretStr(f"https://{name}.example/proxies?token=secret")
            source = ProxySource(name=name, pool_name=self.other.name, url=url, every_seconds=300)
            self.storage.save_source(source)
            claim = self.storage.claim_source(name)
            self.storage.finish_refresh(claim, result)

    def _report(self) -> None:
        manager = ProxyManager(self.storage)
        for number in range(8):
            lease = manager.acquire_proxy(
                self.other.name, consumer_name="price-watch", target="shop.example"
            )
            assert lease is not None
            refused = Outcome.blocked(status=429, retry_after=600)
            manager.report(lease, refused if number % 3 == 0 else Outcome.ok(status=200))
            manager.release_proxy(lease)

    def _rotate(self) -> Proxy:
        pool = ProxyPool(name="mobile-br", rotation=RotationPolicy(on="release"))
        self.storage.save_pool(pool)
        phone = Proxy(
            host="modem-1.proxies.example",
            port=9001,
            protocol="http",
            pool_id=pool.id,
            status=ProxyStatus.ACTIVE,
            max_concurrency=1,
            rotate_url=SecretStr("https://provider.example/rotate?token=secret"),
        )
        self.storage.save_proxy(phone)
        lease = self.storage.acquire_lease(AcquireRequest(pool.name, "checkout", 60)).lease
        self.storage.return_lease(lease)
        for due in self.storage.claim_rotations().due:
            self.storage.answer_rotation(due, RotationAnswer(status=200, exit_ip="203.0.113.44"))
        return phone

    def views(self) -> list[View]:
        """Return each page of the console, about what happened here."""
        storage, pool = self.storage, self.incident.pool
        misses = Extract(consumer="checkout", types=("AcquireMissed",))
        miss = list(storage.history(misses))[6]
        lease = next(
            event
            for event in storage.history(Extract(consumer=BULK, types=("LeaseAcquired",)))
            if event.pool_id == pool.id
        )
        window = {"pool": pool.name, "from": "2026-01-01 10:03", "to": "2026-01-01 10:10"}
        return [
            View("overview", "/", is_live=True),
            View("pool", f"/pools/{pool.id}", 1100, is_live=True),
            View("pool-past", f"/pools/{pool.id}?at=2026-01-01T10:06:30", 1300),
            View("proxy", f"/proxies/{lease.proxy_id}"),
            View("mobile", f"/proxies/{self.phone.id}"),
            View("consumer", "/consumer?name=price-watch"),
            View("lease", f"/leases/{lease.lease_id}"),
            View("target", "/target?name=shop.example"),
            View("source", "/source?name=acme-list"),
            View("search", "/search?q=gw1."),
            View("why", f"/why?consumer=checkout&at={miss.seq}", 1100),
            View("incident", f"/incident?{urlencode(window)}", 1000),
            View("ledger", "/ledger", 1300, is_live=True),
            View("action", f"/actions/ban/{lease.proxy_id}"),
        ]


def console_pictures() -> None:
    """Write the pictures of the console, over a ledger in PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="pharox-pictures-") as folder:
        os.environ["PHAROX_DATA_DIR"] = folder
        storage = connect()
        storage.upgrade_schema()
        scene = Scene(storage)
        with Subscription("mailer", print, start="now").running(storage):
            photograph_console(storage, scene.views())
        storage.close()


def main() -> None:
    console_pictures()
    storage = InMemoryStorage()
    Incident(storage).play()
    with tempfile.TemporaryDirectory() as folder:
        report = write_report(
            storage, START, START + timedelta(minutes=14), Path(folder) / "report"
        )
        photograph(report.page, PICTURES / "incident-report.png", width=1200, height=965)


if __name__ == "__main__":
    main()
