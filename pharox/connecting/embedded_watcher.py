"""Stop an embedded server that its users have left without a word.

Run as a program of its own, by its path and with nothing but the standard library, so
that it starts at once and stays small. There is one for each running server. It waits
until no process holds the shared lock of the users any more, however the last of them
has ended: by SIGTERM, by SIGKILL, in a crash. Then it gives others a moment to come,
and stops the server under the exclusive lock.

It is alive as long as it holds the lock on its own file, and it lets go of that before
it lets go of the users' lock: whoever becomes a user after it finds that none watches.

Usage: embedded_watcher.py WATCHERS_LOCK USERS_LOCK UID GID COMMAND...
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time

GRACE_S = 5.0
"""How long a server waits for another user when the last one is gone."""


def main(own_path: str, users_path: str, uid: str, gid: str, *stop: str) -> None:
    """Become the watcher of a server, unless it has one."""
    own = os.open(own_path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if os.fork():  # Whoever has started this need not wait for it; the child has the lock.
        return
    os.setsid()
    users = os.open(users_path, os.O_RDWR)
    wait_until_left(users)
    if not _is_still(users, users_path):
        return  # The folder was removed, and perhaps made again: that server is others'.
    user = {} if uid == "-1" else {"user": int(uid), "group": int(gid), "extra_groups": []}
    subprocess.run(stop, check=False, timeout=120, **user)  # type: ignore[call-overload] # noqa: S603
    os.close(own)
    os.close(users)


def _is_still(descriptor: int, path: str) -> bool:
    """Tell whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def wait_until_left(users: int) -> None:
    """Return with the exclusive lock of the users, when there was none for a moment."""
    while True:
        fcntl.flock(users, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_UN)
        time.sleep(GRACE_S)
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
