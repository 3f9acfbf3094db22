"""What an API does, on each storage, as an HTTP client sees it."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from openapi_spec_validator import validate
from prometheus_client import CollectorRegistry

import pharox
from pharox import (
    ApiRight,
    ApiToken,
    InvalidInputError,
    LeaseStatus,
    Pace,
    PoolLimits,
    ProxyCredentials,
    TargetRules,
    console,
)
from pharox.api import create_app
from pharox.api.operations import OPERATIONS
from pharox.models import utc_now
from tests.api.conftest import Asker, asking, described, token_of
from tests.conftest import AnyStorage, clock_of, fill, for_tasks

SECRET = "s3cr3t/pässword"
LOGIN = ProxyCredentials(user="u", password=SECRET)


def test_a_lease_goes_round(any_storage: AnyStorage, caplog: pytest.LogCaptureFixture) -> None:
    """Acquired, looked at, renewed, reported of, released; the ledger has each with who did it."""
    caplog.set_level(logging.DEBUG)
    clock = clock_of(any_storage)
    _, (proxy,) = fill(any_storage, 1, name="a", credentials=LOGIN, max_concurrency=1)
    any_storage.set_target_rules(TargetRules(target="shop.example", blocked_statuses=(404,)))
    headers = {**token_of(any_storage), "X-Correlation-Id": "job-7"}
    told = []

    async def use(api: Asker) -> None:
        granted = await api.post("/acquire", headers, pool="a", target="shop.example")
        assert granted.status_code == 201
        lease = granted.json()
        assert lease["proxy_url"] == proxy.url
        assert (lease["consumer"], lease["pool"], lease["status"]) == ("go-worker", "a", "active")
        known = {"lease_id": lease["lease_id"]}
        looked = await api.get(f"/leases/{lease['lease_id']}", headers)
        assert looked.json() == {key: lease[key] for key in lease if key != "proxy_url"}
        clock.advance(10)
        renewed = (await api.post("/renew", headers, **known, lease_seconds=600)).json()
        assert renewed["renewed_at"] is not None
        assert renewed["expires_at"] > lease["expires_at"]
        missed = await api.post("/acquire", headers, pool="a")
        assert (missed.status_code, missed.json()["reason"]) == (409, "at_capacity")
        assert missed.headers["retry-after"] == "600"
        told.append(missed.text)
        reported = await api.post("/report", headers, **known, outcome={"status": 404})
        assert (reported.json()["is_recorded"], reported.json()["streak"]) == (True, -1)
        outcome = {"kind": "ok", "status": 200, "bytes": 512}
        for _ in range(2):  # The answer may be lost, and the request be repeated.
            released = await api.post("/release", headers, **known, outcome=outcome)
            assert released.json()["status"] == "released"
        ended = await api.post("/renew", headers, **known)
        assert (ended.status_code, ended.json()["code"]) == (409, "lease_ended")
        told.append(ended.text)

    asking(any_storage, use)
    events = [each for each in any_storage.events() if each.correlation_id == "job-7"]
    assert {each.type for each in events} >= {
        "LeaseAcquired", "LeaseRenewed", "AcquireMissed", "OutcomeReported", "LeaseReleased"
    }  # fmt: skip
    (token,) = any_storage.list_api_tokens()
    assert {each.actor for each in events} == {f"api:{str(token.id)[:8]}"}
    kept = "".join([caplog.text, *told, *map(str, any_storage.events()), repr(token)])
    for secret in (SECRET, headers["Authorization"].removeprefix("Bearer ")):
        assert secret not in kept


def test_a_repeated_acquisition_is_the_same_lease(any_storage: AnyStorage) -> None:
    """Under an id of the caller's; another consumer does not get it, nor after its end."""
    fill(any_storage, 2, name="a")
    ours, theirs = token_of(any_storage), token_of(any_storage, "other")
    elsewhere = token_of(any_storage, "go-worker", pools=("b",))
    fill(any_storage, 1, name="b")

    async def use(api: Asker) -> None:
        asked = {"pool": "a", "lease_id": str(uuid4())}
        first = await api.post("/acquire", ours, **asked)
        again = await api.post("/acquire", ours, **asked)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json()
        for headers, body in ((theirs, asked), (elsewhere, {**asked, "pool": "b"})):
            refused = await api.post("/acquire", headers, **body)
            assert (refused.status_code, refused.json()["code"]) == (409, "lease_conflict")
            assert "go-worker" not in refused.text
        await api.post("/release", ours, lease_id=asked["lease_id"])
        ended = await api.post("/acquire", ours, **asked)
        assert (ended.status_code, ended.json()["code"]) == (409, "lease_ended")
        ids = [str(uuid4()), str(uuid4())]
        many = {"pool": "a", "count": 2, "lease_ids": ids}
        of_set = await api.post("/acquire-set", ours, **many)
        assert [each["lease_id"] for each in of_set.json()["leases"]] == ids
        assert (await api.post("/acquire-set", ours, **many)).json() == of_set.json()

    asking(any_storage, use)
    assert sum(each.type == "LeaseAcquired" for each in any_storage.events()) == 3


def test_a_repeated_release_records_its_outcome_once(any_storage: AnyStorage) -> None:
    """Its answer may be lost; a report after the release is another outcome."""
    fill(any_storage, 1, name="a")
    headers = token_of(any_storage)

    async def use(api: Asker) -> None:
        granted = await api.post("/acquire", headers, pool="a", target="shop.example")
        known = {"lease_id": granted.json()["lease_id"], "outcome": {"kind": "blocked"}}
        for _ in range(3):
            released = await api.post("/release", headers, **known)
            assert released.json()["status"] == "released"
        await api.post("/release-batch", headers, leases=[known])
        await api.post("/report", headers, **known)

    asking(any_storage, use)
    assert sum(each.type == "OutcomeReported" for each in any_storage.events()) == 2


def test_what_is_judged_by_rules_is_kept_whole(any_storage: AnyStorage) -> None:
    """Whatever else was said of it is recorded as it was said, nought as well."""
    fill(any_storage, 1, name="a")
    any_storage.set_target_rules(TargetRules(target="shop.example", blocked_statuses=(404,)))
    headers = token_of(any_storage)
    said: dict[str, Any] = {"retry_after_seconds": 0.4, "bytes": 0, "count": 7, "note": "by  hand"}

    async def use(api: Asker) -> None:
        granted = await api.post("/acquire", headers, pool="a", target="shop.example")
        known = {"lease_id": granted.json()["lease_id"]}
        await api.post("/report", headers, **known, outcome={**said, "status": 404})
        outcome = {"status": 999, "target": "http://[2001:db8::1]/", "retry_after_seconds": 0}
        await api.post("/release", headers, **known, outcome=outcome)

    asking(any_storage, use)
    first, second = (each for each in any_storage.events() if each.type == "OutcomeReported")
    assert (first.outcome, first.target) == ("blocked", "shop.example")
    assert {name: getattr(first, name) for name in said} == {**said, "note": "by hand"}
    assert (second.outcome, second.target) == ("unclear", "2001:db8::1")
    assert (second.note, second.retry_after_seconds) == ("status 999", 0)


def test_batches_answer_for_each(any_storage: AnyStorage) -> None:
    """What cannot be done does not keep the rest from being done."""
    fill(any_storage, 3, name="a")
    ours, theirs = token_of(any_storage), token_of(any_storage, "other")
    unknown = str(uuid4())

    async def use(api: Asker) -> None:
        granted = await api.post("/acquire-set", ours, pool="a", count=2)
        ids = [each["lease_id"] for each in granted.json()["leases"]]
        other = (await api.post("/acquire", theirs, pool="a")).json()["lease_id"]
        named = [ids[0], unknown, other, ids[1]]
        leases = [{"lease_id": each} for each in named]
        outcome = {"kind": "blocked", "target": "shop.example"}
        reports = [{**each, "outcome": outcome} for each in leases]
        renewed = (await api.post("/renew-batch", ours, leases=leases)).json()["results"]
        assert [each["status"] for each in renewed] == ["active", 404, 404, "active"]
        reported = (await api.post("/report-batch", ours, reports=reports)).json()["results"]
        assert [each.get("is_recorded") for each in reported] == [True, None, None, True]
        released = (await api.post("/release-batch", ours, leases=leases)).json()["results"]
        assert [each["status"] for each in released] == ["released", 404, 404, "released"]
        asked = {"lease_ids": [other, unknown, ids[0]], "reason": "it leaks"}
        revoked = (await api.post("/revoke", ours, **asked)).json()["results"]
        assert [each["status"] for each in revoked] == ["revoked", 409, 409]
        assert revoked[0]["revoke_reason"] == "it leaks"
        late = await api.post("/release", theirs, lease_id=other)
        assert (late.status_code, late.json()["status"]) == (200, "revoked")

    asking(any_storage, use)


def test_an_acquisition_has_what_the_library_has(any_storage: AnyStorage) -> None:
    """Filters, selectors, sessions, further pools, lengths; and misses say why and when."""
    clock = clock_of(any_storage)
    fill(any_storage, 1, name="a", country="AR", max_concurrency=None)
    fill(any_storage, 1, name="b", country="DE", max_concurrency=None)
    pool, _ = fill(any_storage, 1, name="paced", max_concurrency=None)
    limits = PoolLimits(paces=(Pace(starts=1, seconds=60, per="consumer"),))
    any_storage.save_pool(pool.model_copy(update={"limits": limits}))
    headers = token_of(any_storage)
    german = {"none_of": [{"country": "AR"}], "any_of": [{"country": "DE"}]}

    async def use(api: Asker) -> None:
        async def acquired(**asked: Any) -> dict[str, Any]:
            answer: dict[str, Any] = (await api.post("/acquire", headers, **asked)).json()
            return answer

        lease = await acquired(pool="a", fallback=["b"], filters=german, lease_seconds=1.5)
        assert lease["pool"] == "b"
        session = {"key": "account-42", "policy": "require"}
        of_session = await acquired(pool="a", session=session, selector="least_used")
        assert of_session["status"] == "active"
        assert (await acquired(pool="a", filters=german))["reason"] == "no_match"
        assert (await acquired(pool="nowhere"))["code"] == "pool_not_found"
        assert (await acquired(pool="paced"))["status"] == "active"
        clock.advance(20)
        paced = await api.post("/acquire", headers, pool="paced")
        assert (paced.status_code, paced.headers["retry-after"]) == (429, "40")
        assert paced.json()["retry_after_seconds"] == 40
        stats = (await api.get("/stats", headers)).json()["pools"]
        assert [each["pool"] for each in stats] == ["a", "b", "paced"]
        assert (await api.get("/stats", headers, pool="a")).json()["pools"][0]["total_leases"] == 1
        assert (await api.get("/stats", headers, pool="c")).status_code == 404

    asking(any_storage, use)


ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "acquire": ("/acquire", {"pool": "a"}),
    "acquire_set": ("/acquire-set", {"pool": "a", "count": 1}),
    "renew": ("/renew", {"lease_id": "LEASE"}),
    "renew_batch": ("/renew-batch", {"leases": [{"lease_id": "LEASE"}]}),
    "report": ("/report", {"lease_id": "LEASE", "outcome": {"kind": "ok"}}),
    "report_batch": (
        "/report-batch",
        {"reports": [{"lease_id": "LEASE", "outcome": {"kind": "ok"}}]},
    ),
    "lease": ("/leases/LEASE", {}),
    "revoke": ("/revoke", {"lease_ids": ["LEASE"], "reason": "x"}),
    "stats": ("/stats", {}),
    "release": ("/release", {"lease_id": "LEASE"}),
    "release_batch": ("/release-batch", {"leases": [{"lease_id": "LEASE"}]}),
}


def test_who_may_do_what(any_storage: AnyStorage) -> None:
    """Each operation by each right, by another consumer, for another pool, and by nobody."""
    assert set(ASKS) == {each.name for each in OPERATIONS.values()}
    fill(any_storage, 1, name="a", max_concurrency=None)
    fill(any_storage, 1, name="b", max_concurrency=None)
    owner = token_of(any_storage)
    by_right = {right: token_of(any_storage, "go-worker", right) for right in ApiRight}
    other = token_of(any_storage, "other")
    elsewhere = token_of(any_storage, "go-worker", pools=("b",))
    nobody: list[dict[str, str]] = [
        {},
        {"Authorization": "Basic dTpw"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer pharox_guessed"},
    ]
    of_leases = {"renew", "report", "lease", "release"}

    async def use(api: Asker) -> None:
        for operation in OPERATIONS.values():
            lease = (await api.post("/acquire", owner, pool="a")).json()["lease_id"]
            path, body = json.loads(json.dumps(ASKS[operation.name]).replace("LEASE", lease))

            async def asked(headers: dict[str, str], method: str = operation.method) -> Any:
                content = {"json": body} if method == "POST" else {}  # noqa: B023
                return await api.ask(method, path, headers, **content)  # noqa: B023

            for headers in nobody:
                assert (await asked(headers)).status_code == 401
            for right, headers in by_right.items():
                answer = await asked(headers)
                assert (answer.status_code == 403) is (right is not operation.right), operation
                assert answer.status_code in {200, 201, 403}
            lease = (await api.post("/acquire", owner, pool="a")).json()["lease_id"]
            path, body = json.loads(json.dumps(ASKS[operation.name]).replace("LEASE", lease))
            for headers in (other, elsewhere):
                answer = await asked(headers)
                if operation.name in of_leases:
                    assert answer.json()["code"] == "lease_not_found"
                elif operation.name.endswith("_batch"):
                    assert answer.json()["results"][0]["code"] == "lease_not_found"
            if operation.name.startswith("acquire"):
                assert (await asked(elsewhere)).status_code == 403
            if operation.name == "revoke":  # `other` may, and has; in another pool nobody may.
                assert any_storage.get_lease(lease).status is LeaseStatus.REVOKED  # type: ignore[union-attr]
                lease = (await api.post("/acquire", owner, pool="a")).json()["lease_id"]
                body = {"lease_ids": [lease], "reason": "x"}
                assert (await asked(elsewhere)).json()["results"][0]["code"] == "lease_not_found"

    asking(any_storage, use)


def test_tokens_run_out_and_are_withdrawn(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A withdrawn one is refused as soon as the list is read again."""
    fill(any_storage, 1, name="a")
    over, text = ApiToken.draw("go-worker", expires_at=utc_now() - timedelta(seconds=1))
    any_storage.add_api_token(over)
    headers = token_of(any_storage)

    async def use(api: Asker) -> None:
        expired = await api.post("/acquire", {"Authorization": f"Bearer {text}"}, pool="a")
        assert (expired.status_code, expired.json()["code"]) == (401, "token_expired")
        assert expired.headers["www-authenticate"].startswith("Bearer")
        assert (await api.post("/acquire", headers, pool="a")).status_code == 201
        later = token_of(any_storage)
        monkeypatch.setattr("pharox.api.tokens.AGAIN_S", 0)
        assert (await api.get("/stats", later)).status_code == 200
        for token in any_storage.list_api_tokens():
            any_storage.withdraw_api_token(token.id)
        monkeypatch.setattr("pharox.api.tokens.REFRESH_S", 0)
        withdrawn = await api.get("/stats", later)
        assert (withdrawn.status_code, withdrawn.json()["code"]) == (401, "token_unknown")

    asking(any_storage, use)


def test_the_description_is_one() -> None:
    """It is open to everybody, valid, and has each operation and each problem."""
    validate(described())

    async def use(api: Asker) -> None:
        answer = await api._client.get("/api/v1/openapi.json")
        assert answer.json() == described()
        for path, method in (
            ("/", "GET"),
            ("/leases", "GET"),
            ("/leases/a/b", "GET"),
            ("/a/b/c", "GET"),
        ):
            assert (await api.ask(method, path, {})).status_code == 404
        wrong = await api.ask("GET", "/acquire", {})
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")

    asking(pharox.InMemoryStorage(), use)


def test_requests_are_counted() -> None:
    """By operation and status; what is no operation makes no series."""
    storage, registry = pharox.InMemoryStorage(), CollectorRegistry()
    fill(storage, 1, name="a")
    headers = token_of(storage)

    async def use(api: Asker) -> None:
        await api.post("/acquire", headers, pool="a")
        await api.post("/acquire", headers, pool="a", wait_seconds=0.01)
        await api.get("/nothing", headers)

    asking(storage, use, registry)

    def count(operation: str, status: int) -> float | None:
        labels = {"operation": operation, "status": str(status)}
        return registry.get_sample_value("pharox_api_requests_total", labels)

    assert (count("acquire", 201), count("acquire", 409), count("none", 404)) == (1, 1, 1)
    waiting = registry.get_sample_value("pharox_api_waiting_requests", {"operation": "acquire"})
    assert waiting == 0


def test_a_blocking_storage_is_refused() -> None:
    """The error says what is needed."""
    with pytest.raises(InvalidInputError):
        create_app(pharox.InMemoryStorage())  # type: ignore[arg-type]


def test_the_console_serves_it_too() -> None:
    """Below its own path, by tokens alone, and with the headers of the console."""
    storage = pharox.InMemoryStorage()
    fill(storage, 1, name="a")
    headers = token_of(storage)
    app = console.create_app(storage, api=create_app(for_tasks(storage)))

    async def use(api: Asker) -> None:
        outer = Asker(app)
        assert (await outer.post("/acquire", headers, pool="a")).status_code == 201
        assert (await outer.post("/acquire", {}, pool="a")).status_code == 401
        front = await outer._client.get("/", headers=headers)
        assert front.status_code == 403  # A token of the API opens no page.

    asking(storage, use)
