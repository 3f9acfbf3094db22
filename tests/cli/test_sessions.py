"""``pharox sessions``, and ``--sticky`` of what leases."""

from __future__ import annotations

from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill

from .conftest import Pharox


class TestSessions:
    def test_a_key_keeps_its_proxy(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The same one each time; while it is leased, a required one is missed with status 75."""
        fill(storage, 3)
        sticky = ("acquire", "pool", "--sticky", "account-42", "--sticky-for", "30m")
        first = pharox(*sticky, "--json").objects[0]
        missed = pharox(*sticky, "--sticky-policy", "require")
        assert missed.status == 75
        assert "session requires" in missed.err
        pharox("release", first["id"])
        assert pharox(*sticky, "--json").objects[0]["proxy_id"] == first["proxy_id"]

    def test_sessions_are_listed_forgotten_and_inherited(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """By pool; what is not bound is an error."""
        fill(storage, 3)
        pharox("acquire", "pool", "--sticky", "a")
        _, line = pharox("sessions", "--pool", "pool").out.splitlines()
        assert line.split()[:2] == ["a", "pool"]
        assert pharox("sessions", "inherit", "a", "b", "--pool", "pool").status == 0
        assert [each["key"] for each in pharox("sessions", "--json").objects] == ["b"]
        assert pharox("sessions", "forget", "a", "--pool", "pool").status == 1
        assert pharox("sessions", "forget", "b", "--pool", "pool").status == 0
        assert pharox("sessions", "--json").objects == []
        assert pharox("sessions", "--pool", "none").status == 1

    def test_the_story_says_what_was_missed(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Which session required which proxy, and what became of its binding."""
        fill(storage, 2)
        leased = pharox("acquire", "pool", "--sticky", "a", "--json").objects[0]
        pharox("acquire", "pool", "--sticky", "a", "--sticky-policy", "require")
        pharox("sessions", "inherit", "a", "b", "--pool", "pool")
        story = pharox("audit", "pool", "pool").out
        assert f"session a requires proxy {leased['proxy_id']}, which was not free" in story
        assert "was inherited by b" in story
        assert "inherited from a" in story
        assert "SessionBound" in pharox("log").out

    def test_a_command_runs_through_it(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The lease of ``run`` is of the session, too."""
        fill(storage, 2)
        assert pharox("run", "pool", "--sticky", "a", "--", "true").status == 0
        assert [each["key"] for each in pharox("sessions", "--json").objects] == ["a"]
