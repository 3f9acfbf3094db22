"""``pharox console``: what it refuses before anything listens."""

from __future__ import annotations

import socket

import pytest

from .conftest import Pharox


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--host", "0.0.0.0"), "say who may see the console"),
        (("--token", "short"), "at least 16 characters"),
        (("--actor-header", "X-User"), "needs --trust-proxy"),
        (("--prefix", "ops"), "must begin with a slash"),
    ],
)
def test_wrong_options_are_told_of(pharox: Pharox, options: tuple[str, ...], sentence: str) -> None:
    done = pharox("console", *options)
    assert done.status
    assert sentence in done.err


def test_a_taken_port_is_told_of_once(pharox: Pharox) -> None:
    """And nothing says before that it is served."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = pharox("console", "--port", str(taken.getsockname()[1]))
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert line.endswith("Address already in use")
