"""Encrypt proxies' credentials, with Fernet (AES-128-CBC and HMAC-SHA256).

Several keys rotate: the first encrypts, all of them decrypt. To rotate, put
the new key first, call ``storage.rotate_secrets()``, then drop the old one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from ...errors import SecretKeyError
from ...models import ProxyCredentials

_HOW = (
    "make one with `python -c 'from cryptography.fernet import Fernet; "
    "print(Fernet.generate_key().decode())'` and set PHAROX_SECRET_KEY to it"
)


class Vault:
    """The keys of one ledger, or none, and then credentials can neither be kept nor read."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        except (ValueError, TypeError) as error:
            raise SecretKeyError(f"PHAROX_SECRET_KEY holds no valid Fernet key; {_HOW}") from error

    def __repr__(self) -> str:
        return f"Vault({'with' if self._fernet else 'without'} keys)"

    @property
    def has_keys(self) -> bool:
        """Whether anything can be kept or read at all."""
        return self._fernet is not None

    def seal(self, credentials: ProxyCredentials) -> bytes:
        """Return credentials encrypted.

        Raises
        ------
        SecretKeyError
            If there is no key.
        """
        plain = json.dumps([credentials.user, credentials.password.get_secret_value()])
        return self._keys("keep").encrypt(plain.encode())

    def open(self, secret: bytes) -> ProxyCredentials:
        """Return the credentials in what :meth:`seal` made.

        Raises
        ------
        SecretKeyError
            If there is no key, or none of them fits.
        """
        try:
            user, password = json.loads(self._keys("read").decrypt(secret))
        except InvalidToken as error:
            raise SecretKeyError(
                "none of the keys in PHAROX_SECRET_KEY fits these credentials; "
                "add the key that they were encrypted with"
            ) from error
        return ProxyCredentials(user=user, password=password)

    def rotate(self, secret: bytes) -> bytes:
        """Return ``secret`` encrypted anew with the first key."""
        self.open(secret)
        return self._keys("rotate").rotate(secret)

    def _keys(self, purpose: str) -> MultiFernet:
        if self._fernet is None:
            raise SecretKeyError(f"a key is needed to {purpose} a proxy's credentials: {_HOW}")
        return self._fernet
