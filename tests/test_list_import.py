"""What an import makes of a list, the same in memory and in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharox import (
    AsyncInMemoryStorage,
    InMemoryStorage,
    InvalidInputError,
    PoolNotFoundError,
    Proxy,
    ProxyCredentials,
    ProxyManager,
    ProxyNotFoundError,
    ProxyPool,
    ProxyStatus,
)
from pharox.models import utc_now
from pharox.models.ids import NIL
from pharox.storage import IAsyncStorage, list_import
from pharox.storage.list_import import MaxRemoved
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage
from tests.conftest import (
    SECRET_KEY,
    AnyStorage,
    ledger,
    new_database,
    open_async_engine,
    threads,
    types_of,
)

Account = tuple[int, str, str]
"""Port, user and password; no credentials if both are empty."""


def listed(*accounts: Account, source: str | None = None) -> list[Proxy]:
    """Return a list of proxies at one host."""
    return [
        Proxy(
            host="gw.example",
            port=port,
            protocol="http",
            pool_id=NIL,
            status="active",
            max_concurrency=1,
            source=source,
            credentials=ProxyCredentials(user=user, password=password) if user else None,
        )
        for port, user, password in accounts
    ]


def pool_of(storage: AnyStorage) -> UUID:
    pool = ProxyPool(name="pool")
    storage.save_pool(pool)
    return pool.id


def accounts_in(storage: AnyStorage, pool_id: UUID) -> Counter[Account]:
    return Counter(
        (p.port, p.credentials.user, p.credentials.password.get_secret_value())
        if p.credentials
        else (p.port, "", "")
        for p in storage.list_proxies(str(pool_id))
    )


class TestOneAccount:
    def test_sessions_in_the_password_are_proxies_of_their_own(
        self, any_storage: AnyStorage
    ) -> None:
        """Three passwords of one user are three proxies, and known the second time."""
        pool = pool_of(any_storage)
        sessions = listed(*((1, "ann", f"pw_session-{n}") for n in range(3)))
        first = any_storage.import_list(pool, [sessions])
        assert (first.new, first.known, first.changed) == (3, 0, 0)
        again = any_storage.import_list(pool, [[each] for each in sessions])
        assert (again.new, again.known, again.changed) == (0, 3, 0)
        assert any_storage.verify() == []

    def test_a_list_of_sessions_may_come_in_any_batches(self, any_storage: AnyStorage) -> None:
        """That the second session comes a batch later makes it no changed one."""
        pool = pool_of(any_storage)
        batches = [listed((1, "ann", f"pw{n}")) for n in range(3)]
        report = any_storage.import_list(pool, batches)
        assert (report.new, report.changed) == (3, 0)

    def test_one_other_password_is_a_change(self, any_storage: AnyStorage) -> None:
        """Where list and pool have one each, the pool's stays as it is, and it is told."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed((1, "ann", "old")))
        report = any_storage.import_list(pool, [listed((1, "ann", "new"))])
        assert (report.new, report.known, report.changed, report.updated) == (0, 0, 1, 0)
        assert accounts_in(any_storage, pool) == Counter([(1, "ann", "old")])
        (change,) = report.changes
        assert [change.proxy_id] == [p.id for p in any_storage.list_proxies(str(pool))]

    def test_an_update_replaces_the_password_and_keeps_the_proxy(
        self, any_storage: AnyStorage
    ) -> None:
        """The proxy keeps its id, its lease and its description; it is known from then on."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed((1, "ann", "old"), source="a"))
        lease = ProxyManager(any_storage).acquire_proxy("pool")
        (before,) = any_storage.list_proxies(str(pool))
        changed = listed((1, "ann", "new"), source="b")
        report = any_storage.import_list(pool, [changed], update=True)
        assert (report.new, report.changed, report.updated) == (0, 0, 1)
        (after,) = any_storage.list_proxies(str(pool))
        assert lease is not None
        assert (after.id, after.current_leases, after.source) == (before.id, 1, "a")
        assert accounts_in(any_storage, pool) == Counter([(1, "ann", "new")])
        assert any_storage.import_list(pool, [changed]).known == 1
        assert any_storage.verify() == []

    def test_a_password_that_comes_back_is_new_again(self, any_storage: AnyStorage) -> None:
        """An id made of the old password may be in use; the proxy is registered all the same."""
        pool = pool_of(any_storage)
        old, new = (1, "ann", "old"), (1, "ann", "new")
        any_storage.import_proxies(pool, listed(old))
        any_storage.import_list(pool, [listed(new)], update=True)
        report = any_storage.import_list(pool, [listed(old, new)])
        assert (report.new, report.known) == (1, 1)
        assert accounts_in(any_storage, pool) == Counter([old, new])

    def test_several_in_the_pool_make_another_a_new_one(self, any_storage: AnyStorage) -> None:
        """Nobody could say which of two passwords was replaced by a third."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed((1, "ann", "a"), (1, "ann", "b")))
        report = any_storage.import_list(pool, [listed((1, "ann", "c"))], update=True)
        assert (report.new, report.updated) == (1, 0)

    def test_one_that_is_known_makes_the_other_a_new_one(self, any_storage: AnyStorage) -> None:
        """A list with the pool's own password and another has two proxies, in any order."""
        for number, order in enumerate((("old", "new"), ("new", "old"))):
            pool = ProxyPool(name=f"pool {number}")
            any_storage.save_pool(pool)
            any_storage.import_proxies(pool.id, listed((1, "ann", "old")))
            batches = [listed((1, "ann", password)) for password in order]
            report = any_storage.import_list(pool.id, batches, update=True)
            assert (report.new, report.known, report.updated) == (1, 1, 0)

    def test_without_credentials_it_is_another_proxy(self, any_storage: AnyStorage) -> None:
        """An address with and without credentials are two proxies, neither a changed one."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed((1, "ann", "pw")))
        report = any_storage.import_list(pool, [listed((1, "", ""))])
        assert (report.new, report.changed) == (1, 0)

    def test_what_waits_is_bounded(
        self, any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of very many changed ones some are decided before the list ends, and none is lost."""
        monkeypatch.setattr(list_import, "WAITING", 2)
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed(*((n, "ann", "old") for n in range(1, 8))))
        batches = [listed((n, "ann", "new")) for n in range(1, 8)]
        report = any_storage.import_list(pool, batches, update=True)
        assert (report.new, report.updated) == (0, 7)
        assert accounts_in(any_storage, pool) == Counter((n, "ann", "new") for n in range(1, 8))


ACCOUNT = st.tuples(
    st.sampled_from([1, 2]), st.sampled_from(["", "ann", "bob"]), st.sampled_from(["p", "q", "r"])
).map(lambda account: account if account[1] else (account[0], "", ""))


@pytest.fixture(scope="module")
def ledger_for_lists(server_url: str, template: str) -> Iterator[PostgresStorage]:
    """One ledger for all examples, each in a pool of its own."""
    name = f"pharox_{uuid4().hex[:12]}"
    with new_database(server_url, name, template) as url, ledger(url) as storage:
        yield storage


@given(
    known=st.lists(ACCOUNT, max_size=5, unique=True),
    batches=st.lists(st.lists(ACCOUNT, max_size=4), max_size=3),
    update=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_memory_and_postgres_decide_alike_and_as_the_rule_says(
    ledger_for_lists: PostgresStorage,
    known: list[Account],
    batches: list[list[Account]],
    update: bool,
) -> None:
    """A listed account is known, changed or new by the rule, however the list is cut."""
    expected = by_the_rule(known, [each for batch in batches for each in batch], update=update)
    for storage in (InMemoryStorage(), ledger_for_lists):
        pool = ProxyPool(name=f"pool {uuid4()}")
        storage.save_pool(pool)
        storage.import_proxies(pool.id, listed(*known))
        before = accounts_in(storage, pool.id)
        assert before == Counter(known)
        report = storage.import_list(pool.id, [listed(*batch) for batch in batches], update=update)
        counts = (report.new, report.known, report.changed, report.updated)
        assert (accounts_in(storage, pool.id), counts) == expected
        ids = {p.id for p in storage.list_proxies(str(pool.id))}
        assert report.listed.among(ids) <= ids


def by_the_rule(
    known: Sequence[Account], given: Sequence[Account], *, update: bool
) -> tuple[Counter[Account], tuple[int, int, int, int]]:
    """Decide the same over the whole list at once."""
    pool, counts = list(known), Counter[str]()
    wanted = list(dict.fromkeys(given))
    counts["known"] = len(given) - len(wanted)
    for account in wanted:
        place = account[:2]
        in_pool = [each for each in known if each[:2] == place]
        in_list = [each for each in wanted if each[:2] == place]
        if account in known:
            counts["known"] += 1
        elif len(in_pool) == len(in_list) == 1:
            counts["updated" if update else "changed"] += 1
            if update:
                pool.remove(in_pool[0])
                pool.append(account)
        else:
            counts["new"] += 1
            pool.append(account)
    names = ("new", "known", "changed", "updated")
    return Counter(pool), tuple(counts[name] for name in names)  # type: ignore[return-value]


class TestRemoving:
    def test_what_the_source_has_no_more_goes(self, any_storage: AnyStorage) -> None:
        """Of the same source only; other proxies of the pool stay."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed((1, "ann", "p"), (2, "", ""), source="a"))
        any_storage.import_proxies(pool, listed((3, "", ""), source="b"))
        any_storage.import_proxies(pool, listed((4, "", "")))
        report = any_storage.import_list(pool, [listed((2, "", ""), source="a")])
        removal = any_storage.remove_unlisted(pool, report.listed, source="a")
        assert (removal.had, removal.gone, removal.removed, removal.leased) == (2, 1, 1, 0)
        assert {port for port, _, _ in accounts_in(any_storage, pool)} == {2, 3, 4}
        assert types_of(any_storage).count("ProxyRemoved") == 1
        assert any_storage.verify() == []

    def test_what_is_leased_goes_the_next_time(self, any_storage: AnyStorage) -> None:
        """A held proxy is named and stays; once given back it goes."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed((1, "", ""), source="a"))
        manager = ProxyManager(any_storage)
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        report = any_storage.import_list(pool, [[]])
        every = MaxRemoved(share=1)
        removal = any_storage.remove_unlisted(pool, report.listed, source="a", max_removed=every)
        assert (removal.removed, removal.leased_ids) == (0, [lease.proxy_id])
        manager.release_proxy(lease)
        removal = any_storage.remove_unlisted(pool, report.listed, source="a", max_removed=every)
        assert (removal.removed, removal.leased) == (1, 0)

    @pytest.mark.parametrize(
        ("most", "removed"),
        [
            (MaxRemoved(share=0.5), 0),
            (MaxRemoved(share=0.75), 3),
            (MaxRemoved(count=2), 0),
            (MaxRemoved(count=3), 3),
        ],
    )
    def test_not_more_goes_than_may(
        self, any_storage: AnyStorage, most: MaxRemoved, removed: int
    ) -> None:
        """Three of four are gone: all of them are removed, or none."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed(*((n, "", "") for n in range(1, 5))))
        report = any_storage.import_list(pool, [listed((4, "", ""))])
        removal = any_storage.remove_unlisted(pool, report.listed, source=None, max_removed=most)
        assert (removal.gone, removal.removed, removal.refused) == (3, removed, not removed)
        assert len(any_storage.list_proxies(str(pool))) == 4 - removed

    def test_what_is_new_does_not_raise_the_bound(self, any_storage: AnyStorage) -> None:
        """A list of other proxies altogether, such as a wrong file, removes none of the old."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed(*((n, "", "") for n in range(1, 5))))
        report = any_storage.import_list(pool, [listed(*((n, "", "") for n in range(5, 9)))])
        removal = any_storage.remove_unlisted(pool, report.listed, source=None)
        assert (removal.had, removal.gone, removal.refused) == (4, 4, True)

    @pytest.mark.parametrize("wrong", [{}, {"count": 1, "share": 0.5}, {"share": 2}, {"count": -1}])
    def test_a_bound_is_a_number_or_a_share(self, wrong: dict[str, float]) -> None:
        """What is neither, both or out of range is refused."""
        with pytest.raises(InvalidInputError):
            MaxRemoved(**wrong)  # type: ignore[arg-type]


class TestStatus:
    def test_a_change_keeps_the_status_that_was_decided_meanwhile(
        self, any_storage: AnyStorage
    ) -> None:
        """A ban between reading a proxy and changing it stays, and so does a check."""
        pool = pool_of(any_storage)
        any_storage.import_proxies(pool, listed((1, "ann", "old")))
        (read,) = any_storage.list_proxies(str(pool))
        any_storage.set_status(read.id, ProxyStatus.BANNED)
        login = ProxyCredentials(user="ann", password="new")
        change = {"country": "DE", "credentials": login, "checked_at": utc_now()}
        any_storage.change_proxy(read.model_copy(update=change))
        after = any_storage.get_proxy(str(read.id))
        assert (after.status, after.country) == (ProxyStatus.BANNED, "DE")
        assert (after.credentials, after.checked_at) == (login, read.checked_at)
        any_storage.import_list(pool, [listed((1, "ann", "newer"))], update=True)
        assert any_storage.get_proxy(str(read.id)).status is ProxyStatus.BANNED
        assert any_storage.verify() == []

    def test_an_unknown_one_cannot_be_changed(self, any_storage: AnyStorage) -> None:
        """It is an error, and nothing is registered."""
        pool = pool_of(any_storage)
        (unknown,) = listed((1, "", ""))
        with pytest.raises(ProxyNotFoundError):
            any_storage.change_proxy(unknown.model_copy(update={"pool_id": pool}))
        assert any_storage.list_proxies(str(pool)) == []


class TestPools:
    def test_a_pool_is_made_where_one_is_given(self, any_storage: AnyStorage) -> None:
        """Without a pool to make, an unknown one is an error; with one it is registered."""
        pool = ProxyPool(name="pool")
        with pytest.raises(PoolNotFoundError):
            any_storage.import_list(pool.id, [listed((1, "", ""))])
        report = any_storage.import_list(pool.id, [listed((1, "", ""))], make=pool)
        assert (report.new, report.pool_id) == (1, pool.id)

    def test_a_name_that_is_taken_is_imported_into(self, any_storage: AnyStorage) -> None:
        """If somebody has registered the name meanwhile, the proxies go into that pool."""
        taken = pool_of(any_storage)
        mine = ProxyPool(name="pool")
        report = any_storage.import_list(mine.id, [listed((1, "", ""))], make=mine)
        assert report.pool_id == taken
        assert len(any_storage.list_proxies(str(taken))) == 1


async def of_awaited(storage: IAsyncStorage) -> tuple[int, int, int, list[str]]:
    """Import, update and remove with a storage that is awaited."""
    assert isinstance(storage, AsyncInMemoryStorage | AsyncPostgresStorage)
    pool = ProxyPool(name="pool")
    await storage.save_pool(pool)
    first = await storage.import_list(pool.id, [listed((1, "ann", "p"), (2, "", ""))])
    second = await storage.import_list(pool.id, [listed((1, "ann", "q"))], update=True)
    removal = await storage.remove_unlisted(pool.id, second.listed, source=None)
    left = await storage.list_proxies(str(pool.id))
    idle = await storage.remove_idle(pool.id, [proxy.id for proxy in left])
    assert [proxy.id for proxy in left] == list(idle)
    return first.new, second.updated, removal.removed, [proxy.url for proxy in left]


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_the_async_twins_import_alike(kind: str, database_url: str) -> None:
    """The storages to be awaited have the same methods with the same results."""

    async def scenario() -> tuple[int, int, int, list[str]]:
        if kind == "memory":
            return await of_awaited(AsyncInMemoryStorage())
        engine = open_async_engine(database_url)
        try:
            return await of_awaited(AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY]))
        finally:
            await engine.dispose()

    assert asyncio.run(scenario()) == (2, 1, 1, ["http://ann:q@gw.example:1"])


def test_imports_at_once_register_each_session_once(postgres: PostgresStorage) -> None:
    """Of four imports of one gateway's list at once, together as many are new as it has."""
    pool = pool_of(postgres)
    sessions = listed(*((1, "ann", f"pw_session-{n}") for n in range(40)))
    new: list[int] = []
    threads(4, lambda _: new.append(postgres.import_proxies(pool, sessions)))
    assert sum(new) == len(postgres.list_proxies(str(pool))) == 40
    assert postgres.verify() == []
