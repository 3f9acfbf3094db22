"""The settings of a fleet are read from a file, and what is wrong is said without a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pharox import Fleet, InMemoryStorage, InvalidInputError
from pharox.fleet.settings import read_settings

WHOLE = """
[fleet]
home = "east"
answer_timeout_s = 5

[fleet.ledgers]
west = "postgresql://app@west.example/pharox"

[fleet.ledgers.east]
url_env = "EAST_URL"
schema = "crawling"

[another]
table = true
"""


def test_a_file_names_the_ledgers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL stands in it or in the environment; other tables are not ours."""
    file = tmp_path / "pharox.toml"
    file.write_text(WHOLE)
    with pytest.raises(InvalidInputError, match="EAST_URL, which is not set"):
        Fleet.connect(file)
    monkeypatch.setenv("EAST_URL", "postgresql://app:secret@east.example/pharox?connect_timeout=9")
    with Fleet.connect(file) as fleet:
        assert [*fleet.ledgers] == ["west", "east"]
        east, west = fleet.home.storage, fleet.ledgers["west"].storage
        assert (east.schema, west.schema) == ("crawling", "pharox")
        assert east.engine.url.query["connect_timeout"] == "9"
        assert west.engine.url.query["connect_timeout"] == "5"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"home": "a"}, "fleet.ledgers: Field required"),
        ({"home": "b", "ledgers": {"a": "x"}}, "home is 'b', which is not one of the ledgers"),
        ({"home": "a", "ledgers": {}}, "fleet.ledgers"),
        ({"home": "a", "ledgers": {"a": "x"}, "hom": 1}, "fleet.hom"),
        ({"home": "a", "ledgers": {"a": {"schema": "s"}}}, "give either url or url_env"),
        ({"home": "a", "ledgers": {"a": {"url": "x", "url_env": "Y"}}}, "either url or url_env"),
        ({"home": "a b", "ledgers": {"a b": "x"}}, "'a b' is no name of a ledger"),
        ({"home": "a", "ledgers": {"a": {"url": 7}}}, "fleet.ledgers.a.url"),
        (7, "as the path of a file"),
    ],
)
def test_what_is_wrong_is_said(given: Any, said: str) -> None:
    """With the key that it is about."""
    with pytest.raises(InvalidInputError) as refused:
        read_settings(given)
    assert said in str(refused.value)


def test_no_error_repeats_a_password(tmp_path: Path) -> None:
    """Neither of a file that is no TOML, nor of a URL in the wrong place."""
    file = tmp_path / "pharox.toml"
    for text in ('[fleet]\nhome = "a"\nurl = "postgresql://u:hush@h/d"\n', "[fleet", "[other]\n"):
        file.write_text(text)
        with pytest.raises(InvalidInputError) as refused:
            read_settings(file)
        assert "hush" not in str(refused.value)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_settings(tmp_path / "none.toml")


def test_a_place_that_the_settings_lack_is_said() -> None:
    """Another version of the file had the ledger."""
    home = InMemoryStorage()
    home.place_pool("b", "gone")
    with Fleet.connect({"home": "a", "ledgers": {"a": home}}) as fleet:
        with pytest.raises(InvalidInputError, match="'gone', which the fleet's settings do not"):
            fleet.manager.acquire_proxy("b")
        with pytest.raises(InvalidInputError, match="'gone'"):
            fleet.place("c", "gone")
