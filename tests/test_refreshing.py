"""Refreshes of sources: what is trusted, what is sent to whom, who goes, and what is recorded."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from pharox import (
    InMemoryStorage,
    InvalidInputError,
    ListOptions,
    PharoxError,
    PoolNotFoundError,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxySource,
    ProxyStatus,
    SecretKeyError,
    SourceStatus,
)
from pharox.events import ProxyChanged, ProxyRegistered, SourceFailed, SourceRefreshed
from pharox.sources import (
    SourceRefresh,
    fetching,
    refresh_sources,
    refresh_sources_async,
    refreshing,
)
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, AnyStorage, Clock, for_tasks, types_of
from tests.provider import Answer, Provider, running_provider

A, B, C, D = (f"192.0.2.{n}:8080" for n in range(1, 5))
TOKEN, HEADER = "t0ken-in-the-path", "Token s3cret-of-the-header"
PATH = f"/api/{TOKEN}/list"


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.reset()
    return running


def source(provider: Provider, path: str = PATH, **changes: Any) -> ProxySource:
    options = ListOptions(protocol="http", **changes.pop("options", {}))
    settings: dict[str, Any] = {"url": provider.url(path), "headers": {"Authorization": HEADER}}
    return ProxySource(name="shop", pool_name="pool", options=options, **{**settings, **changes})


def add(storage: AnyStorage, provider: Provider, path: str = PATH, **changes: Any) -> ProxyPool:
    """Save a pool with a source."""
    pool = ProxyPool(name="pool")
    storage.save_pool(pool)
    storage.save_source(source(provider, path, **changes))
    return pool


def refresh(storage: AnyStorage, **options: Any) -> SourceRefresh:
    (one,) = refresh_sources(storage, ["shop"], **options)
    return one


def addresses(storage: AnyStorage, pool: ProxyPool) -> set[str]:
    return {f"{each.host}:{each.port}" for each in storage.list_proxies(str(pool.id))}


def status(storage: AnyStorage) -> SourceStatus:
    (one,) = storage.list_sources()
    return one


def answer(body: str | bytes = b"", code: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(body if isinstance(body, bytes) else body.encode(), code, named)


@pytest.mark.parametrize(
    ("answered", "message"),
    [
        (answer("busy", 503), "503"),
        (answer(A, content_type="text/html; charset=utf-8"), "a web page"),
        (answer("\n <!doctype html><p>Sign in"), "a web page"),
        (answer(""), "without any proxy"),
        (answer("# nothing today\n"), "without any proxy"),
        (answer('{"results": [], "next": null}'), "without any proxy"),
        (answer('{"detail": "bad token"}'), "no array of proxies"),
        (answer("gw.example:eighty"), "line 1"),
        (answer(f"{A}\n" * 30), "sends more than"),
        (Answer(f"{A}\n".encode(), cut=5), "cannot be read"),
        (answer(gzip.compress(A.encode())[:-9], content_encoding="gzip"), "cut off"),
        (answer(gzip.compress(A.encode())[:-9]), "cut off"),
        (answer(A, content_encoding="br"), "was not requested"),
        (answer(code=302, location="ftp://127.0.0.1/list"), "neither http nor https"),
        (answer(code=302, location="file:///etc/passwd"), "neither http nor https"),
        (answer(code=302), "redirects to nowhere"),
        (answer(code=302, location=PATH), "redirects more than"),
        (answer(code=302, location="http://["), "not a valid URL"),
        (answer(code=302, location=f"http://127.0.0.1:{TOKEN}/x"), "not a valid URL"),
        (answer(code=302, location=f"http://{'a' * 300}.example/"), "not a valid URL"),
        (answer(A, link="<http://[bad>; rel=next"), "not a valid URL"),
        (answer(json.dumps({"results": [A], "next": "http://[::1"})), "not a valid URL"),
        (answer(json.dumps({"results": [A], "next": f"http://h:{TOKEN}/x"})), "not a valid URL"),
        (answer(json.dumps({"results": [A], "next": PATH})), "the same one again"),
        (answer(json.dumps({"results": [A], "next": "https://other.invalid/"})), "another host"),
        (answer(json.dumps({"results": [A], "next": 2})), "not at which URL"),
        (answer(json.dumps({"results": [A], "meta": {"has_more": True}})), "not at which URL"),
        (answer(json.dumps({"results": [A], "has_more": "true"})), "not at which URL"),
        (answer(json.dumps({"data": {"hasNextPage": 1, "list": [A]}})), "not at which URL"),
        (answer(json.dumps({"results": [A], "next": {"page": 2}})), "not at which URL"),
        (answer(json.dumps({"results": [A], "page": 1, "pages": 10})), "not at which URL"),
        (answer(json.dumps({"data": [A], "page": {"number": 0, "totalPages": 2}})), "at which URL"),
        (answer(json.dumps({"data": {"data": [A], "current_page": "1", "last_page": "2"}})), "but"),
        (answer(json.dumps({"results": [A], "meta": {"next_cursor": "c2"}})), "not at which URL"),
        (answer(b"\xef\xbb\xbf" + json.dumps({"results": [A], "next": 2}).encode()), "but not"),
    ],
)
def test_what_is_no_list_changes_nothing(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, answered: Answer, message: str
) -> None:
    """The failure says why, and neither it nor anything else shows a secret."""
    monkeypatch.setattr(fetching, "MAX_BYTES", 300)
    storage = InMemoryStorage()
    pool = add(storage, provider)
    provider.lists([A, B], PATH)
    assert refresh(storage).outcome == "changed"
    provider.answers[PATH] = answered
    failed = refresh(storage)
    assert failed.outcome == "failed"
    assert message in (failed.failure or "")
    assert addresses(storage, pool) == {A, B}
    told = [event for event in storage.events() if isinstance(event, SourceFailed)]
    assert [event.reason for event in told] == [failed.failure]
    shown = f"{list(storage.events())}{failed}{status(storage)}{storage.get_source('shop')!r}"
    assert TOKEN not in shown
    assert HEADER not in shown


def test_one_bad_source_does_not_keep_the_others(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever one answer brings about is that source's failure; a removed one is left out."""
    storage = InMemoryStorage()
    pool = add(storage, provider)
    for name in ("aaa", "zzz"):
        storage.save_source(source(provider, "/odd").model_copy(update={"name": name}))
    provider.lists([A], PATH)

    def fetch(url: str, *rest: Any) -> fetching.FetchedList:
        if url.endswith("/odd"):
            raise RuntimeError(TOKEN)
        return fetching.fetch_list(url, *rest)

    monkeypatch.setattr(refreshing, "fetch_list", fetch)
    done = refresh_sources(storage, is_stopped=lambda: storage.remove_source("zzz") and False)
    assert [(one.source, one.outcome) for one in done] == [("aaa", "failed"), ("shop", "changed")]
    assert "cannot be handled: RuntimeError" in (done[0].failure or "")
    assert TOKEN not in str(done)
    assert addresses(storage, pool) == {A}


def test_no_answer_is_a_failure(provider: Provider) -> None:
    """Nobody listens at the port: the message names the host and no more."""
    storage = InMemoryStorage()
    add(storage, provider, url=f"http://user:pw@127.0.0.1:1/{TOKEN}")
    failure = refresh(storage).failure or ""
    assert failure.startswith("http://127.0.0.1 cannot be read")
    assert TOKEN not in failure
    assert "pw" not in failure


def test_secret_headers_stay_with_the_host(provider: Provider) -> None:
    """A redirect is followed; another host is not told the headers of the source."""
    storage = InMemoryStorage()
    pool = add(storage, provider)
    provider.answers[PATH] = answer(code=307, location="/moved")
    provider.answers["/moved"] = answer(
        code=302, location=provider.url("/elsewhere", host="localhost")
    )
    provider.lists([A], "/elsewhere")
    assert refresh(storage).outcome == "changed"
    assert addresses(storage, pool) == {A}
    sent = {asked.path: asked.headers.get("authorization") for asked in provider.asked}
    assert sent == {PATH: HEADER, "/moved": HEADER, "/elsewhere": None}


@pytest.mark.parametrize(
    "pages",
    [
        {
            PATH: answer(json.dumps({"count": 3, "next": "/two?page=2", "results": [A, B]})),
            "/two?page=2": answer(json.dumps({"next": None, "results": [C]})),
        },
        {
            PATH: answer(f"{A}\n{B}", link='<?page=2>; rel="next"'),
            f"{PATH}?page=2": answer(C),
        },
        {
            PATH: answer(
                json.dumps({"data": [{"ip": "192.0.2.1", "port": 8080}], "links": {"next": "/2"}})
            ),
            "/2": answer(json.dumps({"data": [B, C], "links": {"next": None}})),
        },
        {
            PATH: answer(json.dumps({"next": "/2", "results": [A, B]}).encode("utf-8-sig")),
            "/2": answer(json.dumps({"next": "/3", "results": []}).encode("utf-16")),
            "/3": answer(b'{"next": "", "by": "caf\xe9", "results": ["%s"]}' % C.encode()),
        },
        {
            PATH: answer(json.dumps({"data": {"next": "/2", "results": [A], "pages": 3}})),
            "/2": answer(
                b'{"data": {"by": "caf\xe9", "next": "/3", "results": ["%s"]}}' % B.encode()
            ),
            "/3": answer(json.dumps({"data": {"results": [C], "page": 2, "pages": 3}})),
        },
        {
            PATH: answer(
                json.dumps({"data": [A, B, C], "page": 1, "total_pages": 1, "has_more": "false"})
            )
        },
        {PATH: answer(gzip.compress(f"{A}\n{B}\n{C}".encode()), content_type="application/gzip")},
        {PATH: answer(gzip.compress(f"{A}\n{B}\n{C}".encode()), content_encoding="gzip")},
    ],
    ids=[
        "json",
        "link",
        "links",
        "encodings",
        "wrapped",
        "one page",
        "gzipped file",
        "gzipped answer",
    ],
)
def test_lists_come_as_providers_send_them(provider: Provider, pages: dict[str, Answer]) -> None:
    """In pages that name the next one, and compressed."""
    storage = InMemoryStorage()
    pool = add(storage, provider)
    provider.answers.update(pages)
    assert refresh(storage).counts is not None
    assert addresses(storage, pool) == {A, B, C}
    assert {asked.headers.get("authorization") for asked in provider.asked} == {HEADER}


def test_a_list_that_lost_too_many_is_refused(any_storage: AnyStorage, provider: Provider) -> None:
    """Not even what is new in it is added; a higher bound lets it pass."""
    pool = add(any_storage, provider)
    provider.lists([A, B, C], PATH)
    refresh(any_storage)
    provider.lists([A, D], PATH)
    refused = refresh(any_storage)
    assert "no longer lists 2 of its 3 proxies" in (refused.failure or "")
    assert addresses(any_storage, pool) == {A, B, C}
    any_storage.save_source(source(provider, max_removed="2"))
    tried = refresh(any_storage, dry_run=True)
    assert tried.counts is not None
    assert (tried.counts.added, tried.counts.removed, tried.dry_run) == (1, 2, True)
    assert addresses(any_storage, pool) == {A, B, C}
    done = refresh(any_storage)
    assert done.counts == tried.counts
    assert addresses(any_storage, pool) == {A, D}
    assert any_storage.verify() == []


def test_a_leased_proxy_that_went_drains(any_storage: AnyStorage, provider: Provider) -> None:
    """Its lease goes on, and it leaves with it; listed again before, it is leased again."""
    pool = add(any_storage, provider, max_removed="100%")
    provider.lists([A, B], PATH)
    refresh(any_storage)
    manager = ProxyManager(any_storage)
    leases = [manager.acquire_proxy("pool", consumer_name="crawler") for _ in range(2)]
    provider.lists([C], PATH)
    counts = refresh(any_storage).counts
    assert counts is not None
    assert (counts.added, counts.removed, counts.draining) == (1, 0, 2)
    provider.lists([A, C], PATH)
    counts = refresh(any_storage).counts
    assert counts is not None
    assert (counts.returned, counts.unchanged) == (1, 1)
    for lease in leases:
        assert lease is not None
        manager.release_proxy(lease)
    assert addresses(any_storage, pool) == {A, C}
    every = {each.status for each in any_storage.list_proxies(str(pool.id))}
    assert every == {ProxyStatus.ACTIVE}
    reasons = {e.reason for e in any_storage.events() if isinstance(e, ProxyChanged)}
    assert reasons == {"source shop no longer lists it", "source shop lists it again"}
    assert any_storage.verify() == []


def test_others_proxies_are_left_alone(any_storage: AnyStorage, provider: Provider) -> None:
    """Of another label or none, listed or not; an entry's own label does not take it away."""
    pool = add(any_storage, provider, max_removed="100%")
    mine = Proxy(host="192.0.2.1", port=8080, protocol="http", pool_id=pool.id, status="active")
    any_storage.import_proxies(pool.id, [mine])
    listed = [{"ip": "192.0.2.2", "port": 8080, "source": "another"}]
    provider.answers[PATH] = answer(json.dumps([{"ip": "192.0.2.1", "port": 8080}, *listed]))
    refresh(any_storage)
    assert {p.source for p in any_storage.list_proxies(str(pool.id))} == {None, "shop"}
    provider.lists([C], PATH)
    refresh(any_storage)
    assert addresses(any_storage, pool) == {A, C}


def test_entries_that_cannot_be_read_keep_what_is_gone(provider: Provider) -> None:
    """What is new is added, nothing is removed, and the event says both with few reasons."""
    storage = InMemoryStorage()
    pool = add(storage, provider)
    provider.lists([A, B], PATH, etag='"1"')
    refresh(storage)
    provider.lists([A, C, *["gw.example:x"] * 9], PATH, etag='"2"')
    done = refresh(storage)
    assert done.counts is not None
    assert (done.counts.added, done.counts.kept, done.counts.skipped) == (1, 1, 9)
    assert len(done.reasons) == 5
    assert addresses(storage, pool) == {A, B, C}
    before = len(list(storage.events()))
    assert refresh(storage).outcome == "unchanged"
    assert len(list(storage.events())) == before
    provider.lists([A, C], PATH, etag='"2"')
    refresh(storage)
    assert addresses(storage, pool) == {A, C}


def test_the_log_does_not_grow_with_every_look(provider: Provider) -> None:
    """Only what is new is told: a change, a failure, another one, one an hour, and a recovery."""
    clock = Clock()
    storage = InMemoryStorage(clock=clock)
    add(storage, provider, every_seconds=10)
    provider.lists([A], PATH, etag='"1"')

    def look(times: int = 3) -> list[str]:
        known = len(types_of(storage))
        for _ in range(times):
            refresh_sources(storage)
            clock.advance(10)
        return types_of(storage)[known:]

    assert look() == ["ProxyRegistered", "SourceRefreshed"]
    assert look() == []
    assert status(storage).succeeded_at == clock.now - timedelta(seconds=10)
    provider.answers[PATH] = answer("", 503)
    assert look() == ["SourceFailed"]
    assert status(storage).failures == 3
    provider.answers[PATH] = answer("", 502)
    assert look() == ["SourceFailed"]
    clock.advance(3600)
    assert look() == ["SourceFailed"]
    provider.lists([A], PATH, etag='"1"')
    assert look() == ["SourceRefreshed"]
    assert (status(storage).failure, status(storage).failures) == (None, 0)
    assert storage.verify() == []


def test_what_is_due(provider: Provider) -> None:
    """A source is due after its interval, at once when it is changed, and never while paused."""
    clock = Clock()
    storage = InMemoryStorage(clock=clock)
    add(storage, provider, every_seconds=60)
    provider.lists([A], PATH)
    assert [one.outcome for one in refresh_sources(storage)] == ["changed"]
    clock.advance(59)
    assert not status(storage).is_due
    assert refresh_sources(storage) == []
    clock.advance(1)
    assert [one.outcome for one in refresh_sources(storage)] == ["unchanged"]
    clock.advance(1)
    storage.save_source(source(provider, every_seconds=90))
    assert len(refresh_sources(storage)) == 1
    storage.save_source(source(provider, enabled=False))
    clock.advance(10_000)
    assert refresh_sources(storage) == []
    assert refresh(storage).outcome == "unchanged"


def test_what_somebody_removed_comes_back(any_storage: AnyStorage, provider: Provider) -> None:
    """The known answer is not enough then; it is while all is as it was."""
    pool = add(any_storage, provider)
    provider.lists([A, B], PATH, etag='"1"')
    refresh(any_storage)
    refresh(any_storage)
    asked = [each.headers.get("if-none-match") for each in provider.asked]
    assert asked == [None, '"1"']
    gone = min(any_storage.list_proxies(str(pool.id)), key=lambda proxy: str(proxy.host))
    any_storage.delete_proxy(str(gone.id))
    assert refresh(any_storage).outcome == "changed"
    assert addresses(any_storage, pool) == {A, B}


def test_what_others_brought_is_missed_when_it_goes(
    any_storage: AnyStorage, provider: Provider
) -> None:
    """A list that stays as it is still brings back what another source, or somebody, removed."""
    pool = add(any_storage, provider)
    other = source(provider, "/other", max_removed="100%").model_copy(update={"name": "other"})
    any_storage.save_source(other)
    mine = Proxy(host="192.0.2.4", port=8080, protocol="http", pool_id=pool.id, status="active")
    any_storage.import_proxies(pool.id, [mine])
    provider.lists([A, B], "/other", etag='"1"')
    refresh_sources(any_storage, ["other"])
    provider.lists([B, C, D], PATH, etag='"1"')
    assert refresh(any_storage).outcome == "changed"
    assert refresh(any_storage).outcome == "unchanged"
    provider.lists([A], "/other", etag='"2"')
    refresh_sources(any_storage, ["other"])
    (gone,) = [each for each in any_storage.list_proxies(str(pool.id)) if each.source is None]
    any_storage.delete_proxy(str(gone.id))
    done = refresh(any_storage)
    assert (done.outcome, done.counts and done.counts.added) == ("changed", 2)
    assert addresses(any_storage, pool) == {A, B, C, D}
    refresh(any_storage)
    assert provider.asked[-1].headers.get("if-none-match") == '"1"'  # Now all are its own.


def test_one_refreshes_at_a_time(any_storage: AnyStorage, provider: Provider) -> None:
    """Who comes second leaves it to the first; a claim that was lost writes nothing."""
    pool = add(any_storage, provider)
    provider.lists([A], PATH)
    provider.hold = threading.Event()
    first: list[SourceRefresh] = []
    worker = threading.Thread(target=lambda: first.append(refresh(any_storage)))
    worker.start()
    assert provider.arrived.wait(30)
    assert refresh(any_storage).outcome == "busy"
    assert refresh_sources(any_storage) == []
    provider.hold.set()
    worker.join()
    assert first[0].outcome == "changed"
    lost = any_storage.claim_source("shop", for_seconds=-1)
    taken = any_storage.claim_source("shop")
    assert lost is not None
    assert taken is not None
    known = any_storage.list_proxies(str(pool.id))
    proxy = known[0].model_copy(update={"port": 81})
    with pytest.raises(PharoxError, match="took over"):
        any_storage.sync_source(lost, [proxy], keeps_unlisted=True)
    assert not any_storage.finish_refresh(lost, None)
    assert any_storage.finish_refresh(taken, None)
    assert refresh(any_storage).outcome == "unchanged"


def test_tasks_refresh_too(any_storage: AnyStorage, provider: Provider) -> None:
    """A task that is cancelled while it fetches gives its claim back and changes nothing."""
    pool = add(any_storage, provider)
    provider.lists([A], PATH)

    async def work() -> list[SourceRefresh]:
        storage = for_tasks(any_storage)
        provider.hold = threading.Event()
        stopped = asyncio.create_task(refresh_sources_async(storage, ["shop"]))
        await asyncio.to_thread(provider.arrived.wait, 30)
        stopped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopped
        provider.hold.set()
        assert addresses(any_storage, pool) == set()
        done = await refresh_sources_async(storage)
        assert await storage.list_sources() == any_storage.list_sources()
        assert await storage.get_source("shop") == any_storage.get_source("shop")
        await storage.close()
        return done

    assert [one.outcome for one in asyncio.run(work())] == ["changed"]
    assert addresses(any_storage, pool) == {A}


def test_events_of_a_refresh_belong_together(any_storage: AnyStorage, provider: Provider) -> None:
    """What came and went has the correlation id of the event that sums it up."""
    add(any_storage, provider)
    provider.lists([A, B], PATH)
    refresh(any_storage)
    kinds = (ProxyRegistered, SourceRefreshed)
    told = [event for event in any_storage.events() if isinstance(event, kinds)]
    assert len(told) == 3
    assert len({event.correlation_id for event in told}) == 1
    assert (told[0].correlation_id or "").startswith("source shop ")


def test_settings_are_kept(any_storage: AnyStorage, provider: Provider) -> None:
    """They are as they were saved, and the same ones again are no change."""
    wanted = source(
        provider,
        options={"max_concurrency": "unlimited", "line": "host:port", "cost_per_gb": "1.50"},
        every_seconds=1.5,
    )
    with pytest.raises(PoolNotFoundError):
        any_storage.save_source(wanted)
    for name in ("pool", "other"):
        any_storage.save_pool(ProxyPool(name=name))
    assert any_storage.save_source(wanted)
    assert not any_storage.save_source(wanted)
    assert any_storage.get_source("shop") == wanted
    assert status(any_storage).options == wanted.options
    with pytest.raises(InvalidInputError, match="remove it first"):
        any_storage.save_source(wanted.model_copy(update={"pool_name": "other"}))
    changed = wanted.model_copy(update={"headers": {"X-Key": SecretStr("another")}})
    assert any_storage.save_source(changed)
    assert any_storage.get_source("shop") == changed
    assert any_storage.list_sources("other") == []
    assert any_storage.remove_source("shop")
    assert not any_storage.remove_source("shop")
    with pytest.raises(PharoxError, match="no source 'shop'"):
        refresh(any_storage)
    any_storage.save_source(wanted)
    any_storage.delete_pool(str(status(any_storage).pool_id))
    assert any_storage.list_sources() == []
    assert any_storage.verify() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "ftp://provider.example/list"}, "an http"),
        ({"url": f"provider.example/{TOKEN}"}, "an http"),
        ({"url": f"http://provider.example:port/{TOKEN}"}, "an http"),
        ({"url": f"http:///{TOKEN}"}, "an http"),
        ({"headers": {"Bad Name": HEADER}}, "name of a header"),
        ({"headers": {"X": f"{HEADER}\r\nY: z"}}, "no line of ASCII"),
        ({"headers": {"X": "1", "x": "2"}}, "given twice"),
        ({"headers": {"Accept-Encoding": "br"}}, "set by each fetch"),
        ({"every_seconds": 0.5}, "every_seconds"),
        ({"every_seconds": float("inf")}, "every_seconds"),
        ({"max_removed": "half"}, "50%"),
        ({"max_removed": "101%"}, "100 %"),
        ({"name": " "}, "empty"),
        ({"options": {"format": "xml"}}, "format"),
        ({"options": {"max_concurrency": 0}}, "max_concurrency"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    """What is wrong is refused with its reason, which repeats no secret."""
    given = {"name": "s", "pool_name": "p", "url": "http://provider.example/x"}
    with pytest.raises(InvalidInputError, match=message) as refused:
        ProxySource(**{**given, **changes})
    assert TOKEN not in f"{refused.value}{refused.value.__cause__}"
    assert HEADER not in f"{refused.value}{refused.value.__cause__}"


def _stored(storage: PostgresStorage) -> str:
    """Return the text of all rows about sources and of the log."""
    with storage.engine.connect() as connection:
        tables: Sequence[str] = ("sources", "source_secrets", "source_turns", "events")
        rows = [connection.exec_driver_sql(f"SELECT t::text FROM pharox.{t} t") for t in tables]
        return "".join(str(row) for found in rows for row in found)


def test_secrets_are_encrypted_and_bound(postgres: PostgresStorage, provider: Provider) -> None:
    """The database has no plain text; keys are rotated, and a wrong one is told, not recorded."""
    add(postgres, provider)
    provider.lists([A], PATH)
    assert TOKEN not in _stored(postgres)
    assert HEADER not in _stored(postgres)
    new = "bmV3LWtleS1uZXcta2V5LW5ldy1rZXktbmV3LWtleSE="
    both = PostgresStorage(postgres.engine, secret_keys=[new, SECRET_KEY])
    assert both.rotate_secrets() == 1
    assert postgres.verify() != []
    (failed,) = refresh_sources(postgres)
    assert "PHAROX_SECRET_KEY" in (failed.failure or "")
    only = PostgresStorage(postgres.engine, secret_keys=[new])
    assert only.verify() == []
    assert refresh(only).outcome == "changed"
    without = PostgresStorage(postgres.engine, secret_keys=[])
    with pytest.raises(SecretKeyError, match="needed to keep a source's URL"):
        without.save_source(source(provider).model_copy(update={"name": "another"}))
    assert [each.name for each in without.list_sources()] == ["shop"]
    # Saved again with another key, after its own is lost; without any key that is refused.
    with pytest.raises(SecretKeyError):
        postgres.get_source("shop")
    with pytest.raises(SecretKeyError):
        without.save_source(source(provider))
    assert postgres.save_source(source(provider))
    assert not postgres.save_source(source(provider))
    assert refresh(postgres).outcome == "unchanged"
    postgres.remove_source("shop")
    with only.engine.connect() as connection:
        left = connection.exec_driver_sql("SELECT count(*) FROM pharox.source_secrets").scalar()
    assert left == 0
