"""Sign what a browser keeps for us: who has logged in, and which form was shown to whom.

A form carries a token that is bound to whom it was shown to and to what it does, and is good for an
hour. A page of another site cannot know it, so it cannot have a browser send the form (CSRF). What
browsers say of a request's origin is looked at as well.
"""

from __future__ import annotations

from secrets import token_bytes
from urllib.parse import urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.exceptions import HTTPException
from starlette.requests import Request

FORM_AGE_S = 3600
LOGIN_AGE_S = 12 * 3600

_OWN_ORIGINS = ("same-origin", "none")


class Signer:
    """Signs values with one secret, which is drawn if none is given.

    Parameters
    ----------
    secret:
        What several processes of one console share, so that each knows the forms of the others.
    """

    def __init__(self, secret: str | bytes | None = None) -> None:
        key = secret or token_bytes(32)
        self._forms = URLSafeTimedSerializer(key, salt="pharox console form")
        self._logins = URLSafeTimedSerializer(key, salt="pharox console login")
        self._said = URLSafeTimedSerializer(key, salt="pharox console said")

    def form_token(self, actor: str | None, path: str) -> str:
        """Return the token of a form that is shown to an actor and sent to a path."""
        return str(self._forms.dumps([actor, path]))

    def check_form(self, request: Request, actor: str | None, token: str) -> None:
        """Raise 403 unless a form was shown to this actor, for this path, in the last hour."""
        try:
            shown = self._forms.loads(token, max_age=FORM_AGE_S)
        except BadSignature:
            shown = None
        if shown != [actor, request.url.path] or not _is_from_here(request):
            raise HTTPException(
                403, "This form was not shown to you by this console, or more than an hour ago."
            )

    def login(self, kind: str, name: str, digest: str) -> str:
        """Return the value of a cookie for somebody who has shown a token of a kind."""
        return str(self._logins.dumps([kind, name, digest]))

    def logged_in(self, value: str) -> tuple[str, str, str] | None:
        """Return what :meth:`login` was told, if a cookie is ours and not too old, else None."""
        try:
            kind, name, digest = self._logins.loads(value, max_age=LOGIN_AGE_S)
        except BadSignature:
            return None
        return kind, name, digest

    def say(self, sentence: str) -> str:
        """Return a sentence for the query of a link, which nobody else can make us say."""
        return str(self._said.dumps(sentence))

    def said(self, value: str) -> str | None:
        """Return the sentence of a link of the last hour, else None."""
        try:
            return str(self._said.loads(value, max_age=FORM_AGE_S))
        except BadSignature:
            return None


def _is_from_here(request: Request) -> bool:
    """Return whether a browser sends a request from a page of ours, as far as it says."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in _OWN_ORIGINS
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
