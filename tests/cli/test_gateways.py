"""``pharox import --template``, ``pharox rotate``, and templates in what other commands print."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pharox.storage.postgres import PostgresStorage

from .conftest import Pharox

LINE = "http://user-{session}-cc-{country}:hunter2@192.0.2.1:8000\n"
IMPORT = ("import", "-", "--pool", "gateway")


@pytest.fixture
def filled(pharox: Pharox, storage: PostgresStorage) -> Pharox:
    """The command, with a template in the ledger."""
    assert pharox(*IMPORT, "--template", "--country", "us", stdin=LINE).status == 0
    return pharox


class TestImport:
    """It is said whether placeholders are filled."""

    def test_a_template_is_imported(self, filled: Pharox, storage: PostgresStorage) -> None:
        """It takes a hundred leases; the same list again changes nothing."""
        (proxy,) = storage.list_proxies(str(storage.list_pools()[0].id))
        assert (proxy.template, proxy.max_concurrency, proxy.country) == (True, 100, "US")
        again = filled(*IMPORT, "--template", "--country", "us", stdin=LINE)
        assert "0 new, 1 known already" in again.out
        (listed,) = filled("proxies", "gateway", "--json").objects
        assert listed["template"] is True
        header, line = filled("proxies", "gateway").out.splitlines()
        assert header.split().index("template") == line.split().index("yes")

    @pytest.mark.parametrize("form", ["192.0.2.1:8000:user-{session}:p", LINE.replace("cc-", "")])
    def test_what_may_be_a_template_is_a_bad_entry(
        self, pharox: Pharox, storage: PostgresStorage, form: str
    ) -> None:
        """Nothing is guessed: the message names both options and no secret."""
        outcome = pharox(*IMPORT, "--protocol", "http", stdin=form)
        assert outcome.status == 1
        assert "--template" in outcome.err
        assert "--no-template" in outcome.err
        assert "{session}" in outcome.err
        assert "hunter2" not in outcome.err
        assert "0 new" in outcome.out

    def test_a_literal_brace_is_kept(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With ``--no-template`` what looks like a placeholder is part of the login."""
        assert pharox(*IMPORT, "--no-template", stdin=LINE).status == 0
        leased = pharox("acquire", "gateway", "--json").objects[0]
        assert leased["exit"] is None
        assert "user-%7Bsession%7D" in leased["url"]

    def test_an_entry_that_cannot_be_filled_is_bad(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """A misspelt placeholder, and a country that nobody may say."""
        misspelt = pharox(
            *IMPORT, "--template", stdin=LINE.replace("{session}-cc-{country}", "{x}")
        )
        assert (misspelt.status, "the credentials of a template hold" in misspelt.err) == (1, True)
        nowhere = pharox(*IMPORT, "--template", stdin=LINE)
        assert (nowhere.status, "needs a country" in nowhere.err) == (1, True)
        assert "hunter2" not in misspelt.err + nowhere.err

    def test_what_looks_like_a_placeholder_is_named(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """In a template it stays as it is, and a part of a password is not printed."""
        line = "http://u-{session}-{sesion}-{9}:{hunter}@192.0.2.1:8000\n"
        named = pharox(*IMPORT, "--template", stdin=line)
        assert (named.status, named.err.count("stays as it is")) == (0, 2)
        assert "pharox: {sesion} is no placeholder and stays as it is: {session}," in named.err
        assert "a {word} in a password is no placeholder" in named.err
        assert "hunter" not in named.err
        assert pharox(*IMPORT, "--template", stdin=LINE.replace("cc-{country}", "x")).err == ""

    def test_json_says_the_country(self, pharox: Pharox, storage: PostgresStorage) -> None:
        record = json.dumps([{"proxy": LINE.strip(), "country": "BR"}])
        assert pharox(*IMPORT, "--template", stdin=record).status == 0
        assert pharox("acquire", "gateway", "--json").objects[0]["exit"]["country"] == "BR"


class TestLeasing:
    """All commands use the filled URL."""

    def test_a_lease_has_its_exit(self, filled: Pharox) -> None:
        leased = filled("acquire", "gateway", "--country", "DE", "--json").objects[0]
        assert leased["exit"]["country"] == "DE"
        login = f"user-{leased['exit']['session']}-cc-de:hunter2"
        assert leased["url"] == f"http://{login}@192.0.2.1:8000"
        (held,) = filled("leases", "--json").objects
        assert held["exit"] == leased["exit"]

    def test_a_command_runs_through_it(self, filled: Pharox, tmp_path: Path) -> None:
        """The environment of ``run`` has the filled URL."""
        script = f"printf %s $HTTP_PROXY > {tmp_path}/url"
        assert filled("run", "gateway", "--", "sh", "-c", script).status == 0
        url = (tmp_path / "url").read_text()
        assert re.fullmatch(r"http://user-[a-z0-9]{8}-cc-us:hunter2@192\.0\.2\.1:8000", url)

    def test_a_lease_is_rotated(self, filled: Pharox) -> None:
        """The new URL is printed; the story tells both exits and never the password."""
        leased = filled("acquire", "gateway", "--sticky", "a", "--json").objects[0]
        lease_id, url = filled("rotate", leased["id"]).out.split()
        assert lease_id == leased["id"]
        assert url != leased["url"]
        again = filled("rotate", leased["id"], "--json").objects[0]
        assert again["url"] not in (url, leased["url"])
        (session,) = filled("sessions", "--json").objects
        assert session["exit"] == again["exit"]
        story = filled("audit", "lease", leased["id"]).out
        assert f"by its exit {leased['exit']['session']} in US" in story
        assert f"{again['exit']['session']} in place of" in story
        assert "which session a keeps" in story
        log = filled("log").out
        assert f"session_after={again['exit']['session']}" in log
        assert "hunter2" not in story + log + filled("log", "--json").out

    def test_what_cannot_rotate_is_an_error(self, filled: Pharox) -> None:
        leased = filled("acquire", "gateway", "--json").objects[0]
        filled("release", leased["id"])
        ended = filled("rotate", leased["id"])
        assert (ended.status, "was released" in ended.err) == (1, True)

    def test_new_credentials_say_whether_it_is_a_template(self, filled: Pharox) -> None:
        """Of both kinds; other changes leave it."""
        (listed,) = filled("proxies", "gateway", "--json").objects
        for user, is_template in (("plain", None), ("user-{session}", True), ("", None)):
            change = ("proxies", "set", listed["id"], "--user", user, "--json")
            assert filled(*change).objects[0]["template"] is is_template
            assert filled("proxies", "set", listed["id"], "--city", "x").status == 0
            assert filled("proxies", "gateway", "--json").objects[0]["template"] is is_template
