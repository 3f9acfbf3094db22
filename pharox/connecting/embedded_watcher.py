"""Stop an embedded server after its last user has been killed or has crashed.

It runs as a separate program, by its path and with only the standard library, so that
it starts fast and stays small. Each running server has one. It waits until no process
holds the shared users' lock any more, however the last of them ended: by SIGTERM, by
SIGKILL, in a crash. Then it waits some seconds for new users, and stops the server under
the exclusive lock.

The lock on its own file shows that it is alive. It releases that lock before the users'
lock, so a process that becomes a user afterwards finds that no watcher runs.

Usage: embedded_watcher.py WATCHERS_LOCK USERS_LOCK UID GID COMMAND...
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time

GRACE_S = 5.0
"""How long to wait for another user after the last one has gone."""


def main(own_path: str, users_path: str, uid: str, gid: str, *stop: str) -> None:
    """Watch a server, unless another watcher does."""
    own = os.open(own_path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if os.fork():  # The starter need not wait; the child keeps the lock.
        return
    os.setsid()
    users = os.open(users_path, os.O_RDWR)
    wait_until_left(users)
    if not _is_still(users, users_path):
        return  # The folder was removed or replaced: its server is not ours.
    user = {} if uid == "-1" else {"user": int(uid), "group": int(gid), "extra_groups": []}
    subprocess.run(stop, check=False, timeout=120, **user)  # type: ignore[call-overload] # noqa: S603
    # In this order: a new user waits for the users' lock and then finds no watcher.
    os.close(own)
    os.close(users)


def _is_still(descriptor: int, path: str) -> bool:
    """Return whether a path still names this open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def wait_until_left(users: int) -> None:
    """Return with the users' lock held exclusively, once nobody has held it for ``GRACE_S``."""
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
