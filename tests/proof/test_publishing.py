"""What was published stays, and nothing is signed that contradicts it; on both storages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from pharox import AsyncInMemoryStorage, InMemoryStorage
from pharox.errors import (
    ArchivedError,
    CheckpointError,
    ConflictError,
    InvalidInputError,
    PublishingError,
)
from pharox.ledger.archive import archive
from pharox.ledger.archive.files import EVENTS, read, write
from pharox.ledger.archive.reading import WithArchive
from pharox.ledger.publishing import CheckpointFile, CheckpointUrl, Publisher, Witness, prove
from pharox.ledger.publishing.publisher import Place
from pharox.log.canonical import canonical, digest, row_of
from pharox.log.rows import event_from_row, row_from_event
from pharox.log.tree import Tree, TreeHead, leaf_hash
from pharox.proof import (
    Checkpoint,
    SigningKey,
    new_checkpoint,
    proves_consistency,
    proves_inclusion,
    read_checkpoints,
    signed_heads,
)
from pharox.proof.checkpoints import entry
from pharox.proof.notes import signed as signed_by
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, clock_of, fill, for_tasks, run_sql, serving
from tests.ledger.full_parts import full_parts, lease_often, small_parts

from .provable import Server

KEY = SigningKey.generate("example.com/log")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a witness and object store."""
    with serving(Server) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def forgetful() -> None:
    """The server knows nothing yet."""
    Server.objects.clear()
    Server.seen.clear()
    Server.status = 0


def published_in(path: Path) -> list[int]:
    """Return the sizes in a file of checkpoints."""
    return [each.head.size for each in read_checkpoints(path.read_bytes())]  # type: ignore[union-attr]


class TestProofs:
    def test_each_event_and_each_size_is_proven(self, any_storage: AnyStorage) -> None:
        """Across tiles of the tree, which is over the digests of events; tasks get the same."""
        fill(any_storage, 300)
        whole = any_storage.tree_head()
        events = list(any_storage.events())
        for seq in (1, 2, 255, 256, 257, 258, 300, whole.size):
            inclusion = any_storage.prove_inclusion(seq)
            leaf = leaf_hash(sha256(inclusion.event).digest())
            assert proves_inclusion(leaf, seq - 1, whole, inclusion.hashes)
            assert event_from_row({**row_of(inclusion.event), "seq": seq}) == events[seq - 1]
        leaves = list(map(leaf_hash, _digests(any_storage)))
        for size in (0, 1, 2, 255, 256, 257, whole.size):
            head = any_storage.tree_head(size)
            assert head.root == Tree(leaves[:size]).root((0, size))
            proof = any_storage.prove_consistency(size)
            assert proves_consistency(head, whole, proof)
        assert asyncio.run(_for_tasks(any_storage)) == (
            any_storage.tree_size(),
            any_storage.tree_head(77),
            any_storage.prove_inclusion(33),
            any_storage.prove_consistency(77),
        )

    def test_what_the_log_does_not_have_is_refused(self, any_storage: AnyStorage) -> None:
        """With an error that says so."""
        fill(any_storage, 1)
        last = any_storage.tree_size()
        for ask in (
            lambda: any_storage.tree_head(last + 1),
            lambda: any_storage.tree_head(-1),
            lambda: any_storage.prove_inclusion(0),
            lambda: any_storage.prove_inclusion(last + 1),
            lambda: any_storage.prove_inclusion(last, last - 1),
            lambda: any_storage.prove_consistency(last + 1),
        ):
            with pytest.raises(InvalidInputError):
                ask()

    def test_a_log_in_memory_that_was_changed_is_found(self) -> None:
        """Changed, cut, and signed twice."""
        storage = InMemoryStorage()
        fill(storage, 5)
        heads = [storage.tree_head(4), storage.tree_head()]
        assert storage.verify(heads=heads) == []
        log = storage._state.log
        log[4] = log[4].model_copy(update={"actor": "mallory"})
        assert [each.key["size"] for each in storage.verify(heads=heads)] == [heads[1].size]
        del log[4:]
        (finding,) = [each for each in storage.verify(heads=heads) if each.check == "checkpoint"]
        assert finding.expected == {"events": heads[1].size}
        twice = [heads[0], TreeHead(4, b"\0" * 32)]
        assert {"roots": 1} in [each.expected for each in storage.verify(heads=twice)]

    def test_an_archived_event_is_proven_from_its_file(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """It keeps its place: checkpoints from before and after fit, and it is still proven."""
        clock = full_parts(postgres)
        with CheckpointFile(tmp_path / "checkpoints", KEY.verifier) as file:
            publisher = Publisher(postgres, KEY, [file])
            early = publisher.publish()
            assert early is not None
            outcome = archive(postgres, clock.now - timedelta(minutes=5), tmp_path / "archive")
            last = outcome.archived[-1].last_seq
            assert last is not None
            postgres.ensure_consumer("later")
            late = publisher.publish()
            assert late is not None
        heads = [each.checkpoint.head for each in (early, late)]
        assert early.checkpoint.head.size >= last > 20
        assert postgres.verify(heads=heads) == []
        with pytest.raises(ArchivedError, match="--archive"):
            prove(postgres, 3, [early.checkpoint])
        log = WithArchive(postgres, tmp_path / "archive")
        for seq in (1, 3, last, last + 1):
            for checkpoint in (early.checkpoint, late.checkpoint):
                assert prove(log, seq, [checkpoint]).check(KEY.verifier).seq == seq

    def test_archived_events_are_compared_where_their_files_are_named(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """All fits; a changed file is found, and one that lacks an event; a missing one is told."""
        clock = full_parts(postgres)
        early = postgres.tree_head(10)
        outcome = archive(postgres, clock.now - timedelta(minutes=5), tmp_path)
        file = outcome.archived[0].file
        heads = [early, postgres.tree_head()]
        log = WithArchive(postgres, tmp_path)
        assert log.verify(heads=heads) == []
        assert not any("archived" in note for note in log.verify_notes())
        assert any("archived" in note for note in postgres.verify_notes())

        rows = list(read(file, EVENTS))
        changed = next(row for row in rows if row["seq"] > early.size)
        file.unlink()
        mallory = [row if row is not changed else {**row, "actor": "mallory"} for row in rows]
        write(file, EVENTS, mallory)
        assert postgres.verify(heads=heads) == []
        (finding,) = log.verify(heads=heads)
        assert (finding.check, finding.key) == ("digests", {"seq": changed["seq"]})

        file.unlink()
        resealed = {**changed, "actor": "mallory"}
        resealed["digest"] = digest(resealed)
        write(file, EVENTS, [row if row is not changed else resealed for row in rows])
        (finding,) = log.verify(heads=heads)
        first, last = early.size + 1, heads[-1].size
        assert (finding.check, finding.key["first_changed"]) == ("checkpoint", f"{first}..{last}")

        file.unlink()
        write(file, EVENTS, [row for row in rows if row is not changed])
        (finding,) = log.verify(heads=heads)
        assert finding.found == {"events": changed["seq"] - 1}
        file.unlink()
        with pytest.raises(ArchivedError, match="no such file"):
            log.verify(heads=heads)

    def test_more_of_the_tree_may_be_kept_than_is_archived(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """Publishing kept tiles behind the cut: its tail stays, and later checkpoints fit."""
        small_parts(postgres, 350)
        clock = clock_of(postgres)
        fill(postgres, 3)
        lease_often(postgres, clock, 520)
        clock.advance(3600)
        early = postgres.tree_head()
        assert early.size > 1024
        (*_, part) = archive(postgres, clock.now - timedelta(minutes=5), tmp_path).archived
        assert part.last_seq is not None
        assert 512 < part.last_seq < 768
        assert postgres.tree_head(part.last_seq).size == part.last_seq
        postgres.ensure_consumer("later")
        assert postgres.verify(heads=[early, postgres.tree_head()]) == []


def _digests(storage: AnyStorage) -> list[bytes]:
    """Return the digests of all events, as they are sealed."""
    if isinstance(storage, InMemoryStorage):
        rows = map(row_from_event, storage.events())
        return [sha256(canonical(row)).digest() for row in rows]
    query = "SELECT digest FROM pharox.seals ORDER BY seq"
    return [cast("bytes", digest) for (digest,) in run_sql(storage.engine, query)]


async def _for_tasks(storage: AnyStorage) -> object:
    tasks = for_tasks(storage)
    try:
        return (
            await tasks.tree_size(),
            await tasks.tree_head(77),
            await tasks.prove_inclusion(33),
            await tasks.prove_consistency(77),
        )
    finally:
        if not isinstance(tasks, AsyncInMemoryStorage):
            await tasks.close()


class TestPublishing:
    def test_it_publishes_what_is_new_and_goes_on_where_it_was(
        self, any_storage: AnyStorage, tmp_path: Path
    ) -> None:
        """Nothing for no events and for no new ones; the next process continues the file."""
        path = tmp_path / "checkpoints"
        with CheckpointFile(path, KEY.verifier) as file:
            publisher = Publisher(any_storage, KEY, [file])
            assert publisher.publish() is None
            fill(any_storage, 3)
            assert publisher.publish() is not None
            assert publisher.publish() is None
            with pytest.raises(ConflictError, match="another process"):
                CheckpointFile(path, KEY.verifier)
        path.write_bytes(path.read_bytes() + b"example.com/log\n12")  # killed while it wrote
        any_storage.ensure_consumer("new")
        with CheckpointFile(path, KEY.verifier) as file:
            Publisher(any_storage, KEY, [file]).publish()
        size = any_storage.tree_size()
        assert published_in(path) == [size - 1, size]

    def test_it_signs_no_second_history(self, tmp_path: Path) -> None:
        """A log that is shorter, or another, is refused, and nothing is written."""
        path = tmp_path / "checkpoints"
        storage, other = InMemoryStorage(), InMemoryStorage()
        fill(storage, 3)
        with CheckpointFile(path, KEY.verifier) as file:
            Publisher(storage, KEY, [file]).publish()
            before = path.read_bytes()
            for why in ("was cut", "not the one"):
                with pytest.raises(CheckpointError, match=why):
                    Publisher(other, KEY, [file]).publish()
                fill(other, 9, name=why)
        assert path.read_bytes() == before

    def test_it_signs_no_second_history_for_another_place(
        self, tmp_path: Path, server: str
    ) -> None:
        """A new process knows no object of a store, and a new file is empty: the record tells."""
        storage, other, record = InMemoryStorage(), InMemoryStorage(), tmp_path / "key.signed"
        fill(storage, 3)
        fill(other, 9)
        with CheckpointFile(record, KEY.verifier) as signed:
            Publisher(storage, KEY, [CheckpointUrl(server)], signed=signed).publish()
            with pytest.raises(ConflictError):
                CheckpointFile(record, KEY.verifier)
        objects = dict(Server.objects)
        with (
            CheckpointFile(record, KEY.verifier) as signed,
            CheckpointFile(tmp_path / "new", KEY.verifier) as new,
        ):
            for place in (CheckpointUrl(server), new):
                with pytest.raises(CheckpointError, match="not the one"):
                    Publisher(other, KEY, [place], signed=signed).publish()
            assert Publisher(storage, KEY, [new], signed=signed).publish() is not None
        assert Server.objects == objects
        assert published_in(record) == published_in(tmp_path / "new") == [storage.tree_size()]

    def test_what_is_signed_is_recorded_before_anybody_sees_it(
        self, tmp_path: Path, server: str
    ) -> None:
        """Also if no place takes it."""
        storage, record = InMemoryStorage(), tmp_path / "key.signed"
        fill(storage, 3)
        Server.status = 503
        with CheckpointFile(record, KEY.verifier) as signed:
            Publisher(storage, KEY, [CheckpointUrl(server)], signed=signed).publish()
        assert published_in(record) == [storage.tree_size()]

    def test_a_file_that_was_cut_anywhere_goes_on(self, tmp_path: Path) -> None:
        """At every byte of the last checkpoint, which has two signatures; also behind zeros."""
        path, storage = tmp_path / "checkpoints", InMemoryStorage()
        fill(storage, 3)
        head = storage.tree_head()
        first = new_checkpoint(storage.tree_head(2), KEY)
        last = new_checkpoint(head, KEY)
        note = signed_by(last.note.text, [KEY, Server.witness])
        content, whole = entry(first), entry(first) + entry(Checkpoint(note))
        for size in range(len(whole) + 1):
            for zeros in (b"", b"\0" * 5):
                path.write_bytes(whole[:size] + zeros)
                with CheckpointFile(path, KEY.verifier) as file:
                    file.publish(last)
                heads, wrong = signed_heads(path.read_bytes(), KEY.verifier)
                assert wrong == []
                assert heads[-1] == head
                assert size < len(content) - 1 or heads[0] == first.head

    @pytest.mark.parametrize("content", [b"notes of mine\n", b"example.com/logs\n\n", b"a\n\nb\n"])
    def test_a_file_of_something_else_is_left_alone(self, tmp_path: Path, content: bytes) -> None:
        """Also if it was signed by another key."""
        path = tmp_path / "notes"
        path.write_bytes(content)
        with pytest.raises(InvalidInputError):
            CheckpointFile(path, KEY.verifier)
        assert path.read_bytes() == content

    @pytest.mark.parametrize("every", [{"every_events": 5}, {"every_s": 0.05}])
    def test_it_goes_on_until_it_is_stopped(self, tmp_path: Path, every: dict[str, Any]) -> None:
        """After so many events, or so often; what it published is complete at any time."""
        path, stop, storage = tmp_path / "checkpoints", threading.Event(), InMemoryStorage()
        fill(storage, 1)
        seen = threading.Event()

        class Told(CheckpointFile):
            def publish(self, checkpoint: Checkpoint) -> None:
                super().publish(checkpoint)
                seen.set()

        with Told(path, KEY.verifier) as file:
            publisher = Publisher(storage, KEY, [file])
            thread = threading.Thread(target=publisher.run, args=(stop,), kwargs=every)
            thread.start()
            try:
                for number in range(2):
                    assert seen.wait(30)
                    seen.clear()
                    for each in range(5):
                        storage.ensure_consumer(f"{number} {each}")
                assert seen.wait(30)
            finally:
                stop.set()
                thread.join()
        assert published_in(path)[-1] == storage.tree_size()

    def test_what_failed_is_tried_again_without_new_events(self, server: str) -> None:
        """Until the server takes it."""
        storage, stop = InMemoryStorage(), threading.Event()
        fill(storage, 1)
        Server.status = 503
        failed, taken = threading.Event(), threading.Event()

        class Told(CheckpointUrl):
            def publish(self, checkpoint: Checkpoint) -> None:
                try:
                    super().publish(checkpoint)
                except PublishingError:
                    failed.set()
                    raise
                taken.set()

        run = Publisher(storage, KEY, [Told(server)]).run
        thread = threading.Thread(target=run, args=(stop,), kwargs={"every_events": 1000})
        thread.start()
        try:
            assert failed.wait(30)
            Server.status = 0
            assert taken.wait(30)
        finally:
            stop.set()
            thread.join()

    def test_a_cadence_has_to_be_given(self) -> None:
        """And one that is possible; and a place."""
        publisher = Publisher(InMemoryStorage(), KEY, [CheckpointUrl("https://x.example")])
        impossible: list[dict[str, Any]] = [{}, {"every_events": 0}, {"every_s": -1}]
        for every in impossible:
            with pytest.raises(InvalidInputError):
                publisher.run(**every)
        with pytest.raises(InvalidInputError):
            Publisher(InMemoryStorage(), KEY, [])


class TestWeb:
    def test_an_object_store_gets_each_checkpoint_once(self, server: str) -> None:
        """An object of its own; what is there is compared, and never overwritten."""
        storage, other = InMemoryStorage(), InMemoryStorage()
        fill(storage, 3)
        assert Publisher(storage, KEY, [CheckpointUrl(f"{server}/store/")]).publish()
        ((path, content),) = Server.objects.items()
        assert path == f"/store/{storage.tree_size():020}"
        assert Publisher(storage, KEY, [CheckpointUrl(f"{server}/store")]).publish()
        fill(other, 3)
        with pytest.raises(CheckpointError, match="another log"):
            Publisher(other, KEY, [CheckpointUrl(f"{server}/store")]).publish()
        assert Server.objects == {path: content}

    def test_what_a_store_got_is_read_like_a_file(self, server: str) -> None:
        """One object, and several one after another: the heads that were signed."""
        storage, heads = InMemoryStorage(), []
        for number in range(3):
            fill(storage, 2, name=f"pool {number}")
            witness = Witness(server, Server.witness.verifier)
            Publisher(storage, KEY, [CheckpointUrl(server)], [witness]).publish()
            heads.append(storage.tree_head())
        objects = list(Server.objects.values())
        assert signed_heads(objects[0], KEY.verifier) == (heads[:1], [])
        assert signed_heads(b"".join(objects), KEY.verifier) == (heads, [])

    def test_a_witness_cosigns_what_has_grown(self, server: str, any_storage: AnyStorage) -> None:
        """Its signature is on the checkpoint; a new process asks it for the size it saw."""
        key, sizes = Server.witness.verifier, []
        for number in range(3):
            fill(any_storage, 2, name=f"pool {number}")
            witness = Witness(f"{server}/", key)
            published = Publisher(any_storage, KEY, [CheckpointUrl(server)], [witness]).publish()
            assert published is not None
            assert published.failures == ()
            assert key.has_signed(published.checkpoint.note)
            assert key.seen_at(published.checkpoint.note) is not None
            sizes.append(Server.seen[KEY.name].size)
        assert sizes == sorted(set(sizes))

    def test_a_witness_tells_of_a_log_that_went_back(self, server: str) -> None:
        """Shorter, or another one: nothing is published."""
        storage, key = InMemoryStorage(), Server.witness.verifier
        fill(storage, 5)
        Publisher(storage, KEY, [CheckpointUrl(server)], [Witness(server, key)]).publish()
        before = dict(Server.objects)
        other = InMemoryStorage()
        for more, why in ((2, "has seen this log"), (3, "another log"), (9, "another log")):
            fill(other, more, name=f"pool {more}")
            publisher = Publisher(other, KEY, [CheckpointUrl(server)], [Witness(server, key)])
            with pytest.raises(CheckpointError, match=why):
                publisher.publish()
        assert Server.objects == before

    def test_who_does_not_answer_keeps_no_other_from_it(self, server: str, tmp_path: Path) -> None:
        """The file gets the checkpoint; what failed is told, and tried again with the next."""
        storage, path = InMemoryStorage(), tmp_path / "checkpoints"
        fill(storage, 2)
        Server.status = 503
        with CheckpointFile(path, KEY.verifier) as file:
            places: list[Place] = [CheckpointUrl(server), file]
            witness = Witness(server, Server.witness.verifier)
            published = Publisher(storage, KEY, places, [witness]).publish()
            assert published is not None
            assert len(published.failures) == 2
            Server.status = 0
            again = Publisher(storage, KEY, places, [witness]).publish()
            assert again is not None
            assert again.failures == ()
        assert published_in(path) == [storage.tree_size()]

    def test_a_false_witness_is_not_believed(self, server: str) -> None:
        """Its signature has to be that of the key that was given."""
        storage = InMemoryStorage()
        fill(storage, 2)
        false = SigningKey.generate(Server.witness.name, Server.witness.verifier.kind)
        witness = Witness(server, false.verifier)
        published = Publisher(storage, KEY, [CheckpointUrl(server)], [witness]).publish()
        assert published is not None
        assert "has not signed" in published.failures[0]

    @pytest.mark.parametrize("url", ["http://example.com/x", "ftp://x", "x", "https:"])
    def test_only_https_leaves_this_machine(self, url: str) -> None:
        """And a witness needs a witness's key."""
        with pytest.raises(InvalidInputError):
            CheckpointUrl(url)
        with pytest.raises(InvalidInputError):
            Witness("https://witness.example", KEY.verifier)

    def test_an_object_that_is_no_checkpoint_ends_no_publisher(self, server: str) -> None:
        """The path is before the query, and no failure tells the query or who asks."""
        storage = InMemoryStorage()
        fill(storage, 1)
        place = CheckpointUrl(server.replace("://", "://me:hidden@") + "/store?sig=hidden")
        path = f"/store/{storage.tree_size():020}?sig=hidden"
        Server.objects[path] = b"<html>"
        published = Publisher(storage, KEY, [place]).publish()
        assert published is not None
        assert "exists: this is not a signed note" in published.failures[0]
        assert "hidden" not in f"{published.failures} {place}"

    def test_a_server_that_is_away_is_an_error_of_ours(self) -> None:
        """With its address."""
        storage = InMemoryStorage()
        fill(storage, 1)
        checkpoint = new_checkpoint(storage.tree_head(), KEY)
        with pytest.raises(PublishingError, match="cannot be reached"):
            CheckpointUrl("http://127.0.0.1:1").publish(checkpoint)
