"""What the environment says, in the variables that begin with ``PHAROX_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The settings, read when this is made.

    ``secret_key`` may hold several Fernet keys, separated by commas or spaces:
    the first encrypts, all of them decrypt. ``data_dir`` is where the embedded
    server lives.
    """

    model_config = SettingsConfigDict(env_prefix="PHAROX_", env_ignore_empty=True)

    database_url: SecretStr | None = None
    secret_key: SecretStr | None = None
    data_dir: Path | None = None

    def secret_keys(self) -> tuple[str, ...]:
        """Return the Fernet keys, the encrypting one first."""
        if self.secret_key is None:
            return ()
        return tuple(self.secret_key.get_secret_value().replace(",", " ").split())
