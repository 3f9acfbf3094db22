"""Encrypt proxies' credentials, and find them without decrypting.

Credentials are encrypted with AES-256-GCM. The associated data is their place: the
row, the pool and the proxy that they belong to. A secret that was moved to another row
therefore cannot be read there, and no password is sent to another host.

Each secret has two fingerprints: of the proxy's account (pool, protocol,
address, user) and of its identity (the account and the password). They are keyed
hashes, so nobody without a key can test a guess against them.

All keys are derived from those in ``PHAROX_SECRET_KEY``, which are Fernet keys: 32 random
bytes each. With several keys, the first encrypts, and all decrypt and find. To
rotate, put the new key first, call ``storage.rotate_secrets()``, then drop the old one.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...errors import SecretKeyError
from ...models import Proxy, ProxyCredentials

_HOW = (
    "make one with `python -c 'from cryptography.fernet import Fernet; "
    "print(Fernet.generate_key().decode())'` and set PHAROX_SECRET_KEY to it"
)
_KEY_BYTES = 32
_NONCE_BYTES = 12
FINGERPRINT_BYTES = 16
_BOUND_TO = b"pharox credentials"
_VERSION = b"\x01"
"""The first byte of every secret, which states its format."""


class Place(NamedTuple):
    """The row of a secret, and the proxy that it belongs to."""

    credential_id: UUID
    pool_id: UUID
    proxy_id: UUID

    def authenticated(self) -> bytes:
        """Return the associated data that binds a secret to this place."""
        return b"".join(
            (_BOUND_TO, self.credential_id.bytes, self.pool_id.bytes, self.proxy_id.bytes)
        )


class Fingerprints(NamedTuple):
    """The keyed hashes of a proxy's account, and of its account with the password."""

    account: bytes
    identity: bytes


class _Key:
    """The encryption key and the fingerprint key that are derived from one secret key."""

    def __init__(self, text: str) -> None:
        key = urlsafe_b64decode(text)
        if len(key) != _KEY_BYTES:
            raise ValueError("a key must have 32 bytes")
        self.cipher = AESGCM(_derived(key, b"pharox credentials"))
        self._fingerprint_key = _derived(key, b"pharox fingerprints")

    def fingerprints(self, pool_id: UUID, proxy: Proxy) -> Fingerprints:
        user, password = _plain(proxy.credentials)
        account = self._hash(pool_id.bytes, proxy.protocol, str(proxy.host), str(proxy.port), user)
        return Fingerprints(account, self._hash(account, password))

    def _hash(self, start: bytes, *texts: str) -> bytes:
        # No text contains a NUL, so different sequences of texts have different bytes.
        data = start + "\x00".join(texts).encode()
        return blake2b(data, digest_size=FINGERPRINT_BYTES, key=self._fingerprint_key).digest()


class Vault:
    """The keys of one ledger. Without keys, credentials cannot be stored or read."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        try:
            self._keys = [_Key(key) for key in keys]
        except (ValueError, TypeError) as error:
            raise SecretKeyError(f"PHAROX_SECRET_KEY holds no valid Fernet key; {_HOW}") from error

    def __repr__(self) -> str:
        return f"Vault({'with' if self._keys else 'without'} keys)"

    @property
    def has_keys(self) -> bool:
        """Whether credentials can be stored and read."""
        return bool(self._keys)

    def seal(self, credentials: ProxyCredentials, place: Place) -> bytes:
        """Encrypt credentials and bind them to their place.

        Raises
        ------
        SecretKeyError
            If there is no key.
        """
        key, nonce = self._needed("keep")[0], os.urandom(_NONCE_BYTES)
        plain = json.dumps(_plain(credentials)).encode()
        return _VERSION + nonce + key.cipher.encrypt(nonce, plain, place.authenticated())

    def open(self, secret: bytes | None, place: Place) -> ProxyCredentials:
        """Decrypt credentials that :meth:`seal` encrypted for this place.

        Raises
        ------
        SecretKeyError
            If there is no key, the secret is missing, or no key can decrypt it here.
        """
        keys = self._needed("read")
        if secret is None:
            raise _unreadable(place, "its credentials are missing; save the proxy with them again")
        nonce, sealed = secret[1 : 1 + _NONCE_BYTES], secret[1 + _NONCE_BYTES :]
        for key in keys if secret.startswith(_VERSION) else ():
            try:
                plain = key.cipher.decrypt(nonce, sealed, place.authenticated())
            except (InvalidTag, ValueError):  # ValueError: the secret is too short
                continue
            user, password = json.loads(plain)
            return ProxyCredentials(user=user, password=password)
        raise _unreadable(
            place,
            "none of the keys in PHAROX_SECRET_KEY fits its credentials: add the key that they "
            "were encrypted with; if there is none, they were changed or belong to another proxy, "
            "see `pharox verify`",
        )

    def fingerprints(self, pool_id: UUID, proxy: Proxy) -> Fingerprints:
        """Return the fingerprints to store for a proxy with credentials in a pool."""
        return self._needed("keep")[0].fingerprints(pool_id, proxy)

    def known_fingerprints(self, pool_id: UUID, proxy: Proxy) -> list[Fingerprints]:
        """Return the fingerprints under each key, as they may be stored under any of them."""
        return [key.fingerprints(pool_id, proxy) for key in self._needed("keep")]

    def _needed(self, purpose: str) -> list[_Key]:
        if not self._keys:
            raise SecretKeyError(f"a key is needed to {purpose} a proxy's credentials: {_HOW}")
        return self._keys


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=purpose).derive(key)


def _plain(credentials: ProxyCredentials | None) -> tuple[str, str]:
    if credentials is None:
        raise TypeError("a proxy without credentials has no fingerprints")
    return credentials.user, credentials.password.get_secret_value()


def _unreadable(place: Place, why: str) -> SecretKeyError:
    return SecretKeyError(f"proxy {place.proxy_id}: {why}", proxy_id=place.proxy_id)
