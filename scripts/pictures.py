"""Take the pictures of the documentation: `python -m scripts.pictures` writes docs/pictures/.

It shows the incident report of the tests' incident in a headless Chromium. Run it by hand when the
page has changed: Chromium draws differently on each machine.
"""

import shutil
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from pharox import InMemoryStorage
from pharox.incident import write_report
from tests.ledger.incident_story import START, Incident

PICTURES = Path(__file__).parents[1] / "docs/pictures"


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


def main() -> None:
    storage = InMemoryStorage()
    Incident(storage).play()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = write_report(
            storage, START, START + timedelta(minutes=14), Path(folder) / "report"
        )
        photograph(report.page, PICTURES / "incident-report.png", width=1200, height=965)


if __name__ == "__main__":
    main()
