"""What the owner of a database, or of a file, can do to a ledger, by the names in docs/proof.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pharox import ProxyManager
from pharox.log.tree import TreeHead
from pharox.proof import SigningKey, new_checkpoint
from pharox.proof.checkpoints import entry
from pharox.storage.postgres import PostgresStorage
from tests.conftest import run_sql

PROTECTED = ("events", "events_0", "seals", "seals_0", "ticks", "tree_nodes")
VICTIM = 40
"""The seq of the event that is changed; it is covered by the first checkpoint."""


@dataclass
class Scene:
    """A ledger, and what was published of it: the bytes of a file of checkpoints."""

    storage: PostgresStorage
    key: SigningKey
    published: bytes
    middle: int
    """Up to there a tick is complete, and nothing later was folded then."""

    def sql(self, *statements: str) -> None:
        for statement in statements:
            run_sql(self.storage.engine, statement)

    @contextmanager
    def unprotected(self) -> Iterator[None]:
        """Take the triggers away for a block, and put them back."""
        for table in (*PROTECTED, "last_tick"):
            self.sql(f"ALTER TABLE pharox.{table} DISABLE TRIGGER USER")
        yield
        for table in PROTECTED:
            self.sql(f"ALTER TABLE pharox.{table} ENABLE ALWAYS TRIGGER events_are_append_only")
        for trigger in ("last_tick_goes_forward", "last_tick_stays"):
            self.sql(f"ALTER TABLE pharox.last_tick ENABLE ALWAYS TRIGGER {trigger}")

    def change(self, seq: int = VICTIM) -> None:
        """Have another actor have done something."""
        self.sql(
            "UPDATE pharox.events_0 SET actor = 'mallory' WHERE position = "
            f"(SELECT position FROM pharox.seals WHERE seq = {seq})"
        )

    def back_to(self, seq: int) -> None:
        """Take seals and ticks after a complete tick away, and what was kept of the tree."""
        self.sql(
            f"DELETE FROM pharox.seals WHERE seq > {seq}",
            f"DELETE FROM pharox.ticks WHERE last_seq > {seq}",
            "DELETE FROM pharox.last_tick",
            "INSERT INTO pharox.last_tick SELECT t.*, 0, '3'::xid8, 0 FROM pharox.ticks AS t "
            f"WHERE last_seq = {seq}",
            "DELETE FROM pharox.tree_nodes",
        )

    def cut(self, seq: int) -> None:
        """Remove the events after a seq as well."""
        self.sql(
            "DELETE FROM pharox.events_0 WHERE position IN "
            f"(SELECT position FROM pharox.seals WHERE seq > {seq})"
        )
        self.back_to(seq)


ATTACKS: dict[str, Callable[[Scene], None]] = {}


def attack(name: str) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register what is done under its name in the table."""

    def register(act: Callable[[Scene], None]) -> Callable[[Scene], None]:
        ATTACKS[name] = act
        return act

    return register


@attack("an event is changed")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.change()


@attack("an event is changed, and its seal with it")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.change()
        scene.sql(
            "UPDATE pharox.seals_0 AS s SET digest = pharox.digest(e, 1::smallint) "
            f"FROM pharox.events AS e WHERE e.position = s.position AND s.seq = {VICTIM}"
        )


@attack("a part is marked as archived, and its events are changed")
def _(scene: Scene) -> None:
    last = scene.storage.seal()
    scene.storage.tree_head()
    scene.storage.take_snapshot(last)
    with scene.unprotected():
        scene.change()
    scene.sql(
        "DELETE FROM pharox.leases",  # archiving prunes those that ended
        "UPDATE pharox.partitions SET archive = '/nowhere', archived_at = now(), first_seq = 1, "
        f"last_seq = {last}, first_recorded_at = now(), last_recorded_at = now()",
    )


@attack("an event is removed")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.sql(
            "DELETE FROM pharox.events_0 WHERE position = "
            f"(SELECT position FROM pharox.seals WHERE seq = {VICTIM})"
        )


FITTING = """
    CREATE OR REPLACE FUNCTION pharox.digest(event pharox.events, version smallint) RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE
    AS 'SELECT s.digest FROM pharox.seals AS s WHERE s.position = event.position'
"""


@attack("an event is changed, and `digest()` replaced so that it fits")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.change()
    scene.sql(FITTING)


@attack("an event is changed, and `digest()` was replaced meanwhile")
def _(scene: Scene) -> None:
    ((before,),) = run_sql(
        scene.storage.engine, "SELECT pg_get_functiondef('pharox.digest'::regproc)"
    )
    scene.sql(FITTING)
    with scene.unprotected():
        scene.change()
    scene.storage.seal()
    scene.sql(str(before))


@attack("the whole log is sealed anew after a change")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.change()
        for table in ("seals", "ticks", "last_tick", "tree_nodes"):
            scene.sql(f"DELETE FROM pharox.{table}")
    scene.storage.seal()
    scene.storage.tree_head()


@attack("the log is sealed anew from the middle on")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.change(scene.middle + 1)
        scene.back_to(scene.middle)
    scene.storage.seal()


@attack("the tail is cut off, with what was folded from it")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.cut(scene.middle)
    _fold_again(scene)


@attack("the tail is cut off, and other events are appended")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.cut(scene.middle)
    _fold_again(scene)
    for number in range(200):
        scene.storage.ensure_consumer(f"another {number}")
    scene.storage.seal()


def _fold_again(scene: Scene) -> None:
    """Have the read models be what the rest of the log folds to, as rebuild does."""
    from pharox.ledger.rebuild import rebuild

    rebuild(scene.storage, force=True)


@attack("everything is removed")
def _(scene: Scene) -> None:
    scene.storage.engine.dispose()
    scene.sql("DROP SCHEMA pharox CASCADE")
    scene.storage.upgrade_schema()


@attack("a backup is restored")
def _(_: Scene) -> None:
    """The test has done it: this ledger is a copy from before its last events."""


@attack("all ticks are removed")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.sql("DELETE FROM pharox.ticks", "DELETE FROM pharox.last_tick")


@attack("a trigger is dropped")
def _(scene: Scene) -> None:
    scene.sql("DROP TRIGGER events_are_append_only ON pharox.events_0")


@attack("a trigger is disabled")
def _(scene: Scene) -> None:
    scene.sql("ALTER TABLE pharox.seals DISABLE TRIGGER events_are_append_only")


@attack("a trigger is added that changes what is appended")
def _(scene: Scene) -> None:
    scene.sql(
        "CREATE FUNCTION public.forge() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN NEW.actor := NULL; RETURN NEW; END'",
        "CREATE TRIGGER forge BEFORE INSERT ON pharox.events "
        "FOR EACH ROW EXECUTE FUNCTION public.forge()",
    )


@attack("a rule takes what is appended")
def _(scene: Scene) -> None:
    scene.sql("CREATE RULE gone AS ON INSERT TO pharox.events_0 DO INSTEAD NOTHING")


@attack("`append_v1()` is replaced")
def _(scene: Scene) -> None:
    query = "SELECT replace(pg_get_functiondef('pharox.append_v1'::regproc), 'BEGIN', 'BEGIN ')"
    ((text,),) = run_sql(scene.storage.engine, query)
    scene.sql(str(text))


@attack("`append_v1()` is replaced, and the schema says that it is of another version")
def _(scene: Scene) -> None:
    ATTACKS["`append_v1()` is replaced"](scene)
    scene.sql("UPDATE pharox.alembic_version SET version_num = '0099'")


@attack("`seal()` runs with the caller's rights")
def _(scene: Scene) -> None:
    scene.sql("ALTER FUNCTION pharox.seal SECURITY INVOKER")


@attack("a second `digest()` stands beside the first")
def _(scene: Scene) -> None:
    scene.sql(
        "CREATE FUNCTION pharox.digest(event pharox.events, version integer) RETURNS bytea "
        "LANGUAGE sql AS 'SELECT ''''::bytea'"
    )


@attack("`clock()` is replaced")
def _(scene: Scene) -> None:
    scene.sql(
        "CREATE OR REPLACE FUNCTION pharox.clock() RETURNS timestamptz LANGUAGE sql STABLE "
        "AS 'SELECT statement_timestamp() - interval ''1 day'''"
    )


@attack("a row of a read model is changed")
def _(scene: Scene) -> None:
    scene.sql("UPDATE pharox.available_proxies SET current_leases = current_leases + 1")


@attack("credentials of two proxies are exchanged")
def _(scene: Scene) -> None:
    scene.sql(
        "UPDATE pharox.proxy_credentials AS c SET secret = other.secret "
        "FROM pharox.proxy_credentials AS other WHERE other.id <> c.id"
    )


@attack("credentials are removed")
def _(scene: Scene) -> None:
    scene.sql("DELETE FROM pharox.proxy_credentials")


@attack("credentials are added that no proxy refers to")
def _(scene: Scene) -> None:
    scene.sql(
        "CREATE TEMPORARY TABLE copied AS SELECT * FROM pharox.proxy_credentials LIMIT 1;"
        "UPDATE copied SET id = gen_random_uuid();"
        "INSERT INTO pharox.proxy_credentials SELECT * FROM copied; DROP TABLE copied"
    )


@attack("credentials are replaced by who has the secret key")
def _(scene: Scene) -> None:
    storage = scene.storage
    commands = storage._commands
    from pharox import ProxyCredentials
    from pharox.storage.postgres.vault import Place

    ((id_, pool_id, proxy_id),) = run_sql(
        storage.engine,
        "SELECT id, pool_id, proxy_id FROM pharox.proxy_credentials ORDER BY id LIMIT 1",
    )
    place = Place(id_, pool_id, proxy_id)  # type: ignore[arg-type]
    secret = commands.vault.seal(ProxyCredentials(user="mallory", password="m"), place)
    scene.sql(
        f"UPDATE pharox.proxy_credentials SET secret = '\\x{secret.hex()}' WHERE id = '{id_}'"
    )


@attack("a subscription's checkpoint is moved beyond the log")
def _(scene: Scene) -> None:
    scene.sql("UPDATE pharox.subscriptions SET checkpoint = 1000000")


@attack("a subscription's checkpoint is moved within the log")
def _(scene: Scene) -> None:
    scene.sql("UPDATE pharox.subscriptions SET checkpoint = checkpoint + 1")


@attack("a kept node of the tree is changed")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.sql("UPDATE pharox.tree_nodes SET hash = sha256(hash) WHERE level = 8")


@attack("events after the last checkpoint are changed and sealed anew")
def _(scene: Scene) -> None:
    last = scene.storage.seal()
    scene.sql("SELECT pharox.complete_tick()")
    scene.storage.ensure_consumer("late")
    late = scene.storage.seal()
    with scene.unprotected():
        scene.change(late)
        scene.back_to(last)
    scene.storage.seal()


@attack("the time of a tick is changed, and the chain made anew")
def _(scene: Scene) -> None:
    with scene.unprotected():
        scene.sql("UPDATE pharox.last_tick SET sealed_at = sealed_at - interval '1 day'")
        scene.sql(
            "UPDATE pharox.last_tick AS l SET root = pharox.root("
            "  (SELECT t.root FROM pharox.ticks AS t WHERE t.last_seq = l.first_seq - 1),"
            "  ROW(l.last_seq, l.first_seq, l.snapshot, l.anchor, l.system_identifier,"
            "      l.sealed_at, l.root, l.after_position, l.last_position)::pharox.ticks,"
            "  (SELECT string_agg(s.digest, ''::bytea ORDER BY s.seq) FROM pharox.seals AS s"
            "   WHERE s.seq BETWEEN l.first_seq AND l.last_seq))"
        )


@attack("a checkpoint in the file is changed")
def _(scene: Scene) -> None:
    first = scene.published.split(b"\n")[1]
    scene.published = scene.published.replace(first, first[:-1] + b"0", 1)


@attack("a checkpoint is signed by another key")
def _(scene: Scene) -> None:
    other = SigningKey.generate(scene.key.name)
    scene.published += entry(new_checkpoint(scene.storage.tree_head(), other))


@attack("the key's owner signs another log")
def _(scene: Scene) -> None:
    head = TreeHead(scene.storage.seal(), b"\x01" * 32)
    scene.published += entry(new_checkpoint(head, scene.key))


@attack("the last checkpoints are cut off the file")
def _(scene: Scene) -> None:
    end = scene.published.index(b"=\n\n", scene.published.index("\N{EM DASH}".encode())) + 3
    assert end < len(scene.published)
    scene.published = scene.published[:end]


def live(storage: PostgresStorage) -> None:
    """Lease, register and follow; more events than a tile of the tree has."""
    manager = ProxyManager(storage)
    for number in range(60):
        lease = manager.acquire_proxy("pool", f"worker-{number}")
        assert lease is not None
        manager.release_proxy(lease)
