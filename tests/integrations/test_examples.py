"""The programs in docs/examples do what they say, with the real hosts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

from pharox.integrations.testing import Behaviour, proxy_lab
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY
from tests.integrations.examples import EXAMPLES, example

NAMES = [path.name for path in sorted(EXAMPLES.glob("*_session.py"))] + ["httpx_transport.py"]


def crawl_of(name: str) -> Any:
    """Return what an example crawls with."""
    return example(Path(name).stem).crawl


@pytest.mark.parametrize("name", NAMES)
def test_an_example_crawls(name: str) -> None:
    """It has a status of each page, and leaves no lease."""
    crawl = crawl_of(name)
    with proxy_lab({"good": Behaviour(), "other": Behaviour(protocol="socks5")}) as lab:
        urls = [lab.url("/a"), lab.url("/status/404"), lab.url("/b", host="news.example")]
        if iscoroutinefunction(crawl):
            found = asyncio.run(crawl(lab.async_manager, "lab", urls))
        else:
            found = crawl(lab.manager, "lab", urls)
        assert found == dict(zip(urls, [200, 404, 200], strict=True))
        assert None not in {each.proxy for each in lab.seen}
        assert lab.held == []


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_program(postgres: PostgresStorage, database_url: str, name: str) -> None:
    """It leases from the ledger of the environment."""
    with proxy_lab({"good": Behaviour()}, storage=postgres) as lab:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), "lab", lab.url()],
            env={
                **os.environ,
                "PHAROX_DATABASE_URL": database_url,
                "PHAROX_SECRET_KEY": SECRET_KEY,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == f"{{'{lab.url()}': 200}}\n", done.stderr
        assert [each.proxy for each in lab.seen] == ["good"]
        assert lab.held == []


def test_a_host_that_is_missing_gets_a_sentence() -> None:
    """In a process of its own, where the host cannot be found."""
    for module, host in (
        ("requests", "requests"),
        ("aiohttp", "aiohttp"),
        ("curl_cffi", "curl-cffi"),
    ):
        code = f"""
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == {module!r} else found(name, *a)
try:
    import pharox.integrations.{module}
except ImportError as error:
    print(error)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert f"which is not installed: pip install 'pharox[{host}]'" in done.stdout
        assert done.stdout.count("\n") == 1
