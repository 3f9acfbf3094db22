"""A lab whose site has TLS, and what tests of every client say about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from pharox.integrations.testing import Behaviour, ProxyLab, proxy_lab

BEHAVIOURS = {
    "good": Behaviour(),
    "password": Behaviour(user="alice", password="open sesame: p@ss/w%rd"),
    "refusing": Behaviour(blocks_after=0, retry_after_s=60),
    "dying": Behaviour(dies_after=0),
    "socks": Behaviour(protocol="socks5"),
    "socks-password": Behaviour(protocol="socks5", user="bob", password="pässword"),
    "slow": Behaviour(delay_s=30),
    "stalling": Behaviour(stall_s=30),
    "down": Behaviour(is_down=True),
}
GOOD = ["good", "password", "socks", "socks-password"]
AUTHORITY = trustme.CA()


@pytest.fixture
def lab() -> Iterator[ProxyLab]:
    """Run a lab with one proxy of each kind; which one is leased, tests choose by its name."""
    with proxy_lab(BEHAVIOURS, authority=AUTHORITY, hosts=("shop.example", "news.example")) as lab:
        yield lab


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have clients trust the site's authority, and return the path of its file."""
    file = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(str(file))
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(variable, str(file))
    return str(file)
