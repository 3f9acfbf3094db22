"""What can be done in the console: by whom, for which reason, and what the log has of it."""

from __future__ import annotations

import re
import threading
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from pharox import InMemoryStorage, ProxyManager, ProxyStatus
from pharox.console import Access, Action, create_app
from pharox.console.actions import DEEDS
from pharox.console.jobs import Job, Jobs, Outcome
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, fill, types_of
from tests.console.conftest import Client, everything
from tests.ledger.following import until

ORIGIN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(autouse=True)
def check_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHAROX_CHECK_URL", "http://127.0.0.1:1/")


class Scene:
    """A pool of two proxies, of which one is leased, and a console over it."""

    def __init__(self, storage: AnyStorage, access: Access | None = None) -> None:
        self.storage = storage
        self.pool, (self.proxy, self.other) = fill(storage, 2)
        self.lease = ProxyManager(storage).acquire_proxy("pool", "worker")
        assert self.lease is not None
        self.lease_id = self.lease.id
        given = access or Access.act(actor="ada")
        self.app = create_app(storage, authorize=lambda _: given)
        self.client = Client(self.app)
        self.subjects = {
            Action.BAN: str(self.proxy.id),
            Action.UNBAN: str(self.proxy.id),
            Action.DRAIN: str(self.other.id),
            Action.REVOKE: str(self.lease.id),
            Action.CHANGE_POOL: str(self.pool.id),
            Action.RETRY_PARKED: "nobody reads",
            Action.SWEEP: self.pool.name,
            Action.REBUILD: "all",
        }

    def path(self, action: Action) -> str:
        return f"/actions/{action.value}/{self.subjects[action]}"

    def act(self, action: Action, reason: str = "a test", **fields: str) -> httpx.Response:
        """Fill the form in that the console shows, and send it."""
        asked = self.client.get(self.path(action))
        assert asked.status_code == 200, asked.text
        shown = fields_of(asked.text)
        return self.client.post(
            self.path(action), data={**shown, "reason": reason, **fields}, headers=ORIGIN
        )

    def done(self, action: Action, **fields: str) -> str:
        """Do it, and return what the console says then."""
        answer = self.act(action, **fields)
        assert answer.status_code == 303, answer.text
        page = self.client.get(answer.headers["location"])
        assert page.status_code == 200
        return page.text

    def last_event(self) -> Any:
        return list(self.storage.events())[-1]


def fields_of(html: str) -> dict[str, str]:
    """Return the fields of a form as a browser would send them: no box that is not ticked."""
    found = {}
    for tag in re.findall(r"<input[^>]*>", html):
        given = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if given.get("type") != "checkbox" or " checked" in tag:
            found[given["name"]] = given.get("value", "")
    for name, options in re.findall(r'<select[^>]*name="(\w+)">(.*?)</select>', html, re.S):
        chosen = re.search(r'value="([^"]*)" selected', options)
        found[name] = chosen[1] if chosen else ""
    return found


def test_every_action_is_offered() -> None:
    assert set(DEEDS) == set(Action)


def test_pages_offer_what_may_be_done(postgres: PostgresStorage) -> None:
    """And nothing else: whoever only reads sees no link to an action."""
    scene = Scene(postgres)
    pages = {
        f"/proxies/{scene.other.id}": {Action.BAN, Action.DRAIN},
        f"/leases/{scene.lease_id}": {Action.REVOKE},
        f"/pools/{scene.pool.id}": {Action.CHANGE_POOL},
        "/ledger": {Action.SWEEP, Action.REBUILD},
    }
    reader = Client(create_app(postgres, authorize=lambda _: Access.read("eve")))
    for page, actions in pages.items():
        offered = set(re.findall(r"/actions/(\w+)/", scene.client.get(page).text))
        assert offered == actions
        assert "/actions/" not in reader.get(page).text
    scene.act(Action.BAN)
    assert f"/actions/unban/{scene.proxy.id}" in scene.client.get(f"/proxies/{scene.proxy.id}").text


ACCESSES = [Access.none(), Access.read("eve"), *(Access.act(each) for each in Action), Access.act()]


@pytest.mark.parametrize("access", ACCESSES, ids=lambda access: "+".join(sorted(access.actions)))
def test_the_table_of_access_is_complete(access: Access) -> None:
    """Each access, also to one action alone, opens the forms of its actions and no others."""
    scene = Scene(InMemoryStorage(), access)
    answers = {each: scene.client.get(scene.path(each)).status_code for each in Action}
    assert {each for each, status in answers.items() if status != 403} == access.actions
    sent = {
        each: scene.client.post(scene.path(each), data={"reason": "x"}, headers=ORIGIN)
        for each in Action
    }
    # Without its token a form is refused, too, but with another sentence.
    let_in = {each for each, answer in sent.items() if "This form was not shown" in answer.text}
    assert let_in == access.actions


@pytest.mark.parametrize("action", sorted(DEEDS))
def test_who_may_not_does_not(action: Action) -> None:
    """Reading, and access to every other action, do not allow this one, by link or by form."""
    others = Access.act(*(set(Action) - {action}), actor="eve")
    for access in (Access.none(), Access.read("eve"), others):
        scene = Scene(InMemoryStorage(), access)
        before = types_of(scene.storage)
        assert scene.client.get(scene.path(action)).status_code == 403
        sent = scene.client.post(scene.path(action), data={"reason": "x"}, headers=ORIGIN)
        assert sent.status_code == 403
        assert types_of(scene.storage) == before


@pytest.mark.parametrize("action", [Action.BAN, Action.DRAIN, Action.REVOKE, Action.CHANGE_POOL])
def test_what_is_done_stands_in_the_log(any_storage: AnyStorage, action: Action) -> None:
    """With actor and reason: its own event has them, or one that says what was done."""
    scene = Scene(any_storage)
    begun = len(types_of(any_storage))
    scene.act(action, "it was slow", lease_seconds="77")
    (*_, last) = found = list(any_storage.events())[begun:]
    assert found
    assert {event.actor for event in found} == {"ada"}
    assert len({event.correlation_id for event in found}) == 1
    assert "it was slow" in {getattr(event, "reason", None) for event in found}
    if action is Action.CHANGE_POOL:
        assert last.type == "PoolChanged"
        assert any_storage.list_pools()[0].lease_seconds == 77


def test_a_form_changes_what_was_typed_in_and_nothing_else(any_storage: AnyStorage) -> None:
    """Exactly, back to the defaults too, and not over what somebody else has set meanwhile."""
    scene = Scene(any_storage)
    held = scene.pool.model_copy(update={"max_held_seconds": 1234567.25})
    any_storage.save_pool(held)
    scene.act(Action.CHANGE_POOL, description="new", base_seconds="45")
    (pool,) = any_storage.list_pools()
    assert (pool.max_held_seconds, pool.description) == (1234567.25, "new")
    assert pool.cool_down is not None
    assert pool.cool_down.base_seconds == 45
    scene.act(Action.CHANGE_POOL, base_seconds="30")
    (pool,) = any_storage.list_pools()
    assert pool.cool_down is not None
    assert pool.cool_down.base_seconds == 30
    old = fields_of(scene.client.get(scene.path(Action.CHANGE_POOL)).text)
    any_storage.save_pool(pool.model_copy(update={"lease_slow": True}))
    late = scene.client.post(
        scene.path(Action.CHANGE_POOL), data={**old, "reason": "x"}, headers=ORIGIN
    )
    assert late.status_code == 409
    assert any_storage.list_pools()[0].lease_slow


def test_a_sweep_needs_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stranger is told of the proxies, as with the command."""
    scene = Scene(InMemoryStorage())
    monkeypatch.delenv("PHAROX_CHECK_URL")
    asked = scene.client.get(scene.path(Action.SWEEP))
    assert asked.status_code == 400
    assert "PHAROX_CHECK_URL" in asked.text


def test_names_may_be_anything(any_storage: AnyStorage) -> None:
    name = "eu?west#1/50%25"
    fill(any_storage, 1, name=name)
    client = Client(create_app(any_storage, authorize=everything))
    (path,) = re.findall(r'href="(/actions/sweep/[^"]*)"', client.get("/ledger").text)
    assert name in client.get(path).text


def test_a_ban_for_some_minutes_and_its_end(any_storage: AnyStorage) -> None:
    scene = Scene(any_storage)
    assert "It is banned until" in scene.done(Action.BAN, minutes="5")
    assert any_storage.get_proxy(str(scene.proxy.id)).status is ProxyStatus.BANNED
    assert "It may be leased again." in scene.done(Action.UNBAN, at_once="yes")
    assert any_storage.get_proxy(str(scene.proxy.id)).status is ProxyStatus.ACTIVE
    again = scene.client.get(scene.path(Action.UNBAN))
    assert again.status_code == 400
    assert "not banned" in again.text


def test_a_lease_that_has_ended_is_not_offered(any_storage: AnyStorage) -> None:
    scene = Scene(any_storage)
    assert "has ended" in scene.done(Action.REVOKE)
    again = scene.client.get(scene.path(Action.REVOKE))
    assert again.status_code == 409
    assert "ended already" in again.text


@pytest.mark.parametrize(
    ("action", "fields", "sentence"),
    [
        (Action.BAN, {"reason": " "}, "say why"),
        (Action.BAN, {"reason": "x" * 501}, "at most 500 characters"),
        (Action.BAN, {"minutes": "soon"}, "is no number"),
        (Action.BAN, {"minutes": "-1"}, "above 0"),
        (Action.BAN, {"minutes": "9999999"}, "at most 525,600"),
        (Action.CHANGE_POOL, {"leases_per_consumer": "1.5"}, "no whole number"),
        (Action.CHANGE_POOL, {"leases_per_consumer": "inf"}, "no whole number"),
        (Action.CHANGE_POOL, {"lease_seconds": "0"}, "lease_seconds"),
        (Action.CHANGE_POOL, {"selector": "no such"}, "selector"),
    ],
)
def test_a_wrong_form_changes_nothing_and_keeps_what_was_typed(
    action: Action, fields: dict[str, str], sentence: str
) -> None:
    scene = Scene(InMemoryStorage())
    before = types_of(scene.storage)
    answer = scene.act(action, **fields)
    assert (answer.status_code, types_of(scene.storage)) == (400, before)
    assert sentence in answer.text
    (name, typed), *_ = fields.items()
    found = fields_of(answer.text)
    if name != "selector":  # which a browser would send only if it is an option
        assert found[name] == typed
    assert found["reason"] == fields.get("reason", "a test")


def ended(scene: Scene, kind: str) -> Job:
    """Return a job once it has ended."""
    jobs: Jobs = scene.app.state.console.jobs
    until(lambda: (job := jobs.of(kind)) is not None and not job.is_running)
    job = jobs.of(kind)
    assert job is not None
    return job


def test_a_rebuild_is_a_job(postgres: PostgresStorage) -> None:
    """The log says who began it and why, and what came of it is kept."""
    scene = Scene(postgres)
    assert "The rebuild has begun." in scene.done(Action.REBUILD)
    job = ended(scene, "rebuild")
    assert job.actor == "ada"
    assert job.outcome is not None
    assert "nothing differed" in job.outcome.sentence
    (taken,) = (event for event in postgres.events() if event.type == "ActionTaken")
    assert (taken.action, taken.subject, taken.reason) == ("rebuild", "all", "a test")


def test_a_sweep_checks_the_pool(any_storage: AnyStorage) -> None:
    scene = Scene(any_storage)
    assert "The sweep has begun." in scene.done(Action.SWEEP)
    outcome = ended(scene, "sweep").outcome
    assert outcome is not None
    assert outcome.sentence.startswith("2 proxies were checked")
    checks = [event for event in any_storage.events() if event.type == "HealthChecked"]
    assert {event.actor for event in checks} == {"ada"}


def test_two_jobs_of_a_kind_are_not_begun() -> None:
    """The second is refused before anything stands in the log."""
    scene, gate = Scene(InMemoryStorage()), threading.Event()

    def work(_: Any) -> Outcome:
        return Outcome(str(gate.wait(10)))

    scene.app.state.console.jobs.start("sweep", work)
    before = types_of(scene.storage)
    refused = scene.act(Action.SWEEP)
    assert refused.status_code == 409
    assert "running already" in refused.text
    assert types_of(scene.storage) == before
    gate.set()
    assert ended(scene, "sweep").outcome == Outcome("True")


def test_who_is_not_there_is_a_page(any_storage: AnyStorage) -> None:
    client = Client(create_app(any_storage, authorize=everything))
    nobody = "00000000-0000-4000-8000-000000000000"
    for action in (Action.BAN, Action.UNBAN, Action.DRAIN, Action.CHANGE_POOL):
        assert client.get(f"/actions/{action.value}/{nobody}").status_code == 404
        assert client.get(f"/actions/{action.value}/x").status_code == 404
    assert client.get(f"/actions/revoke/{nobody}").status_code == 400
    assert client.get(f"/actions/no-such/{nobody}").status_code == 404


class TestForms:
    """A form is taken from who it was shown to, from a page of the console, while it is fresh."""

    @pytest.fixture
    def scene(self) -> Scene:
        return Scene(InMemoryStorage())

    def send(self, scene: Scene, token: str | None, **headers: str) -> int:
        values = {"reason": "x"} | ({} if token is None else {"token": token})
        path = scene.path(Action.BAN)
        return scene.client.post(path, data=values, headers=headers).status_code

    def token(self, scene: Scene, action: Action = Action.BAN) -> str:
        return fields_of(scene.client.get(scene.path(action)).text)["token"]

    def test_without_its_token(self, scene: Scene) -> None:
        assert self.send(scene, None) == self.send(scene, "x") == 403

    def test_of_another_action_or_another_console(self, scene: Scene) -> None:
        assert self.send(scene, self.token(scene, Action.DRAIN)) == 403
        assert self.send(scene, self.token(Scene(InMemoryStorage()))) == 403

    def test_from_another_site(self, scene: Scene) -> None:
        token = self.token(scene)
        assert self.send(scene, token, **{"Sec-Fetch-Site": "cross-site"}) == 403
        assert self.send(scene, token, Origin="https://evil.example") == 403
        assert self.send(scene, token, Origin="http://localhost") == 303

    def test_too_long(self, scene: Scene) -> None:
        values = {"reason": "x" * 30_000, "token": self.token(scene)}
        assert scene.client.post(scene.path(Action.BAN), data=values).status_code == 413

    def test_too_often(self, scene: Scene) -> None:
        statuses = [scene.act(Action.BAN).status_code for _ in range(31)]
        assert statuses == [303] * 30 + [429]

    def test_a_link_leads_nowhere_else(self, scene: Scene) -> None:
        """What the console says of an action, and where it leads then, nobody else can choose."""
        page = scene.act(Action.BAN).headers["location"]
        forged = re.sub("said=[^&]*", "said=everything+is+gone", page)
        assert "everything is gone" not in scene.client.get(forged).text
        for place in ("https://evil.example/", "//evil.example/", "/\\evil.example"):
            elsewhere = re.sub("back=[^&]*", f"back={quote(place)}", page)
            assert "evil" not in scene.client.get(elsewhere).text
