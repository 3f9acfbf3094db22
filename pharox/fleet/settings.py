"""The ledgers of a fleet by name, as the table ``[fleet]`` of ``pharox.toml`` says them.

Nothing is connected here. A URL may be left to an environment variable, so that no password stands
in a file. An error says which file and which key it is about, and never repeats a value.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import InvalidInputError

FILE = "pharox.toml"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"


class LedgerSettings(BaseModel):
    """Where one ledger is.

    Attributes
    ----------
    url:
        The database, as :func:`pharox.connect` takes it.
    url_env:
        The environment variable that has the URL instead.
    schema_name:
        The schema; ``schema`` in a file.
    storage:
        A storage instead of a URL, such as one in memory. A file cannot name one.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_by_alias=True
    )

    url: SecretStr | None = None
    url_env: str | None = None
    schema_name: str = Field(default="pharox", alias="schema", min_length=1)
    storage: Any = Field(default=None, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """Take a URL, or a storage, for a table with it alone."""
        if isinstance(value, str):
            return {"url": value}
        return value if isinstance(value, Mapping | LedgerSettings) else {"storage": value}

    @model_validator(mode="after")
    def _one_place(self) -> LedgerSettings:
        if sum(each is not None for each in (self.url, self.url_env, self.storage)) != 1:
            raise ValueError("give either url or url_env")
        return self

    def database_url(self, name: str) -> str:
        """Return the URL, which may stand in the environment."""
        if self.url is not None:
            return self.url.get_secret_value()
        url = os.environ.get(self.url_env or "")
        if not url:
            raise InvalidInputError(
                f"the ledger {name!r} has its URL in the environment variable {self.url_env}, "
                "which is not set"
            )
        return url


class FleetSettings(BaseModel):
    """The ledgers of a fleet, and which of them is home.

    Attributes
    ----------
    home:
        The ledger that keeps the directory, and every pool that the directory does not place.
    ledgers:
        All ledgers by name, the home one too.
    connect_timeout_s:
        How long to try to reach a server, in seconds, unless its URL says it.
    answer_timeout_s:
        How long to wait for each answer of a lease, the directory or a merged read, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: str
    ledgers: dict[str, LedgerSettings] = Field(min_length=1)
    connect_timeout_s: int = Field(default=5, ge=2, le=600)
    answer_timeout_s: float = Field(default=30.0, gt=0)

    @field_validator("ledgers")
    @classmethod
    def _names(cls, ledgers: dict[str, LedgerSettings]) -> dict[str, LedgerSettings]:
        import re  # noqa: PLC0415

        for name in ledgers:
            if not re.match(_NAME, name):
                raise ValueError(
                    f"{name!r} is no name of a ledger: it consists of letters, digits, - and _"
                )
        return ledgers

    @model_validator(mode="after")
    def _home_is_known(self) -> FleetSettings:
        if self.home not in self.ledgers:
            raise ValueError(f"home is {self.home!r}, which is not one of the ledgers")
        return self


def read_settings(given: str | Path | Mapping[str, Any] | FleetSettings) -> FleetSettings:
    """Return the settings of a fleet.

    Parameters
    ----------
    given:
        The path of a TOML file with a table ``[fleet]``, or what such a table has.

    Raises
    ------
    InvalidInputError
        If the file cannot be read, or the settings are not valid. The message says where.
    """
    if isinstance(given, FleetSettings):
        return given
    if isinstance(given, Mapping):
        return _checked(given, "the fleet's settings")
    if not isinstance(given, str | Path):
        raise InvalidInputError(
            f"a fleet is given as the path of a file such as {FILE}, or as a mapping, not as a "
            f"{type(given).__name__}"
        )
    path = Path(given)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{str(path)!r} is not TOML: {error}") from None
    if not isinstance(table := content.get("fleet"), dict):
        raise InvalidInputError(f"{str(path)!r} has no table [fleet]")
    return _checked(table, str(path))


def _checked(table: Mapping[str, Any], where: str) -> FleetSettings:
    try:
        return FleetSettings.model_validate(table)
    except ValidationError as error:
        # Not chained: an error of pydantic quotes values, and a URL may have a password.
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(["fleet", *map(str, first["loc"])])
        raise InvalidInputError(
            f"{where}: {key}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
