"""The lab's proxies do as they are told, and its site knows through which of them it is asked."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from pharox import InvalidInputError, OutcomeKind, ProxyFilters
from pharox.integrations.testing import Behaviour, ProxyLab, Script, Told, Verdict, proxy_lab
from tests.conftest import AnyStorage

AUTHORITY = trustme.CA()
TRUST = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())


@pytest.fixture
def lab() -> Iterator[ProxyLab]:
    with proxy_lab(authority=AUTHORITY) as lab:
        yield lab


def get(lab: ProxyLab, name: str, url: str) -> httpx.Response:
    """Fetch a page through the proxy of a name."""
    wanted = lab.proxies[name].id
    filters = ProxyFilters(predicate=lambda proxy: proxy.id == wanted)
    client = lab.manager.client("lab", filters=filters, client_options={"verify": TRUST})
    with client:
        return client.get(url)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", ["good", "password", "socks"])
def test_a_page_says_through_which_proxy_it_came(lab: ProxyLab, name: str, *, tls: bool) -> None:
    url = lab.url("/a?b=c", tls=tls)
    answer = get(lab, name, url)
    assert (answer.status_code, answer.text) == (200, f"{name} {url}\n")
    assert [(each.proxy, each.url, each.verdict) for each in lab.seen] == [
        (name, url, Verdict.ANSWERED)
    ]
    assert lab.held == []
    assert lab.outcomes == [Told(name, OutcomeKind.OK, "shop.example", 200, 1)]


@pytest.mark.parametrize("tls", [False, True])
def test_one_refuses_and_one_dies(lab: ProxyLab, *, tls: bool) -> None:
    url = lab.url(tls=tls)
    assert get(lab, "refusing", url).status_code == 403
    with pytest.raises(httpx.TransportError):
        get(lab, "dying", url)
    assert lab.held == []
    kinds = [(told.proxy, told.kind) for told in lab.outcomes]
    assert kinds == [
        ("refusing", OutcomeKind.BLOCKED),
        ("dying", OutcomeKind.OK),  # its head came
        ("dying", OutcomeKind.UNCLEAR),
    ]


@pytest.mark.parametrize("protocol", ["http", "socks5"])
def test_a_wrong_password_is_refused(protocol: str) -> None:
    behaviour = Behaviour(protocol=protocol, user="alice", password="right")  # type: ignore[arg-type]
    with proxy_lab({"one": behaviour}) as lab:
        wrong = lab.proxies["one"].model_copy(update={"credentials": None})
        lab.storage.save_proxy(wrong)
        try:
            assert get(lab, "one", lab.url()).status_code == 407
        except httpx.ProxyError:
            assert protocol == "socks5"
        assert lab.seen == []
        assert [told.kind for told in lab.outcomes] == [OutcomeKind.PROXY_FAILED]


def test_one_may_be_down_and_one_slow() -> None:
    with proxy_lab({"down": Behaviour(is_down=True), "slow": Behaviour(delay_s=60)}) as lab:
        with pytest.raises(httpx.ConnectError):
            get(lab, "down", lab.url())
        options = {"timeout": 0.2}
        with (
            lab.manager.client("lab", target="other.example", client_options=options) as client,
            pytest.raises(httpx.TransportError),
        ):
            client.get(lab.url())
    assert "lab" not in [thread.name for thread in threading.enumerate()]


def test_pages_have_the_status_that_their_path_says(lab: ProxyLab) -> None:
    assert get(lab, "good", lab.url("/status/503")).status_code == 503
    moved = get(lab, "good", lab.url("/redirect/status/204"))
    assert (moved.status_code, moved.headers["location"]) == (302, "/status/204")


def test_a_site_without_an_authority_has_no_tls() -> None:
    with proxy_lab() as lab, pytest.raises(InvalidInputError, match="authority"):
        lab.url(tls=True)


def test_it_takes_any_storage(any_storage: AnyStorage) -> None:
    with proxy_lab({"good": Behaviour()}, storage=any_storage) as lab:
        with lab.manager.client("lab") as client:
            assert lab.name_of(client.lease) == "good"
            assert client.get(lab.url()).text.startswith("good ")
            assert len(lab.held) == 1
        assert lab.held == []
        with pytest.raises(InvalidInputError, match="is yours"):
            _ = lab.async_manager


def test_coroutines_lease_from_the_same_ledger() -> None:
    async def main(lab: ProxyLab) -> None:
        manager = lab.async_manager
        async with manager.client("lab") as client:
            assert (await client.get(lab.url())).status_code == 200
            assert len(lab.held) == 1
        await manager.flush_reports()

    with proxy_lab({"good": Behaviour(delay_s=0.01)}) as lab:
        asyncio.run(main(lab))
        assert lab.held == []
        assert [told.proxy for told in lab.outcomes] == ["good"]


def test_what_came_past_the_proxies_is_seen_without_one(lab: ProxyLab) -> None:
    httpx.get(f"http://127.0.0.1:{lab._ports[False]}/", trust_env=False)
    assert [each.proxy for each in lab.seen] == [None]


TESTS_OF_A_USER = """
import pytest
from pharox.integrations.testing import Behaviour

@pytest.fixture
def lab_behaviours():
    return {"only": Behaviour()}

def test_it(proxy_lab):
    with proxy_lab.manager.client("lab") as client:
        assert client.get(proxy_lab.url()).text.startswith("only ")
"""


def test_the_plugin_offers_a_lab(tmp_path: Path) -> None:
    """A project's own tests take it as a fixture, with other proxies if they say so."""
    plugin = "pharox.integrations.testing.fixtures"
    (tmp_path / "conftest.py").write_text(f'pytest_plugins = ["{plugin}"]\n')
    (tmp_path / "test_user.py").write_text(TESTS_OF_A_USER)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout


@given(
    st.integers(0, 3),
    st.floats(0.5, 10),
    st.lists(st.floats(0, 5), max_size=30),
)
def test_a_refusal_lasts_as_long_as_it_says(after: int, for_s: float, pauses: list[float]) -> None:
    """At most so many answers stand between two refusals, and none within the time of one."""
    script = Script(Behaviour(blocks_after=after, blocks_for_s=for_s))
    now, answers, until = 0.0, 0, -1.0
    for pause in pauses:
        now += pause
        verdict = script.decide(now)
        if now < until:
            assert verdict is Verdict.REFUSED
        elif answers < after:
            assert verdict is Verdict.ANSWERED
            answers += 1
        else:
            assert verdict is Verdict.REFUSED
            answers, until = 0, now + for_s


def test_it_dies_after_its_answers_and_goes_on_dying() -> None:
    script = Script(Behaviour(dies_after=2))
    verdicts = [script.decide(float(n)) for n in range(4)]
    assert verdicts == [*[Verdict.ANSWERED] * 2, *[Verdict.BROKEN_OFF] * 2]
