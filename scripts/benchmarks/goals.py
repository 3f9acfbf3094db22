"""The goals of figures, and for each missed goal the limit and its cause.

One place for all of them: a line of a table names its goal, and the page of the
benchmarks quotes the reason when the measured figure misses it.
"""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """A bound for one figure; ``limit`` is shown only if the figure misses it."""

    name: str
    what: str
    at_least: float | None = None
    at_most: float | None = None
    limit: str = ""

    def is_met(self, value: float) -> bool:
        """Whether a figure is within the bound."""
        enough = self.at_least is None or value >= self.at_least
        return enough and (self.at_most is None or value <= self.at_most)


CORE_LONE_FLOOR = Goal(
    "core-lone-floor",
    "cycles of a lone caller: of two commits through bare psycopg",
    at_least=0.45,
    limit="A cycle decides, appends two events with their indexes and folds them, and the "
    "worker's Python comes on top: the processor times of both are in the table.",
)
CORE_LONE_PEER = Goal(
    "core-lone-peer",
    "cycles of a lone caller: of pharox 0.11.0's",
    at_least=8,
    limit="A lone caller shares its commits with nobody, so the ratio is what a cycle costs.",
)
CORE_LONE_P50 = Goal(
    "core-lone-p50",
    "half of a lone caller's acquisitions: of one commit through bare psycopg",
    at_most=2.2,
    limit="An acquisition is one commit, and the time that the server decides and folds before it.",
)
CORE_TASKS = Goal(
    "core-tasks",
    "cycles of 64 tasks: of 5,000 a second or 0.7 of the 8-client floor, whichever is less",
    at_least=1,
    limit="All tasks share one thread, one statement at a time and the server's core that runs it; "
    "the processor time of a cycle in the worker and in the server is the limit.",
)
CORE_TASKS_PEER = Goal(
    "core-tasks-peer",
    "cycles of 64 tasks: of pharox 0.11.0's asyncpg adapter",
    at_least=45,
    limit="All tasks share one thread, one statement at a time and the server's core that runs it; "
    "the processor time of a cycle in the worker and in the server is the limit.",
)
CORE_THREADS = Goal(
    "core-threads",
    "cycles of 64 threads a second",
    at_least=2_500,
    limit="A thread is woken for each of its two commands, under the interpreter's lock.",
)
CORE_SETS = Goal(
    "core-sets",
    "cycles of one caller in sets of 64: of the 8-client floor",
    at_least=1.2,
    limit="A cycle makes about 24 entries of indexes, which take most of the server's time.",
)
CORE_PROCESSES_PEER = Goal(
    "core-processes-peer",
    "cycles of 8 processes: of pharox 0.11.0's",
    at_least=11,
    limit="Eight workers and the server's backends have the cores of one machine between them.",
)
CORE_FLAT = Goal(
    "core-flat",
    "cycles of more callers of one process: of 8",
    at_least=0.95,
    limit="Callers of one process share a connection.",
)
CORE_OBSERVE = Goal(
    "core-observe",
    "ms of processor time that logs and metrics take a cycle",
    at_most=0.1,
    limit="A line is written for each of a cycle's two events, and metrics are counted.",
)
CORE_LOG_BYTES = Goal(
    "core-log-bytes",
    "bytes of log of a lease cycle, with indexes and seals",
    at_most=800,
    limit="Each event has an entry in most of the log's indexes.",
)
CORE_WAL_BYTES = Goal(
    "core-wal-bytes",
    "bytes of the write-ahead log of a lone caller's cycle, without full-page images",
    at_most=2_500,
    limit="Each row and each entry of an index that a cycle writes is a record.",
)
CORE_CHECK_BYTES = Goal(
    "core-check-bytes",
    "bytes of log of a check that changes nothing",
    at_most=80,
    limit="Its proxy is 16 bytes; the rest is what no other check of the batch says.",
)
CORE_PARTS_SEAL = Goal(
    "core-parts-seal",
    "a seal with 630 partitions: of one with 1",
    at_most=1.5,
    limit="The sealer looks for new events in every partition.",
)
CORE_PARTS_ACQUIRE = Goal(
    "core-parts-acquire",
    "an acquisition under an id with 630 partitions: of one with 1",
    at_most=1.5,
    limit="Whether the id was granted before is looked up in every partition.",
)
CORE_REBUILD = Goal(
    "core-rebuild",
    "events of a long log rebuilt into all read models a second",
    at_least=200_000,
    limit="Each read model folds the log with a statement of its own, and before the exchange the "
    "log's seals are checked, which takes two fifths of the time.",
)
CORE_SEAL = Goal(
    "core-seal",
    "events of a long log sealed a second",
    at_least=150_000,
    limit="A tick is one statement on one core: it sorts, hashes and inserts each event's seal.",
)

KEEP_WORKER = Goal(
    "keep-worker",
    "% of a core that keeping 10,000 leases of 60 s takes in the worker",
    at_most=5,
    limit="Each renewal is a request, an answer and a place in the schedule, all in Python.",
)
KEEP_SERVER = Goal(
    "keep-server",
    "% of a core that keeping 10,000 leases of 60 s takes in the server",
    at_most=5,
    limit="Each renewal is an event with its indexes, and a new version of the lease's row.",
)

WAIT_P95 = Goal("wait-p95", "seconds that 19 of 20 waits last at most", at_most=1.3)
WAIT_LONGEST = Goal("wait-longest", "seconds of the longest wait", at_most=1.6)
WAIT_FEWEST = Goal("wait-fewest", "jobs of the worker that had fewest", at_least=12)
WAIT_MOST = Goal("wait-most", "jobs of the worker that had most", at_most=17)
WAIT_BUSY = Goal("wait-busy", "of the time that proxies are in use", at_least=0.9)
WAIT_HAND_OVER_P50 = Goal(
    "wait-hand-over-p50",
    "ms from a release to the waiter's return, half of the time",
    at_most=5,
    limit="To another process it takes two commits, a notification, and the way from the thread "
    "that is woken to the caller.",
)
WAIT_HAND_OVER_P99 = Goal(
    "wait-hand-over-p99", "ms from a release to the waiter's return, 99 of 100 times", at_most=25
)
WAIT_IDLE = Goal(
    "wait-idle", "% of a core that 1,000 waiters of one process take in the server", at_most=1
)

TARGETS_REFUSED = Goal(
    "targets-refused", "% of the requests of a crawl that the site refuses", at_most=2
)
TARGETS_MANY_PAIRS = Goal(
    "targets-many-pairs",
    "the time of a lease where 90 % of 100,000 proxies rest for its target: of one where none do",
    at_most=1.1,
    limit="All in front of the order rest, so the others are looked through from some id on: some "
    "ten pairs more are read, in one statement more.",
)

SCRAPY_RATE = Goal(
    "scrapy-rate",
    "pages a second of a crawl of Scrapy through leased proxies: of one through fixed ones",
    at_least=0.9,
    limit="A slot of Scrapy waits for a lease before each page, and a lease and its release take "
    "the crawler and the server processor time, while both, and the proxies, have two cores "
    "between them.",
)
SCRAPY_ONCE = Goal("scrapy-once", "pages of 2,000 that came once", at_least=2_000)
SCRAPY_LEFT = Goal("scrapy-left", "leases that a crawl has left", at_most=0)
SCRAPY_RESTS = Goal("scrapy-rests", "leases of a crawl of a proxy that rested", at_most=0)

LEASE_FLOOR_1 = Goal(
    "lease-floor-1",
    "lease cycles, 1 client: of the floor of two commits",
    at_least=0.6,
    limit="The server's processor time is the limit, not the disk. A cycle decides under a row "
    "lock, appends two events to the log with its indexes and folds them into the read "
    "models: that alone takes the server longer than both commits of the floor with their "
    "waiting, and the worker's Python comes on top (see where the time of a cycle goes). On "
    "a disk whose commits take milliseconds both would wait most of their time, and the "
    "ratio would be higher.",
)
LEASE_FLOOR_8 = Goal(
    "lease-floor-8",
    "lease cycles, 8 clients: of the floor of two commits",
    at_least=0.6,
    limit="The floor's commits share their writes to the disk, so it hardly costs processor time; "
    "a cycle of ours does, in the worker and in the server, and eight workers have the "
    "cores of one machine between them. Cores divided by the processor time of a cycle is "
    "the most there can be, and that is about what is measured. Workers on machines of "
    "their own would leave the server its cores.",
)
LEASE_PEER_1 = Goal(
    "lease-peer-1",
    "lease cycles, 1 process: of pharox 0.11.0's",
    at_least=6,
    limit="Both spend most of a cycle on processor time, in Python and in the server; the ratio "
    "moves with what else runs on the machine.",
)
LEASE_PEER_8 = Goal(
    "lease-peer-8",
    "lease cycles, 8 processes: of pharox 0.11.0's",
    at_least=20,
    limit="Ours is at the end of this machine's cores with two processes already, and more of "
    "them only take turns (see the growth by clients), while the rate of 0.11.0 hardly "
    "depends on their number. So the ratio is what a cycle of ours costs in processor time, "
    "and more cores would raise it. Its misses and errors count neither for nor against it.",
)
LEASE_FLAT_POOL = Goal(
    "lease-flat-pool",
    "lease cycles with 1,000,000 proxies: of those with 100",
    at_least=0.9,
    limit="The statements and their plans are the same for any size. A million proxies are leased "
    "in turn, so each cycle touches other pages of tables and indexes, which are in no "
    "cache of the processor and are written whole to the write-ahead log the first time "
    "after a checkpoint.",
)
LEASE_FLAT_HISTORY = Goal(
    "lease-flat-history",
    "lease cycles with the longest history behind them: of those with none",
    at_least=0.9,
    limit="The indexes of a long log are a level deeper and do not fit the server's shared "
    "buffers (its default of 128 MB here); no statement reads the history.",
)
MEMORY_RATE = Goal(
    "memory-rate",
    "lease cycles a second in memory",
    at_least=10_000,
    limit="A cycle makes two immutable events and folds them into all read models in Python. It "
    "is one core's pace, and nothing is waited for. About a sixth is Python's garbage "
    "collector, which looks through a log that only grows; gc.freeze() does not help, "
    "gc.disable() does.",
)
MEMORY_FLAT = Goal("memory-flat", "in memory with 100,000 proxies: of those with 100", at_least=0.7)
NO_ERRORS = Goal("no-errors", "none", at_most=0)

APPEND_PLAIN = Goal(
    "append-plain",
    "appends to the log: of those to a plain table",
    at_least=0.6,
    limit="The log has more indexes than the plain table, each of which is written with the event.",
)
APPEND_SEALED = Goal(
    "append-sealed",
    "appends with a sealer beside them: of those without",
    at_least=0.9,
    limit="The sealer reads, hashes and writes each event once more, on the same cores as the "
    "writers; on a machine with a core to spare it costs them nothing.",
)
SEAL_RATE = Goal(
    "seal-rate",
    "events of a backlog sealed a second",
    at_least=100_000,
    limit="A tick is one statement on one core: it sorts, hashes and inserts each event's seal.",
)
REBUILD_RATE = Goal(
    "rebuild-rate",
    "events rebuilt into all read models a second",
    at_least=300_000,
    limit="Every read model folds the whole log with a statement of its own, and the one of "
    "leases, which takes about two fifths of the time, writes a row with its indexes for "
    "each lease that there ever was. Parts of the log are folded at once where there are "
    "more cores.",
)
REBUILD_PEER = Goal("rebuild-peer", "a rebuild: of eventsourcing's projection runner", at_least=20)
DELIVERY_RATE = Goal(
    "delivery-rate",
    "events delivered in the transaction of the checkpoint a second",
    at_least=20_000,
    limit="A batch is read, made objects of, handled and committed, one after the other and in one "
    "process, as a subscription has one active reader.",
)
DELIVERY_P99 = Goal(
    "delivery-p99",
    "from a commit to a handler, 99 of 100 within ms",
    at_most=20,
    limit="Writers, server, sealer and handler share the machine's cores; who waits for a core "
    "waits for some milliseconds.",
)
EXCHANGE_LOCKED = Goal(
    "exchange-locked",
    "ms for which a rebuild holds writers up",
    at_most=100,
    limit="The locks are held while the tail of the log is folded, tables change places and that "
    "is committed; with all cores busy with eight workers, the one that holds them has to wait "
    "for its turn.",
)
EXCHANGE_PAUSE = Goal(
    "exchange-pause",
    "longest cycle of any worker during rebuilds, s",
    at_most=1,
    limit="A worker waits for the exchange, and then for the others that waited.",
)

HEALTH_FLOOR = Goal(
    "health-floor",
    "checks a second: of bare httpx that keeps its connections",
    at_least=0.8,
    limit="A check opens a connection of its own, as a new lease would; the floor keeps its own.",
)
HEALTH_ALL = Goal("health-all", "results of a sweep with silent proxies", at_least=2_000)
HEALTH_SILENT = Goal("health-silent", "silent proxies found by their time-out", at_least=100)
HEALTH_ON_TIME = Goal(
    "health-on-time",
    "s that a sweep with silent proxies takes more than its ideal",
    at_most=3,
    limit="With a busy machine the loop comes late to its time-outs.",
)
HEALTH_MEMORY = Goal("health-memory", "memory of 1,000,000 checks: of 1,000 checks", at_most=1.1)

ASYNC_BLOCKING = Goal(
    "async-blocking",
    "64 tasks in one process: of one process that blocks",
    at_least=1.5,
    limit="The loop is one thread, and a cycle takes it more processor time than a blocking one "
    "(both are in the table). What tasks gain is the waiting for the server, which is short "
    "where commits are quick, and while the loop has a core to itself the server must do "
    "the work of all 16 connections on the other one.",
)
ASYNC_PEER = Goal(
    "async-peer",
    "64 tasks: of pharox 0.11.0's asyncpg adapter",
    at_least=10,
    limit="Ours is at the end of the loop's core and of the server's.",
)

IMPORT_NEW = Goal(
    "import-new",
    "new proxies with passwords imported a second",
    at_least=10_000,
    limit="A proxy is an event and three rows with a dozen entries in indexes, which takes the "
    "server about as long as reading, encrypting and sending it takes the command; one waits "
    "for the other, as a batch is committed before the next is read.",
)
IMPORT_KNOWN = Goal(
    "import-known",
    "known proxies with passwords looked up a second",
    at_least=40_000,
    limit="Reading a line and making a model of it takes most of the time, in one thread.",
)
IMPORT_MEMORY = Goal(
    "import-memory",
    "memory of importing 200,000 proxies: of 2,000",
    at_most=1.25,
    limit="Sixteen bytes are remembered of each proxy, so that a list that has it twice is seen.",
)

OBSERVE_COST = Goal(
    "observe-cost",
    "time of a cycle with logs and metrics: of one with neither",
    at_most=1.15,
    limit="A line is written for each of a cycle's two events, and metrics are counted, all in "
    "the worker's Python before its next statement is sent. About half of the cost is the "
    "lines.",
)

SCRAPE_DEAD = Goal(
    "scrape-dead",
    "time of a scrape with 100 dead workers behind it: of one without",
    at_most=2,
    limit="What the dead counted is one file a type, whatever their number; it is read once.",
)

CONSOLE_PAGE = Goal(
    "console-page",
    "ms until a page of the console is there, 19 of 20 times",
    at_most=200,
    limit="A report reads its whole window and the past of its pool, and draws it. Server, leasing "
    "and console share the machine's cores.",
)
CONSOLE_FIRST = Goal(
    "console-first",
    "ms until the slider shows a moment of a quarter of an hour, for the first time",
    at_most=1_500,
    limit="The first state is reached from the present by reading all events in between, of all "
    "leases, in two statements: some hundred thousand at 1,000 leases a second.",
)
CONSOLE_STEP = Goal(
    "console-step",
    "ms until the slider shows another moment, 19 of 20 times",
    at_most=200,
    limit="A step reads all events between two moments: a hundred thousand of a minute, which is "
    "the longest one here, at 1,000 leases a second.",
)
CONSOLE = Goal(
    "console",
    "% that an open overview and pool add to the processor time of server and leasing",
    at_most=3,
    limit="Half of what the console's connections take is sealing, which whoever reads first does: "
    "13 ms for the 2,000 events of a second, of which the other half of a pair has none. Counting "
    "each event once takes 5 ms, the pages themselves as much. What is added in all differs by "
    "more than that between pairs.",
)

API_RATE = Goal(
    "api-rate",
    "cycles a second of 64 clients over HTTP",
    at_least=3_000,
    limit="Two requests are read, checked and answered for a cycle in one thread, beside the work "
    "of its leases; the ledger and the clients share the machine's cores with it. The processor "
    "times of all are in the table.",
)

SCALE_LINEAR = Goal(
    "scale-linear",
    "lease cycles of ledgers side by side: of as many times one ledger's",
    at_least=0.85,
    limit="Ledgers share nothing but the machine. Whatever else runs on it takes a part of some "
    "core while all of them are in use, and all commits are flushed to the same disk.",
)

START = Goal(
    "start",
    "s of processor time that a command of pharox takes in all",
    at_most=0.25,
    limit="Typer with pydantic, SQLAlchemy and psycopg take two thirds of a command on a ledger, "
    "and would miss the goal alone. The rest is the classes of models and events, and the "
    "statements of the storage.",
)

GOALS = {goal.name: goal for goal in list(globals().values()) if isinstance(goal, Goal)}
"""All of them, by name."""

SEVERAL = (
    CORE_FLAT,
    MEMORY_RATE,
    DELIVERY_P99,
    EXCHANGE_LOCKED,
    HEALTH_ALL,
    HEALTH_SILENT,
    HEALTH_ON_TIME,
    CONSOLE_PAGE,
    SCALE_LINEAR,
    START,
)
"""Those that are bounds of several figures."""
