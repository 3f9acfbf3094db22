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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

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
_BOUND_TO_SOURCE = b"pharox source"
_LINK = b"rotate link"
"""Part of what a link is bound to, so that it cannot be taken for credentials."""
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


class SourcePlace(NamedTuple):
    """The row of a source's secret, and the source that it belongs to."""

    secret_id: UUID
    source_id: UUID

    def authenticated(self) -> bytes:
        """Return the associated data that binds a secret to this place."""
        return _BOUND_TO_SOURCE + self.secret_id.bytes + self.source_id.bytes


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

    def link_print(self, place: bytes, link: str) -> bytes:
        return self._hash(_LINK + place, link)

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
        plain = json.dumps(_plain(credentials)).encode()
        return self._sealed(plain, place.authenticated(), "keep a proxy's credentials")

    def seal_source(self, url: str, headers: Mapping[str, str], place: SourcePlace) -> bytes:
        """Encrypt the URL and the headers of a source, and bind them to their place.

        Raises
        ------
        SecretKeyError
            If there is no key.
        """
        plain = json.dumps([url, dict(headers)]).encode()
        return self._sealed(plain, place.authenticated(), "keep a source's URL")

    def seal_link(self, link: SecretStr, place: Place) -> bytes:
        """Encrypt the link that gives a proxy another exit, as :meth:`seal` does credentials."""
        plain, bound_to = link.get_secret_value().encode(), _LINK + place.authenticated()
        return self._sealed(plain, bound_to, "keep a proxy's link")

    def open(self, secret: bytes | None, place: Place) -> ProxyCredentials:
        """Decrypt credentials that :meth:`seal` encrypted for this place.

        Raises
        ------
        SecretKeyError
            If there is no key, the secret is missing, or no key can decrypt it here.
        """
        plain = self._read(secret, place, place.authenticated(), "read a proxy's credentials")
        user, password = json.loads(plain)
        return ProxyCredentials(user=user, password=password)

    def open_link(self, secret: bytes | None, place: Place) -> SecretStr:
        """Decrypt a link that :meth:`seal_link` encrypted, as :meth:`open` does credentials."""
        bound_to = _LINK + place.authenticated()
        return SecretStr(self._read(secret, place, bound_to, "read a proxy's link").decode())

    def _read(self, secret: bytes | None, place: Place, bound_to: bytes, purpose: str) -> bytes:
        self._needed(purpose)
        if secret is None:
            raise _unreadable(place, "its credentials are missing; save the proxy with them again")
        plain = self._opened(secret, bound_to)
        if plain is not None:
            return plain
        raise _unreadable(
            place,
            "none of the keys in PHAROX_SECRET_KEY fits its credentials: add the key that they "
            "were encrypted with; if there is none, they were changed or belong to another proxy, "
            "see `pharox verify`",
        )

    def open_source(self, secret: bytes | None, place: SourcePlace) -> tuple[str, dict[str, str]]:
        """Return the URL and the headers that :meth:`seal_source` encrypted for this place.

        Raises
        ------
        SecretKeyError
            If there is no key, the secret is missing, or no key can decrypt it here.
        """
        self._needed("read a source's URL")
        plain = None if secret is None else self._opened(secret, place.authenticated())
        if plain is None:
            raise SecretKeyError(
                "none of the keys in PHAROX_SECRET_KEY fits the URL of the source: add the key "
                "that encrypted it, or add the source again",
                source_id=place.source_id,
            )
        url, headers = json.loads(plain)
        return url, headers

    def _sealed(self, plain: bytes, bound_to: bytes, purpose: str) -> bytes:
        key, nonce = self._needed(purpose)[0], os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + key.cipher.encrypt(nonce, plain, bound_to)

    def _opened(self, secret: bytes, bound_to: bytes) -> bytes | None:
        """Return what a secret holds; None if no key can decrypt it for its place."""
        nonce, sealed = secret[1 : 1 + _NONCE_BYTES], secret[1 + _NONCE_BYTES :]
        for key in self._keys if secret.startswith(_VERSION) else ():
            with suppress(InvalidTag, ValueError):  # ValueError: the secret is too short
                return key.cipher.decrypt(nonce, sealed, bound_to)
        return None

    def link_prints(self, pool_id: UUID, proxy_id: UUID, link: SecretStr) -> list[bytes]:
        """Return the fingerprints of a proxy's link under each key. The first is for storing."""
        place = pool_id.bytes + proxy_id.bytes
        text = link.get_secret_value()
        return [key.link_print(place, text) for key in self._needed("keep a proxy's link")]

    def fingerprints(self, pool_id: UUID, proxy: Proxy) -> Fingerprints:
        """Return the fingerprints to store for a proxy with credentials in a pool."""
        return self._needed("keep a proxy's credentials")[0].fingerprints(pool_id, proxy)

    def known_fingerprints(self, pool_id: UUID, proxy: Proxy) -> list[Fingerprints]:
        """Return the fingerprints under each key, as they may be stored under any of them."""
        return [
            key.fingerprints(pool_id, proxy) for key in self._needed("keep a proxy's credentials")
        ]

    def _needed(self, purpose: str) -> list[_Key]:
        if not self._keys:
            raise SecretKeyError(f"a key is needed to {purpose}: {_HOW}")
        return self._keys


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=purpose).derive(key)


def _plain(credentials: ProxyCredentials | None) -> tuple[str, str]:
    if credentials is None:
        raise TypeError("a proxy without credentials has no fingerprints")
    return credentials.user, credentials.password.get_secret_value()


def _unreadable(place: Place, why: str) -> SecretKeyError:
    return SecretKeyError(f"proxy {place.proxy_id}: {why}", proxy_id=place.proxy_id)
