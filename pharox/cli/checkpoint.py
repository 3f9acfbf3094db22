"""``pharox checkpoint``: make a key, and publish signed checkpoints of the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .checking import duration_of
from .exits import Exit
from .key_files import read_text
from .lasting import stopping, telling
from .once import Commands
from .session import ledger
from .showing import say

if TYPE_CHECKING:
    from ..ledger.publishing import Published, Witness
    from ..proof import SigningKey

app = Commands(help="Publish signed checkpoints of the log, and make the key that signs them.")


@app.command()
def keygen(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The file for the signing key.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The log's name in checkpoints, such as example.com/proxies; one that nobody "
            "else has if not given.",
        ),
    ] = None,
) -> None:
    """Make a signing key, which only you can read, and FILE.pub, which everybody may.

    Keep the key where nobody who administers the database reads it.
    """
    from ..proof import SigningKey, write_keys  # noqa: PLC0415 - takes a while to import

    key = SigningKey.generate(name)
    try:
        public = write_keys(key, out)
    except OSError as error:
        raise InvalidInputError(f"{out} cannot be written: {error.strerror}") from error
    say(f"{out} signs for {key.name}; give {public} to those who check")


@app.command()
def publish(
    context: typer.Context,
    *,
    to: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|URL",
            help="A file to add to, or the https URL of an object store; may be repeated.",
        ),
    ],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="The signing key, from `checkpoint keygen`.")
    ],
    every: Annotated[
        str | None,
        typer.Option(
            metavar="N|DURATION",
            help="Go on, and publish after so many events (1000), or so often (60s).",
        ),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL=FILE",
            help="Have a witness at this URL cosign; FILE is its verifier key. May be repeated.",
        ),
    ] = None,
) -> None:
    """Sign what the log is now, and publish it; refuse if that contradicts what was published.

    What the key signed last is kept beside it, in KEY.signed: one process at a time signs.
    The exit status is 1 if a web server or a witness did not answer as it should.
    """
    from ..ledger.publishing import Publisher  # noqa: PLC0415 - takes a while to import
    from ..proof import SigningKey  # noqa: PLC0415

    events, seconds = _every(every)
    signing = SigningKey.parse(read_text(key))
    witnesses = [_witness(each) for each in witness or ()]
    record = f"{key}.signed"
    with ledger(context) as storage, _places([record, *to], signing) as opened, telling():
        signed, *places = opened
        publisher = Publisher(storage, signing, places, witnesses, signed=signed)
        if every is not None:
            with stopping() as stop:
                publisher.run(stop, every_events=events, every_s=seconds)
            return
        _tell(publisher.publish())


def _tell(published: Published | None) -> None:
    if published is None:
        say("nothing new: all events are published")
        return
    head = published.checkpoint.head
    say(f"published {head.size:,} events, root {head.root.hex()}")
    if published.failures:
        raise typer.Exit(Exit.FAILURE)


def _every(text: str | None) -> tuple[int | None, float | None]:
    """Return after how many events, or how many seconds."""
    if text is None:
        return None, None
    if text.isdecimal() and len(text) < 10 and int(text):
        return int(text), None
    return None, duration_of(text)


@contextmanager
def _places(names: list[str], key: SigningKey) -> Iterator[list[Any]]:
    """Open the files and web servers to publish to."""
    from ..ledger.publishing import CheckpointFile, CheckpointUrl  # noqa: PLC0415

    with ExitStack() as opened:
        places: list[Any] = []
        for name in names:
            if "://" in name:
                places.append(CheckpointUrl(name))
                continue
            try:
                file = CheckpointFile(name, key.verifier)
            except OSError as error:
                raise InvalidInputError(f"{name} cannot be opened: {error.strerror}") from error
            places.append(opened.enter_context(file))
        yield places


def _witness(text: str) -> Witness:
    from ..ledger.publishing import Witness  # noqa: PLC0415
    from ..proof import VerifierKey  # noqa: PLC0415

    url, equals, file = text.rpartition("=")
    if not equals:
        raise InvalidInputError(f"{text!r} is not URL=FILE", value=text)
    return Witness(url, VerifierKey.parse(read_text(Path(file))))
