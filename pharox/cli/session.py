"""Open the ledger that the global options name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..fleet import Fleet
    from ..fleet.settings import FleetSettings
    from ..history.sealed_log import SealedLog
    from ..storage.postgres import AsyncPostgresStorage, PostgresStorage

Archive = Annotated[
    list[Path] | None,
    typer.Option(
        "--archive",
        metavar="FOLDER",
        help="Read archived events from this folder; may be repeated.",
    ),
]
"""The option ``--archive`` of every command about the past."""

Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The database. Other users can see an argument; PHAROX_DATABASE_URL is private.",
    ),
]
FleetFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet",
        metavar="FILE",
        envvar="PHAROX_FLEET",
        help="The file with the table [fleet], such as pharox.toml, in place of one database.",
    ),
]
OfLedger = Annotated[
    str | None,
    typer.Option("--ledger", metavar="NAME", help="With --fleet: only this ledger of the fleet."),
]
Schema = Annotated[str, typer.Option(metavar="NAME", help="The ledger's schema in the database.")]


@dataclass(frozen=True, slots=True)
class Target:
    """A database and a schema in it, or the file of a fleet, and maybe one ledger of it."""

    url: str | None
    schema: str
    fleet: Path | None = None
    ledger: str | None = None


_KEPT = "pharox.cli.kept"


@contextmanager
def ledger(context: typer.Context) -> Iterator[PostgresStorage]:
    """Open the storage for a command, and close its connections after it."""
    kept: list[PostgresStorage] | None = context.meta.get(_KEPT)
    if kept is not None:
        if not kept:
            kept.append(_opened(context.obj))
        yield kept[0]
        return
    storage = _opened(context.obj)
    try:
        yield storage
    finally:
        storage.close()


def is_of_fleet(context: typer.Context) -> bool:
    """Return whether a command is asked about all ledgers of a fleet."""
    target: Target = context.obj
    return target.url is None and target.fleet is not None and target.ledger is None


@contextmanager
def fleet(context: typer.Context, file: Path | None = None) -> Iterator[Fleet]:
    """Open the fleet of a file, or of the global option, and close its connections after it."""
    from ..errors import InvalidInputError  # noqa: PLC0415 - pydantic takes a while to import
    from ..fleet import Fleet  # noqa: PLC0415 - so does SQLAlchemy

    named = file or context.obj.fleet
    if named is None:
        raise InvalidInputError("say which fleet: give --fleet FILE, or set PHAROX_FLEET")
    with Fleet.connect(named) as opened:
        yield opened


def shown_target(context: typer.Context, storage: PostgresStorage) -> str:
    """Return where a command is connected: the URL without its password, and if it is embedded."""
    url = storage.engine.url
    shown = url.set(drivername="postgresql", password="").render_as_string().replace(":***@", "@")
    return f"{shown}, the embedded server" if _is_embedded(context) else shown


def is_unset(context: typer.Context) -> bool:
    """Return whether a command would set up an embedded server, as nothing else is named."""
    from ..connecting.embedded import is_set_up  # noqa: PLC0415

    return _is_embedded(context) and not is_set_up()


def _is_embedded(context: typer.Context) -> bool:
    from ..settings import Settings  # noqa: PLC0415 - pydantic takes a while to import

    target: Target = context.obj
    return target.url is None and target.fleet is None and Settings().database_url is None


@contextmanager
def kept_open(context: typer.Context) -> Iterator[None]:
    """Have all :func:`ledger` of a block share one storage, which is closed after it."""
    kept = context.meta[_KEPT] = list[Any]()
    try:
        yield
    finally:
        del context.meta[_KEPT]
        for storage in kept:
            storage.close()


def _opened(target: Target) -> PostgresStorage:
    from ..connecting.url import connect  # noqa: PLC0415 - SQLAlchemy takes a while to import

    if target.url is not None or target.fleet is None:
        return connect(target.url, schema=target.schema)
    from ..fleet.ledgers import open_storage  # noqa: PLC0415 - as above

    storage: PostgresStorage = open_storage(*_ledger_of_fleet(target, target.fleet))
    return storage


async def opened_async(target: Target) -> AsyncPostgresStorage:
    """Return the storage for the running event loop, which closes it."""
    from ..connecting.url import connect_async  # noqa: PLC0415 - SQLAlchemy takes a while to import

    if target.url is not None or target.fleet is None:
        return await connect_async(target.url, schema=target.schema)
    from ..fleet.ledgers import open_storage_async  # noqa: PLC0415 - as above

    storage: AsyncPostgresStorage = await open_storage_async(
        *_ledger_of_fleet(target, target.fleet)
    )
    return storage


def _ledger_of_fleet(target: Target, file: Path) -> tuple[str, FleetSettings]:
    """Return the name of the ledger that is asked about, and the settings of its fleet."""
    from ..errors import InvalidInputError  # noqa: PLC0415 - pydantic takes a while to import
    from ..fleet.settings import read_settings  # noqa: PLC0415

    settings = read_settings(file)
    if target.ledger not in settings.ledgers:
        asked = "" if target.ledger is None else f", and {target.ledger!r} is none of it"
        raise InvalidInputError(
            "this is about one ledger of the fleet: say which by --ledger; it has "
            f"{', '.join(sorted(settings.ledgers))}{asked}"
        )
    return target.ledger, settings


@contextmanager
def past(context: typer.Context, archive: list[Path] | None) -> Iterator[SealedLog]:
    """Open the ledger for queries about the past, with its archive if one is given."""
    with ledger(context) as storage:
        if archive:
            from ..ledger.archive.reading import WithArchive  # noqa: PLC0415 - it needs an extra

            yield WithArchive(storage, *archive)
        else:
            yield storage
