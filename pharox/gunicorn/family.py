"""The folder that the processes of one server share, and who of them is alive.

Each start of a server has a folder of its own, so that no count of an earlier one
is found in it, and no other server with the same pids meets it, also where several
containers share a volume. A master that takes over (USR2) joins the folder of the
one that started it. In the folder each process holds a file locked as long as it
lives, whichever way it ends; empty files beside it mark what it is and how it ends:

    {host}.{pid namespace}.{boot id}/
        {identity}.lock                 held by the process
        {identity}.worker               or .master
        {identity}.seat3                which seat a worker has
        {identity}.interrupted          how a worker says that it ends
        seat.3                          held by the worker that has the seat
        started                         when the server was started
        counter_{identity}.db           what the process counts, one file a type

Locks are POSIX locks: a forked child does not have its parent's, and a pid is asked
for only where somebody has removed the file, since a pid may be another's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
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

ROLES = ("master", "worker")
EXITS = ("aborted", "ended", "interrupted", "killed", "max_requests")
"""How workers end: by SIGABRT (a time-out), orderly, by SIGINT, at once, at their limit."""

_FOLDER = re.compile(r"(?P<here>.+\.\d+)\.(?P<boot_id>[0-9a-f]{12})")
_MARK = re.compile(r"(?P<identity>\d+-[0-9a-f]{8})\.(?P<mark>\w+)")
_LOCK, _SEAT = "lock", "seat"
NO_SEAT = "other"
_STARTED = "started"
_SEATS = 1000
_YOUNG_S, _OLD_S, _DYING_S = 60.0, 86_400.0, 2.0


class Member(NamedTuple):
    """A process of a server: its name in the folder, what it is, how it ends."""

    identity: str
    marks: frozenset[str] = frozenset()

    @property
    def is_worker(self) -> bool:
        """Whether it is a worker."""
        return "worker" in self.marks

    @property
    def exit(self) -> str:
        """How it ended, if it has: what does not say so was killed."""
        return next((mark for mark in EXITS if mark in self.marks), "killed")

    @property
    def pid(self) -> int:
        """The pid that it has while it lives."""
        return int(self.identity.partition("-")[0])

    @property
    def seat(self) -> str:
        """The number of its seat, which another worker has after it; "other" without one."""
        seats = (mark.removeprefix(_SEAT) for mark in self.marks if mark.startswith(_SEAT))
        return next(seats, NO_SEAT)

    @property
    def files(self) -> list[str]:
        """The names of the files that tell of it; the lock is the last."""
        return [f"{self.identity}.{mark}" for mark in (*sorted(self.marks), _LOCK)]


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
            raise InvalidInputError(f"{folder} is not a server's metrics folder")
        self.host, self.boot_id = match["here"].rpartition(".")[0], match["boot_id"]
        self.own: str | None = None
        self._held: int | None = None
        self._seat: int | None = None

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
                with contextlib.suppress(OSError):  # A full disk is no reason not to start.
                    (family.folder / _STARTED).write_text(repr(time.time()))
            family.hold()
        except OSError as error:
            raise InvalidInputError(
                "PROMETHEUS_MULTIPROC_DIR: the folder for metrics cannot be created: "
                f"{error.strerror}"
            ) from error
        return family

    @property
    def begun(self) -> float:
        """When the server was started; 0 if that could not be written."""
        try:
            return float((self.folder / _STARTED).read_text())
        except (OSError, ValueError):
            return 0.0

    def hold(self) -> str:
        """Show this process in the folder until it ends; return its name there.

        Raises
        ------
        OSError
            If that cannot be written.
        """
        if self.own is not None:
            return self.own
        own = f"{os.getpid()}-{secrets.token_hex(4)}"
        new = self.folder / f".{own}.new"
        held = os.open(new, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600)
        try:
            os.fchmod(held, 0o644)  # The process that serves may have another user.
            # It is locked before others see it: they would take the process for dead.
            fcntl.lockf(held, fcntl.LOCK_EX)
            new.rename(self.folder / f"{own}.{_LOCK}")
        except OSError:
            os.close(held)
            raise
        self._held, self.own = held, own
        return own

    def mark(self, mark: str) -> None:
        """Show what this process is, or how it is about to end."""
        flags = os.O_CREAT | os.O_NOFOLLOW | os.O_WRONLY
        os.close(os.open(self.folder / f"{self.hold()}.{mark}", flags, 0o600))

    def sit_down(self) -> str:
        """Take the first free seat for as long as this process lives; return its number.

        What is counted for each worker is counted for its seat: of these there are as
        many as workers that live at the same time, however many come and go.

        Raises
        ------
        OSError
            If that cannot be written.
        """
        flags = os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR
        for number in range(1, _SEATS + 1):
            seat = os.open(self.folder / f"{_SEAT}.{number}", flags, 0o600)
            try:
                fcntl.lockf(seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.mark(f"{_SEAT}{number}")
            except BlockingIOError:
                os.close(seat)
            except OSError:
                os.close(seat)
                raise
            else:
                self._seat = seat
                return str(number)
        return NO_SEAT

    def forked(self) -> None:
        """Show the process that a fork has made, in the new process."""
        for held in (self._held, self._seat):
            if held is not None:
                os.close(held)
        self._held = self.own = self._seat = None
        with contextlib.suppress(OSError):  # What counts in it asks again.
            self.hold()

    def members(self) -> list[tuple[Member, bool]]:
        """Return the processes of the folder, and whether each is alive."""
        locks = (one[0] for one in self._marks() if one[1] == _LOCK)
        alive = {identity: self._is_alive(identity) for identity in locks}
        # Listed after that: whoever is dead has marked all that it ever will.
        marks: dict[str, set[str]] = {identity: set() for identity in alive}
        for identity, mark in self._marks():
            if identity in marks and mark != _LOCK:
                marks[identity].add(mark)
        return [(Member(one, frozenset(marks[one])), is_alive) for one, is_alive in alive.items()]

    def _marks(self) -> list[tuple[str, str]]:
        found = filter(None, map(_MARK.fullmatch, os.listdir(self.folder)))
        return [(match["identity"], match["mark"]) for match in found]

    def _is_alive(self, identity: str) -> bool:
        """Return whether a process lives. To look at one's own lock would undo it."""
        return identity == self.own or _is_held(self.folder / f"{identity}.{_LOCK}")

    def is_alive(self, owner: str) -> bool:
        """Return whether the process lives that a file of numbers is of.

        Where no lock is left (somebody clears old files away), or never was (the
        process is none of ours), its pid is asked for: what may live is left alone.
        """
        if (self.folder / f"{owner}.{_LOCK}").exists():
            return self._is_alive(owner)
        pid = owner.partition("-")[0]
        return _runs(int(pid)) if pid.isdigit() else False

    def touch(self) -> None:
        """Let no cleaner of old files take what is in use."""
        for path in (self.folder, *self.folder.iterdir()):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)

    def leave(self) -> None:
        """Remove the folder, unless another process of it lives.

        Gunicorn does not wait for workers that it kills at the end of its patience: they are
        given a moment, unless a master that took over leads them.
        """
        patience = time.monotonic() + _DYING_S
        while others := self._others():
            if any("master" in one.marks for one in others) or time.monotonic() > patience:
                return
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _others(self) -> list[Member]:
        return [one for one, is_alive in self.members() if is_alive and one.identity != self.own]

    def give_to(self, uid: int, gid: int) -> None:
        """Let workers of another user write into the folder; none of them runs yet."""
        if (uid, gid) != (os.geteuid(), os.getegid()):
            for path in (*self.folder.rglob("*"), self.folder):
                os.chown(path, uid, gid, follow_symlinks=False)


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


def _is_held(path: Path) -> bool:
    """Return whether a process holds the file."""
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _root(given: str | None) -> Path:
    """Return the folder that families are made in."""
    if given:
        root = Path(given).absolute()
        # A master that read its configuration again finds what it has set itself.
        if _FOLDER.fullmatch(root.name) and any(root.glob(f"*.{_LOCK}")):
            root = root.parent
        root.mkdir(parents=True, exist_ok=True)
        return root
    root = Path(tempfile.gettempdir()) / f"pharox-gunicorn-{os.getuid()}"
    root.mkdir(mode=0o711, exist_ok=True)
    found = root.lstat()
    if root.is_symlink() or found.st_uid != os.getuid():
        raise PermissionError(0, f"{root} belongs to another user")
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
    for folder in root.glob(f"{glob.escape(_here())}.*"):
        for file in folder.glob(f"{master}-*.master"):
            if _is_held(file.with_suffix(f".{_LOCK}")):
                return Family(folder)
    return None


def _sweep(root: Path) -> None:
    """Remove what servers left that were killed; what was made just now has its time.

    Locks of another host may not be seen here: what is of one is left for a day after its
    last sign of life.
    """
    for folder in root.iterdir():
        match = _FOLDER.fullmatch(folder.name)
        if match is None:
            continue
        with contextlib.suppress(OSError, InvalidInputError):
            wait = _YOUNG_S if match["here"] == _here() else _OLD_S
            if time.time() - folder.stat().st_mtime < wait:
                continue
            if not any(is_alive for _, is_alive in Family(folder).members()):
                shutil.rmtree(folder, ignore_errors=True)
