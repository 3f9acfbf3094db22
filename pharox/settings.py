"""Settings from the environment variables that begin with ``PHAROX_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import AnyHttpUrl, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import InvalidInputError, SecretKeyError


class Settings(BaseSettings):
    """The settings, read from the environment on construction. An empty variable is as none."""

    model_config = SettingsConfigDict(env_prefix="PHAROX_", env_ignore_empty=True)

    database_url: SecretStr | None = None
    """The database; without one, an embedded server is started."""

    secret_key: SecretStr | None = None
    """Fernet keys, separated by commas or spaces: the first encrypts, all of them decrypt."""

    secret_key_file: Path | None = None
    """A file with these keys, such as a credential of systemd or a secret of Docker; only if
    there is no ``PHAROX_SECRET_KEY``."""

    data_dir: Path | None = None
    """Where the embedded server keeps its data and its key file."""

    check_url: str | None = None
    """The page that ``pharox sweep`` fetches through proxies, unless it is given another."""

    def secret_keys(self) -> tuple[str, ...]:
        """Return the Fernet keys, the encrypting one first.

        Raises
        ------
        SecretKeyError
            If their file cannot be read.
        """
        if self.secret_key is not None:
            keys = self.secret_key.get_secret_value()
        elif self.secret_key_file is not None:
            keys = _read_key_file(self.secret_key_file)
        else:
            keys = ""
        return tuple(keys.replace(",", " ").split())


def _read_key_file(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text"
        raise SecretKeyError(
            f"{str(path)!r}, which PHAROX_SECRET_KEY_FILE names, cannot be read: {reason}"
        ) from None  # the error's text could hold parts of a key


def check_url(given: str | None, option: str) -> str:
    """Return the page to fetch through proxies: the given one, else that of PHAROX_CHECK_URL.

    Programs have no built-in default: it would reveal all their proxies to a stranger.

    Raises
    ------
    InvalidInputError
        If there is none, or the variable is not a URL; the message names ``option``.
    """
    if given:
        return given
    url = Settings().check_url
    if url is None:
        raise InvalidInputError(
            f"a sweep needs a page of your own to fetch through the proxies: give {option}, "
            "or set PHAROX_CHECK_URL"
        )
    try:
        AnyHttpUrl(url)
    except ValidationError as error:
        raise InvalidInputError("PHAROX_CHECK_URL is not an http or https URL") from error
    return url
