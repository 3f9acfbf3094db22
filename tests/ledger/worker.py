"""A process that reads a subscription and is killed in the middle; see test_subscription_readers.

Called with the database's URL, the subscription's name, how it writes ("inside"
the transaction of the checkpoint, or "outside"), and the seq at which the
process kills itself, 0 for never.
"""

from __future__ import annotations

import os
import signal
import sys

import psycopg

from pharox import Delivery, Subscription
from pharox.storage.postgres import PostgresStorage
from tests.pgbouncer import pooled_engine

INSERT = "INSERT INTO copied (seq, pid, epoch) VALUES (%s, %s, %s)"


def main(url: str, name: str, where: str, last: str) -> None:
    storage = PostgresStorage(pooled_engine(url), secret_keys=[])
    own = psycopg.connect(url.replace("+psycopg", ""), autocommit=True, prepare_threshold=None)

    def copy(delivery: Delivery) -> None:
        connection = delivery.connection or own
        connection.execute(INSERT, [delivery.seq, os.getpid(), delivery.epoch])
        if delivery.seq == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    inside = where == "inside"
    Subscription(name, copy, in_transaction=inside, batch_size=20).run(storage)


if __name__ == "__main__":
    main(*sys.argv[1:])
