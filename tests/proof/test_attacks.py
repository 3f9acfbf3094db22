"""Each attack of the table in docs/proof.md is found by what the table says, or by nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from pharox import ProxyCredentials, Subscription
from pharox.errors import ArchivedError, SchemaError
from pharox.ledger.archive.reading import WithArchive
from pharox.ledger.publishing import CheckpointFile, Publisher
from pharox.log.tree import TreeHead
from pharox.proof import SigningKey, signed_heads
from projections import Finding
from tests.conftest import fill, ledger, new_database, run_sql

from .attacks import ATTACKS, Scene, live

TABLE = re.compile(r"^\| (.+?) \| (.+?) \|$", re.MULTILINE)
PAGE = (Path(__file__).parents[2] / "docs" / "proof.md").read_text()
ROWS = dict(TABLE.findall(PAGE[PAGE.index("## Attacks") : PAGE.index("## What it costs")])[2:])


class Published(NamedTuple):
    """Names of databases to copy: with all events, and before the last ones; and the file."""

    whole: str
    early: str
    key: SigningKey
    content: bytes
    middle: int


@pytest.fixture(scope="module")
def published(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    """A ledger that lived, with two checkpoints, and its backup from between them."""
    whole, early = (f"pharox_{uuid4().hex[:12]}" for _ in range(2))
    key = SigningKey.generate("example.com/proxies")
    path = tmp_path_factory.mktemp("published") / "checkpoints"
    with new_database(server_url, whole, template) as url, CheckpointFile(path, key.verifier) as to:
        with ledger(url) as storage:
            login = ProxyCredentials(user="u", password="p")
            fill(storage, 2, max_concurrency=None, credentials=login)
            live(storage)
            Subscription("s", lambda _: None, start=10).run(storage, follow=False)
            run_sql(storage.engine, "UPDATE pharox.subscriptions SET checkpoint = 20")
            middle = storage.seal()
            run_sql(storage.engine, "SELECT pharox.complete_tick()")
            Publisher(storage, key, [to]).publish()
        with new_database(server_url, early, whole):
            with ledger(url) as storage:
                live(storage)
                Publisher(storage, key, [to]).publish()
            yield Published(whole, early, key, path.read_bytes(), middle)


def found(scene: Scene) -> list[Finding]:
    """Return what verify finds with the file of checkpoints."""
    heads, wrong = signed_heads(scene.published, scene.key.verifier)
    return wrong + scene.storage.verify(heads=heads)


def test_the_table_has_every_attack() -> None:
    """The page and the test name the same."""
    assert list(ROWS) == list(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_found_as_the_page_says(
    server_url: str, published: Published, name: str, tmp_path: Path
) -> None:
    """By the check that the table names; what it says of nothing is so, too."""
    copied = published.early if name == "a backup is restored" else published.whole
    database = f"pharox_{uuid4().hex[:12]}"
    with new_database(server_url, database, copied) as url, ledger(url) as storage:
        scene = Scene(storage, published.key, published.content, published.middle)
        notes = storage.verify_notes()
        ATTACKS[name](scene)
        if ROWS[name].startswith("an error"):
            with pytest.raises(SchemaError, match="version"):
                found(scene)
            assert any("were not compared" in note for note in storage.verify_notes())
            return
        findings = found(scene)
        checks = re.findall(r"`(\w+)`", ROWS[name])
        if ROWS[name].startswith("nothing"):
            assert findings == []
        elif ROWS[name].startswith("a note"):
            assert findings == []
            (note,) = set(storage.verify_notes()) - set(notes)
            assert ("are archived" if "archived" in name else "clock()") in note
            if "archived" in name:
                with pytest.raises(ArchivedError, match="no such file"):
                    WithArchive(storage, tmp_path).verify(heads=[storage.tree_head()])
        else:
            assert set(checks) <= {finding.check for finding in findings}
            assert all(map(str, findings))
        if checks == ["checkpoint"]:
            assert storage.verify() == []


def test_a_ledger_that_nobody_touched_is_what_was_published(
    server_url: str, published: Published
) -> None:
    """Nothing is found, with both checkpoints; a head of the middle fits, and another does not."""
    database = f"pharox_{uuid4().hex[:12]}"
    with new_database(server_url, database, published.whole) as url, ledger(url) as storage:
        scene = Scene(storage, published.key, published.content, published.middle)
        assert found(scene) == []
        assert storage.verify(heads=[storage.tree_head(7), storage.tree_head(250)]) == []
        (finding,) = storage.verify(heads=[storage.tree_head(7), TreeHead(9, b"\1" * 32)])
        assert finding.key == {"size": 9, "first_changed": "8..9"}
