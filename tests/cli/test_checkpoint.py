"""``pharox checkpoint``, ``prove`` and ``check``, and ``verify`` with checkpoints."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pharox.proof import VerifierKey, read_checkpoints
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, run_sql
from tests.ledger.following import until

from .conftest import Pharox

RUN = "import sys; from pharox.cli import main; sys.exit(main())"


@pytest.fixture
def key(pharox: Pharox, tmp_path: Path) -> Path:
    """A signing key; its public one is beside it."""
    assert pharox("checkpoint", "keygen", "--out", tmp_path / "key", "--name", "a.example").err
    return tmp_path / "key"


def test_from_a_key_to_an_event_that_somebody_else_checks(
    pharox: Pharox, postgres: PostgresStorage, tmp_path: Path, key: Path
) -> None:
    """Publish, verify, prove and check; and after the log was changed, each of them says so."""
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    public, path = tmp_path / "key.pub", tmp_path / "checkpoints"
    assert VerifierKey.parse(public.read_text()).name == "a.example"
    against = ("--checkpoint", path, "--key", public)
    publish = ("checkpoint", "publish", "--to", path, "--key", key)
    fill(postgres, 5)
    outcome = pharox(*publish)
    assert (outcome.status, "published 6 events" in outcome.err) == (0, True)
    assert "nothing new" in pharox(*publish).err
    outcome = pharox("verify", *against)
    assert (outcome.status, "what 1 checkpoints say" in outcome.err) == (0, True)
    assert pharox("verify", *against, "--archive", tmp_path).status == 0

    proof = pharox("prove", 3, "--checkpoint", path)
    assert proof.status == 0
    checked = pharox("check", "-", "--key", public, stdin=proof.out)
    assert checked.status == 0
    assert "http://10.0.0." in checked.out
    assert "joined pool" in checked.out
    assert "proven: a.example signed this as event 3 of the first 6" in checked.err
    other = proof.out.replace("index 2", "index 3")
    refused = pharox("check", "-", "--key", public, stdin=other)
    assert (refused.status, refused.out) == (1, "")
    assert "not proven" in refused.err
    no_witness = pharox("check", "-", "--key", public, "--witness", public, stdin=proof.out)
    assert (no_witness.status, "no cosignature" in no_witness.err) == (1, True)
    assert "no checkpoint covers event 7" in pharox("prove", 7, "--checkpoint", path).err

    for table in ("events_0", "seals_0", "seals", "ticks", "last_tick", "tree_nodes"):
        run_sql(postgres.engine, f"ALTER TABLE pharox.{table} DISABLE TRIGGER USER")
    for table in ("seals", "last_tick", "tree_nodes"):
        run_sql(postgres.engine, f"DELETE FROM pharox.{table}")
    run_sql(postgres.engine, "UPDATE pharox.events_0 SET actor = 'mallory' WHERE position = 2")
    outcome = pharox("verify", *against, "-o", "jsonl")
    assert outcome.status == 1
    assert {"checkpoint", "triggers"} <= {each["check"] for each in outcome.objects}
    assert "not the one whose first 6" in pharox("prove", 3, "--checkpoint", path).err
    before = path.read_bytes()
    assert "not the one whose first 6" in pharox(*publish).err
    assert path.read_bytes() == before


def test_what_makes_no_sense_is_told(pharox: Pharox, tmp_path: Path, key: Path) -> None:
    """In a sentence, and nothing is written."""
    path = tmp_path / "checkpoints"
    (tmp_path / "c.pub").touch()
    for words, why in (
        (("verify", "--archive", tmp_path), "goes with --checkpoint"),
        (("checkpoint", "keygen", "--out", tmp_path / "c"), "c.pub exists"),
        (("checkpoint", "keygen", "--out", key), "exists"),
        (("checkpoint", "keygen", "--out", tmp_path / "b", "--name", "a b"), "not a key's name"),
        (("checkpoint", "publish", "--to", path, "--key", tmp_path / "none"), "cannot be read"),
        (("checkpoint", "publish", "--to", path, "--key", tmp_path / "key.pub"), "signing key"),
        (("checkpoint", "publish", "--to", "http://x.example/", "--key", key), "https"),
        (("checkpoint", "publish", "--to", path, "--key", key, "--every", "soon"), "soon"),
        (("checkpoint", "publish", "--to", path, "--key", key, "--witness", "x"), "URL=FILE"),
        (("checkpoint", "publish", "--to", tmp_path, "--key", key), "cannot be opened"),
        (("verify", "--checkpoint", path), "go together"),
        (("verify", "--checkpoint", path, "--key", tmp_path / "key.pub"), "cannot be read"),
        (("check", tmp_path / "key.pub", "--key", tmp_path / "key.pub"), "not a proof"),
        (("check", tmp_path / "key.pub", "--key", key), "verifier key"),
    ):
        outcome = pharox(*words)
        assert outcome.status in (1, 2), words
        assert why in outcome.err, words
    assert not path.exists()
    assert not (tmp_path / "c").exists()


def test_it_goes_on_until_it_is_told_to_end(
    pharox: Pharox, postgres: PostgresStorage, database_url: str, tmp_path: Path, key: Path
) -> None:
    """A process that publishes after each event ends with a signal, and what it left is whole."""
    path = tmp_path / "checkpoints"
    fill(postgres, 1)
    words = ("checkpoint", "publish", "--to", path, "--key", key, "--every", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)],
        env={**os.environ, "PHAROX_DATABASE_URL": database_url, "PHAROX_SECRET_KEY": SECRET_KEY},
    )
    try:
        until(path.exists)
        until(lambda: len(list(read_checkpoints(path.read_bytes()))) == 1)
        postgres.ensure_consumer("new")
        until(lambda: len(list(read_checkpoints(path.read_bytes()))) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 128 + signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    outcome = pharox("verify", "--checkpoint", path, "--key", tmp_path / "key.pub")
    assert (outcome.status, "what 2 checkpoints say" in outcome.err) == (0, True)
