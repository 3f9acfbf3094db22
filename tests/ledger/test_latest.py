"""The last events of the log that match, and the leases of which an id is half known."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharox import InMemoryStorage, InvalidInputError, PharoxError, ProxyManager
from pharox.events import Event
from pharox.history import latest
from pharox.history.finding import find_lease
from pharox.history.sealed_log import last_seq
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.reading import lease_ids_statement
from tests.conftest import AnyStorage, clock_of, fill, pages_read

from .lives import COMMANDS, Command, Life


@given(commands=COMMANDS, number=st.integers(1, 20), places=st.tuples(*[st.integers(0, 60)] * 4))
@settings(max_examples=60)
def test_they_are_the_end_of_all_that_match(
    commands: list[Command], number: int, places: tuple[int, int, int, int]
) -> None:
    """However the log is read backwards: with ranges, times, types, and another condition."""
    storage = InMemoryStorage()
    Life(storage, clock_of(storage)).lead(commands)
    log = list(storage.events())
    moments = [log[place % len(log)].recorded_at for place in places]
    extract = Extract(
        after=min(places[:2]),
        upto=max(places[:2]),
        types=("AcquireMissed", "LeaseAcquired", "LeaseReleased") if places[3] % 2 else None,
        since=min(moments[2:]),
        until=max(moments[2:]) + timedelta(microseconds=1),
    )

    def is_wanted(event: Event) -> bool:
        return bool(event.position % 3)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(latest, "_FIRST", 2)
        patched.setattr(latest, "_GROWTH", 2)
        found = latest.latest(storage, extract, number, is_wanted)
    assert found == list(filter(is_wanted, storage.history(extract)))[-number:]


class Bare(NamedTuple):
    """An event of which nothing matters but its seq."""

    seq: int


class FakeLog:
    """A log of bare seqs, which notes how much of it was read, and in how many stretches."""

    def __init__(self, seqs: list[int]) -> None:
        self.seqs = seqs
        self.read = self.asked = 0

    def history(self, extract: Extract) -> object:
        self.asked += 1
        for seq in self.seqs:
            if extract.after < seq <= extract.upto:
                self.read += 1
                yield Bare(seq)


@settings(max_examples=100)
@given(
    density=st.sampled_from([1, 3, 50, 5000]),
    length=st.integers(0, 30_000),
    low=st.integers(0, 200),
    limit=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_the_newest_events_are_found_without_reading_all(
    density: int, length: int, low: int, limit: int, seed: int
) -> None:
    """However dense they are; and what is read does not grow with the log."""
    choose = random.Random(seed)
    log = FakeLog([seq for seq in range(1, length + 1) if choose.randrange(density) == 0])
    expected = [Bare(seq) for seq in log.seqs if seq > low][-limit:]
    found: list[Any] = latest.newest(cast("Any", log), Extract(low, length), limit)
    assert found == expected
    assert log.read <= 5_000


@pytest.mark.parametrize(("every", "stretches"), [(1, 20), (20, 14), (80, 8)])
def test_what_is_frequent_only_long_ago_is_read_a_few_times(every: int, stretches: int) -> None:
    """A stretch that reached into it is not asked for again and again on the way there."""
    log = FakeLog([*range(1, 200_000, every)])
    found: list[Any] = latest.newest(cast("Any", log), Extract(0, 1_000_000), 3)
    assert found == [Bare(seq) for seq in log.seqs[-3:]]
    assert log.asked <= stretches


def test_a_lease_is_found_by_the_beginning_of_its_id(any_storage: AnyStorage) -> None:
    """With dashes or without, pruned or not; several are listed, too few digits are refused."""
    clock = clock_of(any_storage)
    fill(any_storage, 4)
    manager = ProxyManager(any_storage)
    ids = sorted(
        lease.id
        for number in range(4)
        if (lease := manager.acquire_proxy("pool", f"worker-{number}")) is not None
    )
    for lease_id in ids:
        text = str(lease_id)
        assert find_lease(any_storage, text) == lease_id
        assert any_storage.lease_ids(text[:30]) == any_storage.lease_ids(text[:30].replace("-", ""))
        assert find_lease(any_storage, text[:35].upper()) == lease_id
    assert any_storage.lease_ids(str(ids[0])[:4]) == ids
    assert any_storage.lease_ids(str(ids[0])[:4], limit=2) == ids[:2]
    manager.release_proxy(next(x for x in any_storage.list_leases() if x.id == ids[0]))
    clock.advance(3600)
    any_storage.prune_leases(clock.now)
    assert any_storage.lease_ids(str(ids[0])[:4]) == ids
    with pytest.raises(PharoxError, match=r"several leases begin with .* \(worker-") as several:
        find_lease(any_storage, str(ids[0])[:4])
    assert list(several.value.data["lease_ids"]) == ids
    with pytest.raises(PharoxError, match="no lease has an id that begins with 'ffff'"):
        find_lease(any_storage, "ffff")
    for text in ("fff", "xyzw", "", "-" * 9, "f" * 33):
        with pytest.raises(InvalidInputError, match="is not an id"):
            any_storage.lease_ids(text)


def test_ids_are_looked_up_and_not_counted(postgres: PostgresStorage) -> None:
    """A beginning that all leases share is read as far as is asked, whatever else there is."""
    fill(postgres, 1)
    manager = ProxyManager(postgres)
    values = {"first": UUID(int=0), "last": UUID(int=2**128 - 1), "limit": 5}
    pages = []
    for leases in (20, 300):
        for _ in range(leases):
            lease = manager.acquire_proxy("pool", "worker")
            assert lease is not None
            manager.release_proxy(lease)
        pages.append(pages_read(postgres, lease_ids_statement(postgres.schema), values))
    assert pages[1] <= pages[0] + 10


def test_a_target_s_events_and_a_ledger_sealed_once(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extract names a target; what was sealed before is read without sealing it again."""
    fill(any_storage, 4)
    manager = ProxyManager(any_storage)
    for target in ("shop.example", "other.example", "shop.example", None):
        assert manager.acquire_proxy("pool", "w", target=target)
    of_target = Extract(target="shop.example")
    told = [event for event in any_storage.events() if getattr(event, "target", 0) is not None]
    wanted = [event for event in told if getattr(event, "target", 0) == "shop.example"]
    assert list(any_storage.history(of_target)) == wanted
    assert len(wanted) == 2
    end = last_seq(any_storage)
    if isinstance(any_storage, PostgresStorage):
        monkeypatch.setattr(any_storage, "seal", lambda: pytest.fail("it was sealed again"))
    assert latest.newest(any_storage, of_target._replace(upto=end), 1) == wanted[-1:]
