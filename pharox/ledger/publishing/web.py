"""Web servers that keep checkpoints: an object store, and witnesses.

An object store gets one object for each size, and is asked not to overwrite any. A witness
(c2sp.org/tlog-witness) remembers the last size that it cosigned, and demands a proof that the log
has only grown since. What it answers is checked with its key before it is believed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import httpx

from ...errors import CheckpointError, InvalidInputError, PublishingError
from ...models.text import is_loopback
from ...proof.checkpoints import Checkpoint, parse_checkpoint
from ...proof.notes import KeyKind, Signature, VerifierKey, parse_signatures

TIMEOUT_S = 10.0
_MOST_BYTES = 65_536
_CONFLICT, _GONE_FURTHER, _INCONSISTENT = 409, 412, 422

Prove = Callable[[int], tuple[bytes, ...]]
"""Returns the proof that a checkpoint continues the log of so many events."""


class CheckpointUrl:
    """Puts each checkpoint as an object of its own: ``<url>/<size in 20 digits>``.

    Parameters
    ----------
    url:
        Where to; https, or http on this machine. A query, such as a token, stays behind the path;
        no error names it.

    Raises
    ------
    InvalidInputError
        If it is no such URL.
    """

    last: Checkpoint | None = None

    def __init__(self, url: str) -> None:
        self._url = _checked(url)

    def __str__(self) -> str:
        return _shown(self._url)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint.

        Raises
        ------
        CheckpointError
            If there is another one of this size.
        PublishingError
            If the server does not take it.
        """
        url = _below(self._url, f"{checkpoint.head.size:020}")
        content = str(checkpoint).encode()
        answer = _answer("PUT", url, content, {"If-None-Match": "*"})
        if answer.status_code == _GONE_FURTHER:
            self._check_same(url, checkpoint)
        elif not answer.is_success:
            shown = _shown(url)
            raise PublishingError(f"{shown} answers {answer.status_code}", url=shown)
        self.last = checkpoint

    def close(self) -> None:
        """Do nothing: each object has a connection of its own."""

    def _check_same(self, url: str, checkpoint: Checkpoint) -> None:
        answer, shown = _answer("GET", url), _shown(url)
        if not answer.is_success:
            raise PublishingError(
                f"{shown} exists, and cannot be read: {answer.status_code}", url=shown
            )
        try:
            found = parse_checkpoint(answer.text).head
        except InvalidInputError as error:
            raise PublishingError(f"{shown} exists: {error}", url=shown) from error
        if found != checkpoint.head:
            raise CheckpointError(
                f"another log of {checkpoint.head.size} events was published as {shown}",
                size=checkpoint.head.size,
            )


class Witness:
    """A server that cosigns what continues what it saw before.

    Parameters
    ----------
    url:
        Its submission prefix.
    key:
        Its verifier key, which is one for cosignatures.

    Raises
    ------
    InvalidInputError
        If they are not such.
    """

    def __init__(self, url: str, key: VerifierKey) -> None:
        if key.kind is not KeyKind.WITNESS:
            raise InvalidInputError(f"{key.name!r} is not the key of a witness")
        self._url, self._key = _checked(url), key
        self._seen: int | None = None

    def __str__(self) -> str:
        return self._key.name

    def cosign(self, checkpoint: Checkpoint, prove: Prove) -> tuple[Signature, ...]:
        """Return the witness's signatures of a checkpoint.

        Raises
        ------
        CheckpointError
            If the witness has seen another log, or a longer one.
        PublishingError
            If it cannot be reached, or answers what it should not.
        """
        answer = self._ask(checkpoint, self._seen or 0, prove)
        if answer.status_code == _CONFLICT:
            answer = self._ask(checkpoint, self._size_of(answer, checkpoint), prove)
        if answer.status_code in (_CONFLICT, _INCONSISTENT):
            raise self._contradiction(checkpoint)
        if not answer.is_success:
            raise PublishingError(
                f"witness {self} answers {answer.status_code}", url=_shown(self._url)
            )
        signatures = self._valid(answer.text, checkpoint)
        self._seen = checkpoint.head.size
        return signatures

    def _ask(self, checkpoint: Checkpoint, old: int, prove: Prove) -> httpx.Response:
        hashes = prove(old) if 0 < old < checkpoint.head.size else ()
        lines = [f"old {old}", *(base64.b64encode(each).decode() for each in hashes), ""]
        content = "\n".join(lines) + f"\n{checkpoint}"
        return _answer("POST", _below(self._url, "add-checkpoint"), content.encode())

    def _size_of(self, answer: httpx.Response, checkpoint: Checkpoint) -> int:
        """Return how many events the witness has seen the log with."""
        text = answer.text.strip()
        if not text.isdecimal() or len(text) > len(str(2**63)):
            raise PublishingError(
                f"witness {self} answers 409 without a size", url=_shown(self._url)
            )
        size = int(text)
        if size > checkpoint.head.size:
            raise CheckpointError(
                f"witness {self} has seen this log with {size} events, and it has "
                f"{checkpoint.head.size}",
                size=size,
            )
        return size

    def _contradiction(self, checkpoint: Checkpoint) -> CheckpointError:
        return CheckpointError(
            f"witness {self} has seen another log than the one of {checkpoint.head.size} events",
            size=checkpoint.head.size,
        )

    def _valid(self, text: str, checkpoint: Checkpoint) -> tuple[Signature, ...]:
        try:
            given = parse_signatures(text)
        except InvalidInputError as error:
            raise PublishingError(f"witness {self}: {error}", url=_shown(self._url)) from error
        valid = tuple(each for each in given if self._key.accepts(checkpoint.note.text, each))
        if not valid:
            raise PublishingError(
                f"witness {self} has not signed with its key", url=_shown(self._url)
            )
        return valid


def _checked(url: str) -> str:
    parts = urlsplit(url)
    is_private = parts.scheme == "https" or is_loopback(parts.hostname)
    if parts.scheme in ("https", "http") and parts.hostname and is_private:
        return url
    shown = _shown(url)
    raise InvalidInputError(f"{shown!r} is not a URL of https", value=shown)


def _below(url: str, name: str) -> str:
    """Return the URL of what is below another one's path; its query stays behind it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


def _shown(url: str) -> str:
    """Return a URL without what may be a secret: who asks, and its query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _answer(
    method: str, url: str, content: bytes | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    shown = _shown(url)
    try:
        with (
            httpx.Client(timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream(method, url, content=content, headers=headers) as answer,
        ):
            body = b""
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise PublishingError(f"{shown} answers without end", url=shown)
            return httpx.Response(answer.status_code, content=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PublishingError(f"{shown} cannot be reached: {error}", url=shown) from error
