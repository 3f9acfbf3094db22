"""``pharox prove`` and ``pharox check``: a proof of one event, for somebody without the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import InvalidInputError
from ..models.ids import NIL
from ..models.text import escape_unprintable, url_of
from .exits import Exit
from .key_files import read_file, read_text
from .session import Archive, past
from .showing import in_utc, say

if TYPE_CHECKING:
    from ..events import Event
    from ..ledger.publishing import ProvingLog
    from ..proof import Checkpoint, VerifierKey


def prove(
    context: typer.Context,
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="The event's place in the log.")],
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint", metavar="FILE", help="The checkpoints that were published, or one."
        ),
    ],
    archive: Archive = None,
) -> None:
    """Write a proof that an event is in the log, which anybody checks without the database.

    It is by the first checkpoint that covers the event. Whoever has it sees all of the event.
    """
    from ..ledger.publishing import prove as proven  # noqa: PLC0415 - takes a while to import

    published = _published(checkpoint)
    with past(context, archive) as log:
        proof = proven(cast("ProvingLog", log), seq, published)
    print(proof, end="")


def check(
    proof: Annotated[
        Path, typer.Argument(metavar="PROOF", help="The file that `pharox prove` wrote, or -.")
    ],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="The verifier key of who signed the log.")
    ],
    witness: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="The verifier key of a witness that has to have cosigned as well."
        ),
    ] = None,
) -> None:
    """Check the proof of an event offline, and print the event; fail if it is not proven."""
    from ..proof import EventProof, VerifierKey  # noqa: PLC0415 - takes a while to import

    verifier = VerifierKey.parse(read_text(key))
    witnesses = [VerifierKey.parse(read_text(each)) for each in witness or ()]
    try:
        found = EventProof.parse(_text(proof))
        event = found.check(verifier)
        seen = [_seen(found.checkpoint, each) for each in witnesses]
    except InvalidInputError as error:
        say(f"not proven: {escape_unprintable(str(error))}")
        raise typer.Exit(Exit.FAILURE) from error
    _print(event)
    say(
        f"proven: {verifier.name} signed this as event {event.seq:,} of the first "
        f"{found.checkpoint.head.size:,}"
    )
    for each in seen:
        say(each)


def _print(event: Event) -> None:
    """Print an event as a sentence; of its pool and proxy only that is known which it says."""
    from ..events import named_pool  # noqa: PLC0415 - these take a while to import
    from ..history.describing import describe  # noqa: PLC0415

    host = getattr(event, "host", None)
    address = None if host is None else url_of(event.protocol, host, event.port)  # type: ignore[union-attr]
    pool = named_pool(event) or (None if event.pool_id == NIL else str(event.pool_id))
    described = describe(event, pool=pool, address=address)
    print(f"{in_utc(event.recorded_at)}  {escape_unprintable(described.sentence)}")
    for line in (described.asked, *described.details, described.by):
        if line:
            print(f"    {escape_unprintable(line)}")


def _text(path: Path) -> str:
    content = read_file(path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("this is not a proof: it is no text") from error


def _published(path: Path) -> list[Checkpoint]:
    """Return the checkpoints of a file, those that can be read."""
    from ..proof import Checkpoint, read_checkpoints  # noqa: PLC0415

    found = read_checkpoints(read_file(path))
    return [each for each in found if isinstance(each, Checkpoint)]


def _seen(checkpoint: Checkpoint, witness: VerifierKey) -> str:
    moment = witness.seen_at(checkpoint.note) if witness.has_signed(checkpoint.note) else None
    if moment is None:
        raise InvalidInputError(f"the checkpoint has no cosignature of {witness.name!r}")
    return f"{witness.name} has seen this log at {in_utc(moment)}"
