"""The folder that the processes of one server share, and who of them is alive.

Each start of a server has a folder of its own, so that no count of an earlier one
is found in it, and no other server with the same pids meets it, also where several
containers share a volume. A master that takes over (USR2) joins the folder of the
one that started it. In the folder each process holds a file locked as long as it
lives, whichever way it ends; the file's name says what it is:

    {host}.{pid namespace}.{boot id}/
        master.{identity}.running
        worker.{identity}.running       renamed to say how the worker ends
        counter_{identity}.db           what the process counts, one file a type

Locks are POSIX locks: a forked child does not have its parent's, and no pid is ever
asked for, which may be somebody else's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidInputError

RUNNING = "running"
_FOLDER = re.compile(r"(?P<host>.+)\.(?P<namespace>\d+)\.(?P<boot_id>[0-9a-f]{12})")
_MEMBER = re.compile(
    r"(?P<role>master|worker|process)\."
    r"(?P<identity>\d+-[0-9a-f]{8})\.(?P<state>\w+)"
)
_YOUNG_S = 60.0


class Member(NamedTuple):
    """A process of a server: what it is, its name in the folder, how it fares."""

    role: str
    identity: str
    state: str

    @property
    def file(self) -> str:
        """Return the name of the file that it holds."""
        return f"{self.role}.{self.identity}.{self.state}"


class Family:
    """The processes of one server, as their folder shows them.

    Parameters
    ----------
    folder:
        One that :meth:`enter` made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        match = _FOLDER.fullmatch(folder.name)
        if match is None or not folder.is_dir():
            raise InvalidInputError(f"{folder} is not the folder of a server")
        self.host, self.boot_id = match["host"], match["boot_id"]
        self.own: Member | None = None
        self._held: int | None = None

    @classmethod
    def enter(cls, given: str | None, started_by: int | None = None) -> Family:
        """Return the family of this server, with its folder.

        Parameters
        ----------
        given:
            In which folder to make it; one of the system's temporary files if None.
        started_by:
            The pid of the master that this one takes over from.

        Raises
        ------
        InvalidInputError
            If the folder cannot be made there.
        """
        try:
            root = _root(given)
            _sweep(root)
            family = _joined(root, started_by) if started_by else None
            if family is None:
                name = f"{_here()}.{secrets.token_hex(6)}"
                (root / name).mkdir(mode=0o700)
                family = cls(root / name)
            family.hold("process")
        except OSError as error:
            raise InvalidInputError(
                f"PROMETHEUS_MULTIPROC_DIR: no folder for metrics can be made: {error.strerror}"
            ) from error
        return family

    def hold(self, role: str) -> Member:
        """Show this process in the folder until it ends, and return what it is there.

        Raises
        ------
        OSError
            If that cannot be written.
        """
        if self._held is not None and self.own is not None:
            return self._become(self.own, self.own._replace(role=role))
        own = Member(role, f"{os.getpid()}-{secrets.token_hex(4)}", RUNNING)
        new = self.folder / f".{own.identity}.new"
        held = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # It is locked before others see it: they would take the process for dead.
            fcntl.lockf(held, fcntl.LOCK_EX)
            new.rename(self.folder / own.file)
        except OSError:
            os.close(held)
            raise
        self._held, self.own = held, own
        return own

    def end(self, state: str) -> None:
        """Show how this process is about to end."""
        if self.own is not None:
            self._become(self.own, self.own._replace(state=state))

    def _become(self, before: Member, now: Member) -> Member:
        if now != before:
            (self.folder / before.file).rename(self.folder / now.file)
        self.own = now
        return now

    def forked(self) -> None:
        """Show the process that a fork has made, in the new process."""
        if self._held is not None:
            os.close(self._held)
        self._held = self.own = None
        with contextlib.suppress(OSError):  # What counts in it asks again.
            self.hold("process")

    def members(self) -> list[tuple[Member, bool]]:
        """Return the processes that have a file, and whether each is alive.

        This process is not to ask for itself: to look at its lock would undo it.
        """
        found = []
        for match in filter(None, map(_MEMBER.fullmatch, os.listdir(self.folder))):
            member = Member(*match.group("role", "identity", "state"))
            is_alive = member == self.own or _is_held(self.folder / member.file)
            if is_alive is not None:
                found.append((member, is_alive))
        return found

    def leave(self) -> None:
        """Remove the folder, unless another process of it lives."""
        others = [member for member, is_alive in self.members() if is_alive and member != self.own]
        if not others:
            shutil.rmtree(self.folder, ignore_errors=True)

    def give_to(self, uid: int, gid: int) -> None:
        """Let workers of another user write into the folder."""
        if (uid, gid) != (os.geteuid(), os.getegid()):
            os.chown(self.folder, uid, gid)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a file for a block; the value is whether nobody else held it."""
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_held(path: Path) -> bool | None:
    """Return whether a process holds the file; None if it is gone or has another name by now."""
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return True
    return False


def _root(given: str | None) -> Path:
    """Return the folder that families are made in."""
    if given:
        root = Path(given).absolute()
        # A master that read its configuration again finds what it has set itself.
        if _FOLDER.fullmatch(root.name) and any(root.glob("master.*")):
            root = root.parent
        root.mkdir(parents=True, exist_ok=True)
        return root
    root = Path(tempfile.gettempdir()) / f"pharox-gunicorn-{os.getuid()}"
    root.mkdir(mode=0o711, exist_ok=True)
    found = root.lstat()
    if root.is_symlink() or found.st_uid != os.getuid():
        raise PermissionError(0, f"{root} belongs to somebody else")
    return root


def _here() -> str:
    """Return what tells this host, and its processes' pids, from others."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname().replace('/', '-')}.{namespace}"


def _joined(root: Path, master: int) -> Family | None:
    """Return the family of a master that runs here."""
    for folder in root.glob(f"{_here()}.*"):
        for file in folder.glob(f"master.{master}-*.{RUNNING}"):
            if _is_held(file):
                return Family(folder)
    return None


def _sweep(root: Path) -> None:
    """Remove what servers left that were killed; what was made just now has its time."""
    for folder in root.iterdir():
        if not _FOLDER.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _YOUNG_S:
                continue
            if not any(is_alive for _, is_alive in Family(folder).members()):
                shutil.rmtree(folder, ignore_errors=True)
