"""``pharox subscriptions``: who follows the log, and what became stuck."""

from __future__ import annotations

import pytest
from tenacity import wait_none

from pharox import Delivery, Subscription
from pharox.ledger.subscriptions import parked, subscriptions
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill
from tests.ledger.following import following, is_level, until

from .conftest import Pharox


class Broken(Exception):
    """What the handler of these tests raises."""


@pytest.fixture
def stuck(storage: PostgresStorage) -> PostgresStorage:
    """A ledger with a subscription "mail" that could not take the second proxy's event."""
    fill(storage, 3)

    def handle(delivery: Delivery) -> None:
        if delivery.seq == 3:
            raise Broken("\x1b[31mred")

    subscription = Subscription("mail", handle, attempts=2, pause=wait_none())
    with following(subscription, storage):
        until(lambda: is_level(storage, "mail"))
    storage.ensure_consumer("new")
    return storage


def test_subscriptions_are_listed(stuck: PostgresStorage, pharox: Pharox) -> None:
    """With the checkpoint, how far behind it is, and how many events are parked."""
    (status,) = subscriptions(stuck)
    header, line = pharox("subscriptions").out.splitlines()
    assert header.split() == ["name", "checkpoint", "behind", "seconds", "parked", "reader"]
    words = line.split()
    assert (words[0:3], words[4:]) == (["mail", "4", "1"], ["1", "none"])
    (facts,) = pharox("subscriptions", "--json").objects
    assert facts.pop("lag_seconds") >= status.lag_seconds > 0
    assert facts == {
        "name": "mail",
        "checkpoint": 4,
        "epoch": 1,
        "active": False,
        "lag_events": 1,
        "parked": 1,
    }


def test_none_is_told(pharox: Pharox) -> None:
    """A ledger without subscriptions has an empty list, with a sentence for a person."""
    outcome = pharox("subscriptions")
    assert (outcome.status, outcome.out) == (0, "")
    assert "no subscriptions" in outcome.err
    assert pharox("subscriptions", "--json").objects == []


def test_parked_events_are_listed(stuck: PostgresStorage, pharox: Pharox) -> None:
    """With the error, which a terminal must not obey."""
    (event,) = parked(stuck, "mail")
    _, line = pharox("subscriptions", "parked", "mail").out.splitlines()
    assert line.split() == [
        "3",
        "ProxyRegistered",
        event.key,
        "2",
        "-",
        "Broken:",
        "\\x1b[31mred",
    ]
    (facts,) = pharox("subscriptions", "parked", "mail", "--json").objects
    assert (facts["seq"], facts["retry"]) == (3, False)
    assert facts["error"] == "Broken: \x1b[31mred"


def test_a_long_error_is_cut_in_the_table(storage: PostgresStorage, pharox: Pharox) -> None:
    """So that a row stays a row; JSON has the whole of it."""
    fill(storage, 0)
    told = "much to\n say " * 50

    def handle(_: Delivery) -> None:
        raise Broken(told)

    with following(Subscription("mail", handle, attempts=1), storage):
        until(lambda: is_level(storage, "mail"))
    _, line = pharox("subscriptions", "parked", "mail").out.splitlines()
    assert line.endswith("  Broken: much to say much to say much to say much to say m...")
    (facts,) = pharox("subscriptions", "parked", "mail", "--json").objects
    assert facts["error"] == f"Broken: {told}"


MARKED = "1 parked event of mail marked; no reader is running; the next one tries them first\n"


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ([], MARKED),
        (["--seq", "3"], MARKED),
        (["--seq", "2"], "event 2 is not parked for mail\n"),
        (["--key", "\x1b"], "nothing is parked under \\x1b for mail\n"),
    ],
)
def test_a_retry_is_asked_for(
    stuck: PostgresStorage, pharox: Pharox, option: list[str], sentence: str
) -> None:
    """All, or by key, or by event; the reader does it when there is one."""
    count = sentence == MARKED
    assert pharox("subscriptions", "retry", "mail", *option) == (0, sentence, "")
    assert [event.retry for event in parked(stuck, "mail")] == [count == 1]
    taken: list[int] = []
    with following(Subscription("mail", lambda d: taken.append(d.seq)), stuck):
        until(lambda: is_level(stuck, "mail"))
    assert taken == [3, 5] if count else [5]


@pytest.mark.parametrize(
    ("to", "checkpoint"), [("beginning", 0), ("now", 5), ("3", 2), ("5", 4), ("6", 5)]
)
def test_a_reset_moves_the_checkpoint(
    stuck: PostgresStorage, pharox: Pharox, to: str, checkpoint: int
) -> None:
    """To the beginning, the end, or so that an event is the next; parked ones are forgotten."""
    outcome = pharox("subscriptions", "reset", "mail", "--to", to)
    goes_on = f"mail continues with event {checkpoint + 1}"
    assert outcome.status == 0
    assert outcome.out == f"{goes_on}; 1 parked event dropped; no reader is running\n"
    (status,) = subscriptions(stuck)
    assert (status.checkpoint, status.parked) == (checkpoint, 0)
    assert pharox("subscriptions", "retry", "mail").out == "nothing is parked for mail\n"
    again = pharox("subscriptions", "reset", "mail", "--to", to)
    assert again.out == f"{goes_on}; no reader is running\n"


def test_a_running_reader_is_told_of(stuck: PostgresStorage, pharox: Pharox) -> None:
    """If there is a reader, it carries out the request."""

    def fail(_: Delivery) -> None:
        raise Broken

    with following(Subscription("mail", fail, attempts=1, key=lambda _: "all"), stuck):
        until(lambda: is_level(stuck, "mail"))
        outcome = pharox("subscriptions", "retry", "mail", "--seq", "5")
        assert outcome.out == "1 parked event of mail marked; its reader tries them first\n"
        outcome = pharox("subscriptions", "reset", "mail", "--to", "now")
        assert outcome.out == "mail continues with event 6; 2 parked events dropped\n"


def test_a_subscription_is_removed(stuck: PostgresStorage, pharox: Pharox) -> None:
    """It is not listed any more; while it is read, that is refused."""
    with following(Subscription("mail", print), stuck):
        until(lambda: is_level(stuck, "mail"))
        outcome = pharox("subscriptions", "remove", "mail")
        assert (outcome.status, outcome.out) == (1, "")
        assert "has a running reader" in outcome.err
    assert pharox("subscriptions", "remove", "mail").status == 0
    assert subscriptions(stuck) == []


@pytest.mark.parametrize("words", [["parked"], ["retry"], ["remove"], ["reset", "--to", "now"]])
def test_an_unknown_name_is_a_failure(pharox: Pharox, words: list[str]) -> None:
    """It is named in one sentence."""
    command, *options = words
    outcome = pharox("subscriptions", command, "nobody", *options)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == "pharox: Subscription 'nobody' not found.\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reset", "mail"], "--to"),
        (["reset", "mail", "--to", "yesterday"], "is not a start"),
        (["reset", "mail", "--to", "0"], "is not a start"),
        (["reset", "mail", "--to", "9" * 30], "is not a start"),
        (["reset", "mail", "--to", "7"], "the log has no event 7 yet: it ends at 5"),
        (["retry", "mail", "--key", "k", "--seq", "1"], "not both"),
        (["retry", "mail", "--seq", "9" * 30], "--seq"),
    ],
)
def test_what_makes_no_sense_is_refused(
    stuck: PostgresStorage, pharox: Pharox, words: list[str], sentence: str
) -> None:
    """The exit status says that the command is wrong, and nothing is changed."""
    before = parked(stuck, "mail"), subscriptions(stuck)[0].checkpoint
    outcome = pharox("subscriptions", *words)
    assert (outcome.status, outcome.out) == (2, "")
    assert sentence in outcome.err
    assert (parked(stuck, "mail"), subscriptions(stuck)[0].checkpoint) == before
