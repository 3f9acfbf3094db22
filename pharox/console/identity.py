"""Ways to know who asks: a token, a password behind TLS, a reverse proxy that knows.

Each is an ``authorize`` for :func:`pharox.console.create_app`. Whoever has another way (a session
of their own application, a certificate) writes a function instead.

Secrets are compared in constant time. A wrong one is answered like none at all, and how often
somebody may try is bounded.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Collection, Mapping
from hashlib import sha256
from hmac import compare_digest

from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..errors import InvalidInputError
from ..models import check_text
from .access import Access
from .pacing import Pacer
from .rendering import url
from .signing import LOGIN_AGE_S, Signer

COOKIE = "pharox_console"
_SHORTEST = 16
_READ, _ACT = "read", "act"


class TokenAccess:
    """Let in who has a token: as ``Authorization: Bearer``, or typed in once and kept in a cookie.

    The cookie holds who has shown which token, signed. It is good for twelve hours, while that is
    a token. After ten wrong ones in a minute, none is looked at from the same address for a while.

    Parameters
    ----------
    token:
        Who has it may read and act; None if nobody may act.
    read_token:
        Who has it may read.
    secret:
        What cookies are signed with; drawn anew if None. Several processes that serve one console
        need the same.

    Raises
    ------
    InvalidInputError
        If there is no token, or one is shorter than 16 characters.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        read_token: str | None = None,
        secret: str | bytes | None = None,
    ) -> None:
        given = {_ACT: token, _READ: read_token}
        self._tokens = {kind: text for kind, text in given.items() if text is not None}
        if not self._tokens:
            raise InvalidInputError("a console that asks for a token needs one")
        for text in self._tokens.values():
            if len(text) < _SHORTEST:
                raise InvalidInputError(
                    f"a token of the console has at least {_SHORTEST} characters, so that nobody "
                    "guesses it: --token or --read-token, or their variables"
                )
        self._signer = Signer(secret)
        self._pacer = Pacer(10, 60, "wrong tokens")

    def __call__(self, request: Request) -> Access:
        """Return the access of a request; ask for a token by a page if it has none."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return _access(self.kind_of(request, text.strip()), "token")
        access = self.known(request)
        request.state.can_leave = access is not None
        if access is None:
            raise _login_needed(request)
        return access

    def known(self, request: Request) -> Access | None:
        """Return the access of who has typed in a token that still holds, else None."""
        kind, name, digest = self._signer.logged_in(request.cookies.get(COOKIE, "")) or ("", "", "")
        token = self._tokens.get(kind)
        if token is None or not compare_digest(digest, _digest(token)):
            return None
        return _access(kind, name)

    def kind_of(self, request: Request, text: str) -> str:
        """Return what kind of token a text is; 401 if it is none, 429 if too many were wrong."""
        self._pacer.look(peer(request))
        for kind, token in self._tokens.items():
            if compare_digest(_digest(token), _digest(text)):
                return kind
        self._pacer.add(peer(request))
        raise HTTPException(401, "This token is not known.", {"WWW-Authenticate": "Bearer"})

    def cookie(self, request: Request, text: str, name: str) -> dict[str, object]:
        """Return the cookie for who has typed in a token, as arguments of ``set_cookie``."""
        kind = self.kind_of(request, text)
        return {
            "key": COOKIE,
            "value": self._signer.login(kind, name, _digest(text)),
            "max_age": LOGIN_AGE_S,
            "path": request.scope.get("root_path", "") or "/",
            "httponly": True,
            "samesite": "lax",  # a link from a chat leads in; forms are guarded by their tokens
            "secure": request.url.scheme == "https",
        }


class PasswordAccess:
    """Let in who has a password (HTTP Basic), over TLS only.

    Parameters
    ----------
    passwords:
        The password of each name. The name is the actor.
    readers:
        The names that may only read.
    trusted:
        The addresses of reverse proxies that end TLS and say so by ``X-Forwarded-Proto``.

    Raises
    ------
    InvalidInputError
        If nobody has a password, or a name cannot be one.
    """

    def __init__(
        self,
        passwords: Mapping[str, str],
        *,
        readers: Collection[str] = (),
        trusted: Collection[str] = (),
    ) -> None:
        if not passwords:
            raise InvalidInputError("a console that asks for a password needs at least one")
        for name, password in passwords.items():
            check_text(name)
            if not name or ":" in name or not password:
                raise InvalidInputError(
                    "a name has at least one character and no colon, and a password is not empty",
                    value=name,
                )
        if unknown := set(readers) - set(passwords):
            raise InvalidInputError(f"{sorted(unknown)[0]!r} may read, but has no password")
        self._passwords = dict(passwords)
        self._readers, self._trusted = frozenset(readers), frozenset(trusted)
        self._pacer = Pacer(10, 60, "wrong passwords")

    def __call__(self, request: Request) -> Access:
        """Return the access of a request; 401 if its name or password is wrong."""
        if not _is_secure(request, self._trusted):
            raise HTTPException(403, "Passwords are taken over TLS only: ask by https.")
        name, password = _basic(request.headers.get("authorization", ""))
        tried = (peer(request), name)
        self._pacer.look(tried)
        known = self._passwords.get(name, "")
        is_right = compare_digest(_digest(known), _digest(password)) and bool(known)
        if not is_right:
            if name:
                self._pacer.add(tried)
            raise HTTPException(
                401, headers={"WWW-Authenticate": 'Basic realm="pharox", charset="UTF-8"'}
            )
        return _access(_READ if name in self._readers else _ACT, name)


class HeaderAccess:
    """Let in whom a reverse proxy has let in: it says who in a header.

    Parameters
    ----------
    header:
        Its name, such as ``X-Forwarded-User``. The proxy must set it itself, and pass on none.
    trusted:
        The addresses that the proxy asks from; a request over a Unix socket is the proxy's. Whoever
        asks from elsewhere gets nothing, whatever its headers say.
    readers:
        The names that may only read.

    Raises
    ------
    InvalidInputError
        If the header has no name.
    """

    def __init__(
        self, header: str, *, trusted: Collection[str], readers: Collection[str] = ()
    ) -> None:
        if not header.strip():
            raise InvalidInputError("the header that says who asks needs a name")
        self._header = header
        self._trusted, self._readers = frozenset(trusted), frozenset(readers)

    def __call__(self, request: Request) -> Access:
        """Return the access of a request."""
        name = request.headers.get(self._header, "").strip()
        if not name or not _is_trusted(request, self._trusted):
            return Access.none()
        return _access(_READ if name in self._readers else _ACT, name)


def peer(request: Request) -> str:
    """Return the address that a request comes from; a Unix socket has none."""
    return request.client.host if request.client is not None else "unix"


def _access(kind: str, name: str) -> Access:
    return Access.read(name) if kind == _READ else Access.act(actor=name)


def _digest(text: str) -> str:
    """Return a digest, so that comparing two texts tells nothing of their lengths."""
    return sha256(text.encode(errors="surrogateescape")).hexdigest()


def _basic(header: str) -> tuple[str, str]:
    """Return name and password of an ``Authorization`` header, empty if there are none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, _, password = b64decode(encoded, validate=True).decode().partition(":")
    except (Base64Error, UnicodeDecodeError):
        return "", ""
    return name, password


def _is_trusted(request: Request, trusted: Collection[str]) -> bool:
    return request.client is None or request.client.host in trusted


def _is_secure(request: Request, trusted: Collection[str]) -> bool:
    if request.url.scheme == "https":
        return True
    said = request.headers.get("x-forwarded-proto", "")
    return said == "https" and _is_trusted(request, trusted)


def _login_needed(request: Request) -> HTTPException:
    """Send a person to the page that asks for a token, and tell a program that one is needed."""
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        place = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return HTTPException(303, headers={"Location": url(request, "login", to=place)})
    return HTTPException(401, "A token is needed.", {"WWW-Authenticate": "Bearer"})
