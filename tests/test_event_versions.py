"""Events of every version ever written can be read, and read as what they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pharox import ProxyManager
from pharox.errors import EventVersionError
from pharox.events import ENVELOPE, VERSIONS, Event, decode
from pharox.events.upcasting import EventData, Upcaster
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill

EXAMPLES = Path(__file__).parent / "data" / "events"
NEVER_WRITTEN = {"ProxyRemoved": {"after"}}
"""Fields that a class inherits and its events leave out: a removed proxy has no state after."""

FILES = sorted(EXAMPLES.glob("*.json"))


def examples(type_: str, version: int) -> list[dict[str, Any]]:
    """Return the stored examples of a version, rows of the log: the first, and of later fields."""
    files = [EXAMPLES / f"{type_}.v{version}.json", *EXAMPLES.glob(f"{type_}.v{version}.*.json")]
    return [json.loads(file.read_text()) for file in files]


def read(row: dict[str, Any]) -> Event:
    """Decode a row as a reader of the log does."""
    return decode({name: row[name] for name in ENVELOPE}, row["data"])


# What was ever written


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_stored_example_can_be_read(file: Path) -> None:
    """An event of any version is read in today's shape, and says who it is about as it did."""
    row = json.loads(file.read_text())
    event = read(row)
    assert file.stem.split(".")[:2] == [row["type"], f"v{row['schema_version']}"]
    assert (event.type, event.schema_version) == (row["type"], VERSIONS[row["type"]])
    same = ("position", "pool_id", "proxy_id", "lease_id", "consumer", "actor", "correlation_id")
    dumped = event.model_dump(mode="json")
    assert {name: dumped[name] for name in same} == {name: row[name] for name in same}


@pytest.mark.parametrize("type_", VERSIONS)
def test_every_version_has_an_example(type_: str) -> None:
    """Each version up to the current one has an example; a new one is stored with its class."""
    wanted = {f"v{version}" for version in range(1, VERSIONS[type_] + 1)}
    stems = (file.stem.split(".") for file in FILES)
    assert {version for name, version, *_ in stems if name == type_} == wanted


@pytest.mark.parametrize("type_", VERSIONS)
def test_an_example_of_the_current_version_names_every_field(type_: str) -> None:
    """No field is left out, so that none can be renamed or dropped without a new version."""
    rows = examples(type_, VERSIONS[type_])
    fields = set(type(read(rows[0])).model_fields) - {"seq"} - NEVER_WRITTEN.get(type_, set())
    assert fields - {name for row in rows for name in (*row, *row["data"])} == set()
    assert {"seq", *ENVELOPE} & {name for row in rows for name in row["data"]} == set()


def test_no_example_is_rewritten() -> None:
    """What was recorded once stays as it was: an example is added, with its sum, or left alone."""
    lines = (EXAMPLES / "SHA256SUMS").read_text().splitlines()
    sums = {name: total for total, name in (line.split("  ") for line in lines)}
    assert sums == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in FILES}


def test_commands_write_the_current_versions(postgres: PostgresStorage) -> None:
    """What a command appends needs no step."""
    fill(postgres, 1)
    with ProxyManager(postgres).with_lease("pool"):
        assert ProxyManager(postgres).acquire_proxy("pool") is None
    with postgres._driver.connection() as connection:
        rows = connection.execute("SELECT DISTINCT type, schema_version FROM pharox.events")
        written = dict(rows.fetchall())
    assert len(written) == 6
    assert written == {type_: VERSIONS[type_] for type_ in written}


# Steps


@pytest.fixture
def upcaster() -> Upcaster:
    """Steps of a type of event that changed twice: a name became two, then upper case."""
    upcaster = Upcaster({"Greeted": 3, "Left": 1})

    @upcaster.step("Greeted", 1)
    def split_the_name(data: EventData) -> EventData:
        first, _, last = data.pop("name").partition(" ")
        return {**data, "first": first, "last": last}

    @upcaster.step("Greeted", 2)
    def shout(data: EventData) -> EventData:
        return {**data, "last": data["last"].upper()}

    return upcaster


def test_an_old_event_takes_every_step(upcaster: Upcaster) -> None:
    """From the first version an event goes through each later one, and ends as of today."""
    data = {"type": "Greeted", "schema_version": 1, "position": 7, "name": "Ada Lovelace"}
    assert upcaster.upcast(data) == {
        "type": "Greeted",
        "schema_version": 3,
        "position": 7,
        "first": "Ada",
        "last": "LOVELACE",
    }


def test_an_event_takes_only_the_steps_after_its_version(upcaster: Upcaster) -> None:
    """From the second version there is one step to go."""
    data = {"type": "Greeted", "schema_version": 2, "first": "Ada", "last": "Lovelace"}
    assert upcaster.upcast(data) == {**data, "schema_version": 3, "last": "LOVELACE"}


def test_a_current_event_is_left_alone(upcaster: Upcaster) -> None:
    """Facts in today's shape are handed on as they are, not copied."""
    for data in ({"type": "Greeted", "schema_version": 3}, {"type": "Left", "schema_version": 1}):
        assert upcaster.upcast(data) is data


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_without_a_step_is_refused(upcaster: Upcaster, version: int) -> None:
    """Where no step leads on from a version, that is said, with the event's place."""
    with pytest.raises(EventVersionError, match=f"position 7 is a Greeted of version {version}, "):
        upcaster.upcast({"type": "Greeted", "schema_version": version, "position": 7})


def test_a_step_is_registered_once(upcaster: Upcaster) -> None:
    """Two ways from one version would leave open which one history took."""
    with pytest.raises(ValueError, match="version 1 of Greeted already has a step"):
        upcaster.step("Greeted", 1)(dict)


# What a newer pharox wrote


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"type": "LeaseLent"}])
def test_an_event_of_the_future_asks_for_an_upgrade(change: dict[str, Any]) -> None:
    """A version or a type that this pharox does not know is refused, and the message helps."""
    row = {**examples("LeaseAcquired", 1)[0], **change}
    with pytest.raises(EventVersionError, match="upgrade pharox") as refused:
        read(row)
    assert refused.value.data == {
        name: row[name] for name in ("position", "type", "schema_version")
    }


def test_a_reader_of_the_log_is_told_so(postgres: PostgresStorage) -> None:
    """A log that a newer pharox appended to is read up to the first event of its kind."""
    fill(postgres, 1)
    with postgres._driver.connection() as connection:
        connection.execute(
            "INSERT INTO pharox.events (recorded_at, type, schema_version, pool_id, data) "
            "VALUES (now(), 'PoolRemoved', 2, gen_random_uuid(), '{\"name\": \"pool\"}')"
        )
    events = postgres.events()
    assert [next(events).type, next(events).type] == ["PoolRegistered", "ProxyRegistered"]
    with pytest.raises(EventVersionError, match="PoolRemoved of version 2"):
        next(events)
