"""An option with one value is given once; those that filter take several."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from pharox import Proxy, ProxyPool, ProxyProtocol, ProxyStatus
from pharox.cli.app import app
from pharox.storage.postgres import PostgresStorage

from .conftest import Pharox


def commands(command: Any, words: tuple[str, ...] = ()) -> Any:
    """Yield every command and group with the words that call it."""
    yield words, command
    for name in getattr(command, "commands", ()):
        yield from commands(command.get_command(None, name), (*words, name))


TWICE = [
    (words, option.opts[0], option.nargs)
    for words, command in commands(typer.main.get_command(app))
    for option in command.params
    if option.param_type_name == "option" and not (option.multiple or option.is_flag)
]


def test_there_are_such_options() -> None:
    """The commands have dozens of options that take one value, in groups and in commands."""
    assert len(TWICE) > 40
    assert ((), "--url", 1) in TWICE


@pytest.mark.parametrize(("words", "option", "values"), TWICE)
def test_it_is_given_once(pharox: Pharox, words: tuple[str, ...], option: str, values: int) -> None:
    """Two values are a misuse, and neither is taken."""
    given = (option, *(["1"] * values))
    outcome = pharox(*words, *given, *given)
    assert (outcome.status, outcome.out) == (2, "")
    assert f"'{option}'" in outcome.err.replace("' / '", "'")
    assert "give it once" in outcome.err


def leased(pharox: Pharox, *options: str) -> list[str]:
    """Lease until nothing is left, and return the hosts."""
    hosts: list[str] = []
    while (outcome := pharox("acquire", "p", *options)).status == 0:
        hosts.append(outcome.out.split()[1].split("/")[-1])
    return sorted(hosts)


def test_filters_are_given_several_times(pharox: Pharox, storage: PostgresStorage) -> None:
    """Of several countries any will do, and each option holds beside the others."""
    pool = ProxyPool(name="p")
    storage.save_pool(pool)
    places = [("US", 64500), ("DE", 64500), ("FR", 64500), ("DE", 64501), ("DE", 64502)]
    for number, (country, asn) in enumerate(places, 1):
        storage.save_proxy(
            Proxy(
                host=f"192.0.2.{number}",
                port=80,
                protocol=ProxyProtocol.HTTP,
                pool_id=pool.id,
                status=ProxyStatus.ACTIVE,
                country=country,
                asn=asn,
                max_concurrency=1,
            )
        )
    both = ("--country", "US", "--country", "DE")
    assert leased(pharox, *both, "--asn", "64500") == ["192.0.2.1:80", "192.0.2.2:80"]
    assert leased(pharox, *both, "--asn", "64501", "--asn", "64500") == ["192.0.2.4:80"]
    assert leased(pharox, *both) == ["192.0.2.5:80"]
    assert leased(pharox, "--country", "FR") == ["192.0.2.3:80"]
