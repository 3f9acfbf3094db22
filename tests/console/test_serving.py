"""Who gets in, what every answer says to a browser, and that it works under a prefix."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from pharox import AsyncInMemoryStorage, InMemoryStorage, InvalidInputError, ProxyPool
from pharox.console import Access, create_app
from tests.conftest import AnyStorage
from tests.console.conftest import BASE, Client, everything

HOSTILE = "<script>alert(1)</script>\u202e\"'&"


def test_each_page_names_what_is_there_and_links_to_it(any_storage: AnyStorage) -> None:
    """The overview links to the page of each pool."""
    pool = ProxyPool(name="residential")
    any_storage.save_pool(pool)
    client = Client(create_app(any_storage))
    front = client.get("/")
    assert front.status_code == 200
    assert f'href="/pools/{pool.id}"' in front.text
    assert "residential" in client.get(f"/pools/{pool.id}").text


def test_by_default_only_this_machine_reads() -> None:
    """A passed-on request, and one for another host's name, come from elsewhere."""
    app = create_app(InMemoryStorage())
    assert Client(app).get("/").status_code == 200
    assert Client(app).get("/", headers={"X-Forwarded-For": "1.2.3.4"}).status_code == 403
    assert Client(app, "http://evil.example").get("/").status_code == 403


@pytest.mark.parametrize("given", [Access.none(), Access.read(), Access.act()])
def test_authorize_decides(given: Access) -> None:
    """Only who may read sees a page; a coroutine function may decide, too."""

    async def authorize(_: Any) -> Access:
        return given

    status = Client(create_app(InMemoryStorage(), authorize=authorize)).get("/").status_code
    assert status == (200 if given.may_read else 403)


def test_every_answer_has_the_headers() -> None:
    """Pages, files and errors alike allow no script but that of the console's files."""
    client = Client(create_app(InMemoryStorage()))
    for path in ("/", "/static/console.js", "/nothing"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_no_page_has_inline_script_or_style(any_storage: AnyStorage) -> None:
    """Nothing on a page needs more than the policy allows, and a hostile name is text."""
    pool = ProxyPool(name=HOSTILE)
    any_storage.save_pool(pool)
    client = Client(create_app(any_storage))
    for path in ("/", f"/pools/{pool.id}"):
        text = client.get(path).text
        assert "<script>" not in text
        assert "\u202e" not in text
        assert not re.search(r"<[^>]+\s(style|on\w+)=", text)


def test_it_can_be_mounted_under_a_prefix() -> None:
    """Each link of a mounted console begins with its prefix."""
    storage = InMemoryStorage()
    storage.save_pool(ProxyPool(name="residential"))
    outer = Starlette(routes=[Mount("/ops/pharox", create_app(storage, authorize=everything))])
    text = Client(outer).get("/ops/pharox/").text
    links = re.findall(r'(?:href|src|data-live)="([^"#]*)"', text)
    assert links
    for link in links:
        assert link.startswith("/ops/pharox/")
        if "live" not in link:
            assert Client(outer).get(link).status_code == 200


def test_an_asynchronous_storage_is_refused() -> None:
    """The error says what to do instead."""
    with pytest.raises(InvalidInputError, match=r"pharox\.connect"):
        create_app(AsyncInMemoryStorage())
    assert BASE
