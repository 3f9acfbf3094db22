"""Hosts that are missing or too old get a sentence, and proxies a URL that leaves names to them."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from pharox import LeasedProxy, ProxyCredentials, ProxyProtocol
from pharox.errors import MissingHostError, PharoxError
from pharox.integrations import _core

ROOT = Path(__file__).parents[2]


def test_a_missing_host_names_its_extra() -> None:
    with pytest.raises(ImportError, match=r"pip install 'pharox\[nowhere\]'$") as caught:
        _core.require("no-such-host", "1.2", extra="nowhere")
    error = caught.value
    assert isinstance(error, MissingHostError)
    assert isinstance(error, PharoxError)
    assert (error.host, error.least_version, error.found_version) == ("no-such-host", "1.2", None)


@pytest.mark.parametrize(
    ("found", "least", "is_enough"),
    [
        ("2.13.0", "2.13", True),
        ("2.13", "2.13.0", True),
        ("2.13.0rc1", "2.13", True),
        ("2.9.9", "2.13", False),
        ("3", "2.13", True),
        ("2.12.99.dev1", "2.13", False),
    ],
)
def test_versions_are_compared_by_their_numbers(
    monkeypatch: pytest.MonkeyPatch, found: str, least: str, is_enough: bool
) -> None:
    monkeypatch.setattr(_core, "version", lambda _: found)
    if is_enough:
        _core.require("httpx", least)
        return
    with pytest.raises(MissingHostError, match=rf"httpx {least} or newer, which is {found} here"):
        _core.require("httpx", least)


def test_what_is_required_is_what_the_extras_install() -> None:
    """The versions that modules ask for are those of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for module in (ROOT / "pharox" / "integrations").glob("*.py"):
        for call in ast.walk(ast.parse(module.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "require":
                host, least = (ast.literal_eval(argument) for argument in call.args)
                named = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                extra = [re.sub(r"\[.*\]", "", each) for each in extras[named.get("extra", host)]]
                assert f"{host}>={least}" in extra, module.name


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (ProxyProtocol.HTTP, "http"),
        (ProxyProtocol.HTTPS, "https"),
        (ProxyProtocol.SOCKS4, "socks4a"),
        (ProxyProtocol.SOCKS5, "socks5h"),
    ],
)
def test_names_are_left_to_the_proxy(protocol: ProxyProtocol, expected: str) -> None:
    login = ProxyCredentials(user="al:ice", password="p@ss/w%rd")
    proxy = LeasedProxy(protocol, "2001:db8::1", 1080, login)
    url = _core.url_resolving_there(proxy)
    assert url == f"{expected}://al%3Aice:p%40ss%2Fw%25rd@[2001:db8::1]:1080"
