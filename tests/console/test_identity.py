"""Who gets in: by a token, a password over TLS, or the header of a reverse proxy."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pharox import InMemoryStorage, InvalidInputError
from pharox.cli.console import authorize_of
from pharox.console import HeaderAccess, PasswordAccess, TokenAccess, create_app
from pharox.console.identity import COOKIE
from pharox.console.signing import Signer
from tests.console.conftest import Client
from tests.console.test_actions import fields_of

TOKEN, READ = "a token of sixteen letters", "another for readers"
PERSON = {"Accept": "text/html"}


def client(authorize: Any, base_url: str = "http://localhost") -> Client:
    return Client(create_app(InMemoryStorage(), authorize=authorize), base_url)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"}


class TestToken:
    def test_a_program_sends_it(self) -> None:
        console = client(TokenAccess(TOKEN))
        assert console.get("/", headers=bearer(TOKEN)).status_code == 200
        assert console.get("/").status_code == 401
        wrong = console.get("/", headers=bearer("wrong"))
        assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")

    def test_a_person_types_it_in_once(self) -> None:
        """The page that was asked for comes after it; the cookie does not hold the token."""
        console = client(TokenAccess(TOKEN))
        asked = console.get("/?from=1", headers=PERSON)
        assert asked.status_code == 303
        shown = fields_of(console.get(asked.headers["location"]).text)
        typed = {**shown, "name": "Ada", "token": TOKEN}
        entered = console.post("/login", data=typed)
        assert (entered.status_code, entered.headers["location"]) == (303, "/?from=1")
        cookie = entered.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "httponly" in cookie.lower()
        assert "samesite=lax" in cookie.lower()
        kept = {"Cookie": cookie.partition(";")[0]}
        assert "Ada" in console.get("/", headers=kept).text
        assert console.get("/login?to=/ledger", headers=kept).headers["location"] == "/ledger"

    def test_a_cookie_is_of_no_use_once_its_token_has_changed(self) -> None:
        """Nor for what its token does not allow, whatever somebody who has it could sign."""
        secret = "of all processes"
        before = client(TokenAccess(TOKEN, secret=secret))
        shown = {**fields_of(before.get("/login").text), "name": "Ada", "token": TOKEN}
        cookie = before.post("/login", data=shown).headers["set-cookie"].partition(";")[0]
        same, other = TokenAccess(TOKEN, secret=secret), TokenAccess("x" * 16, secret=secret)
        reading = TokenAccess(read_token=TOKEN, secret=secret)
        assert client(same).get("/", headers={"Cookie": cookie}).status_code == 200
        for changed in (other, reading, TokenAccess(TOKEN)):
            assert client(changed).get("/", headers={"Cookie": cookie}).status_code == 401
        forged = Signer(sha256(READ.encode()).hexdigest()).login(
            "act", "mallory", sha256(READ.encode()).hexdigest()
        )
        headers = {"Cookie": f"{COOKIE}={forged}"}
        assert client(TokenAccess(read_token=READ)).get("/", headers=headers).status_code == 401

    def test_who_types_in_a_wrong_one_may_not_try_for_ever(self) -> None:
        console = client(TokenAccess(TOKEN))
        shown = fields_of(console.get("/login").text)
        statuses = [
            console.post("/login", data={**shown, "name": "eve", "token": str(each)}).status_code
            for each in range(12)
        ]
        assert statuses == [401] * 10 + [429] * 2
        assert console.get("/", headers=bearer(TOKEN)).status_code == 429

    def test_a_name_is_asked_for_and_the_way_leads_nowhere_else(self) -> None:
        console = client(TokenAccess(TOKEN))
        shown = {**fields_of(console.get("/login").text), "token": TOKEN}
        for name in (" ", "a\0b"):
            assert console.post("/login", data={**shown, "name": name}).status_code == 400
        away = {**shown, "name": "Ada", "to": "//evil.example/"}
        assert console.post("/login", data=away).headers["location"] == "/"

    def test_one_for_readers_only(self) -> None:
        access = TokenAccess(TOKEN, read_token=READ)
        path = "/actions/ban/00000000-0000-4000-8000-000000000000"
        assert client(access).get("/", headers=bearer(READ)).status_code == 200
        assert client(access).get(path, headers=bearer(READ)).status_code == 403
        assert client(access).get(path, headers=bearer(TOKEN)).status_code == 404

    @pytest.mark.parametrize("given", [{}, {"token": ""}, {"token": "short"}, {"read_token": "x"}])
    def test_one_that_can_be_guessed_is_refused(self, given: dict[str, str]) -> None:
        with pytest.raises(InvalidInputError):
            TokenAccess(**given)

    def test_there_is_no_login_without_one(self) -> None:
        assert client(None).get("/login").status_code == 404


class TestPassword:
    def test_over_tls_only(self) -> None:
        access = PasswordAccess({"ada": "pässwörd"})
        assert client(access).get("/", headers=basic("ada", "pässwörd")).status_code == 403
        secure = client(access, "https://console.example")
        assert "ada" in secure.get("/", headers=basic("ada", "pässwörd")).text
        for wrong in ({}, basic("ada", "x"), basic("eve", ""), {"Authorization": "Basic !"}):
            assert secure.get("/", headers=wrong).status_code == 401

    def test_a_trusted_proxy_says_that_it_was_tls(self) -> None:
        headers = {**basic("ada", "x"), "X-Forwarded-Proto": "https"}
        trusting = PasswordAccess({"ada": "x"}, trusted=["127.0.0.1"])
        assert client(trusting).get("/", headers=headers).status_code == 200
        assert client(PasswordAccess({"ada": "x"})).get("/", headers=headers).status_code == 403

    @pytest.mark.parametrize("given", [{}, {"a:b": "x"}, {"": "x"}, {"ada": ""}])
    def test_what_cannot_be_one_is_refused(self, given: dict[str, str]) -> None:
        with pytest.raises(InvalidInputError):
            PasswordAccess(given)
        with pytest.raises(InvalidInputError):
            PasswordAccess({"ada": "x"}, readers=["eve"])


def test_a_reverse_proxy_says_who_asks() -> None:
    """Only one that is trusted, and only by the header that was named."""
    headers = {"X-Forwarded-User": "ada"}
    trusting = client(HeaderAccess("X-Forwarded-User", trusted=["127.0.0.1"]))
    assert "ada" in trusting.get("/", headers=headers).text
    assert trusting.get("/").status_code == 403
    other = client(HeaderAccess("X-Forwarded-User", trusted=["10.0.0.1"]))
    assert other.get("/", headers=headers).status_code == 403
    with pytest.raises(InvalidInputError):
        HeaderAccess(" ", trusted=[])


class TestOptions:
    """Those of ``pharox console``."""

    def of(self, **given: Any) -> Any:
        options = dict.fromkeys(("token", "read_token", "users", "actor_header"))
        return authorize_of(**{**options, "trusted": (), "readers": (), **given})

    def test_each_has_its_way(self, tmp_path: Path) -> None:
        users = tmp_path / "users"
        users.write_text("# who is on call\nada:pass:word\n\neve:x\n")
        assert self.of() is None
        assert isinstance(self.of(read_token=READ), TokenAccess)
        header = self.of(actor_header="X-User", trusted=["127.0.0.1"])
        assert client(header).get("/", headers={"X-User": "ada"}).status_code == 200
        console = client(self.of(users=users, readers=["eve"]), "https://console.example")
        for name, password, status in (("ada", "pass:word", 404), ("eve", "x", 403)):
            path = "/actions/ban/00000000-0000-4000-8000-000000000000"
            assert console.get(path, headers=basic(name, password)).status_code == status

    @pytest.mark.parametrize(
        "given",
        [
            {"token": TOKEN, "actor_header": "X-User"},
            {"actor_header": "X-User"},
            {"token": TOKEN, "readers": ["eve"]},
            {"trusted": ["127.0.0.1"]},
        ],
    )
    def test_what_does_not_go_together_is_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError):
            self.of(**given)

    @pytest.mark.parametrize("text", [b"ada", b"ada:", b":x", b"ada:x\nada:y", b"\xff:x", b""])
    def test_a_file_of_something_else_is_refused(self, tmp_path: Path, text: bytes) -> None:
        users = tmp_path / "users"
        users.write_bytes(text)
        with pytest.raises(InvalidInputError):
            self.of(users=users)
