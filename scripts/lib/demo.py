"""Run the main use case step by step, and exit with 0 only if all expectations held.

Each step uses the library or the ``pharox`` command, and then :class:`Story` checks an expectation.
A step that cannot continue raises an error, and the last line shows it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import httpx
from cryptography.fernet import Fernet
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import text
from sqlalchemy.schema import DropSchema

import projections
from pharox import (
    ExpireEventPayload,
    MissReason,
    PharoxError,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    ProxyUnavailableError,
    SelectorStrategy,
    connect,
)
from pharox.connecting import embedded
from pharox.events import (
    AcquireMissed,
    Event,
    HealthChecked,
    LeaseAcquired,
    LeaseExpired,
    LeaseReleased,
    LeaseRenewed,
    PoolRegistered,
    ProxyRegistered,
    TargetTroubled,
    held,
)
from pharox.manager.pool_handle import PoolHandle
from pharox.proof import EventProof
from pharox.storage.postgres import PostgresStorage
from scripts.lib import demo_refusals
from scripts.lib.demo_proxies import HOST, RealProxy, running_proxies, running_site

POOL, CRAWLED = "demo", "crawled"
WORKERS = 4
WAITERS, WAITED_S = 8, 0.5
KILLED_S = 2
MAX_CONCURRENCY = 1  # exclusive: as many proxies as workers, so each must always find one
WIDTH = 100


class Story:
    """Prints the steps, and collects the expectations that did not hold."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else WIDTH
        self.console = Console(width=width, highlight=False, emoji=False, markup=False)
        self.failures: list[str] = []
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin a step."""
        self._steps += 1
        self.console.print()
        self.console.rule(Text(f"{self._steps}. {title}", "bold"), align="left", style="dim")

    def say(self, sentence: object) -> None:
        """Print a sentence or a table."""
        self.console.print(sentence)

    def held(self, what: str, *, when: bool) -> None:
        """Print whether an expectation held, and remember it if it did not."""
        mark, style = ("ok", "green") if when else ("NO", "bold red")
        self.console.print(Text.assemble((f"{mark:>4}  ", style), what))
        if not when:
            self.failures.append(what)


class Demo:
    """The demo's steps, in order, over one ledger."""

    def __init__(self, story: Story, storage: PostgresStorage) -> None:
        self.story = story
        self.storage = storage
        self.manager = ProxyManager(storage)

    def upgrade(self) -> None:
        self.story.step("Upgrade the schema")
        self.pharox("db", "upgrade")

    def import_list(self, proxies: Sequence[RealProxy], folder: Path) -> None:
        self.story.step("Import the lists of two providers twice: URLs, and CSV")
        for proxy in proxies:
            login = f", asks for {proxy.kind.user}'s password" if proxy.kind.user else ""
            what = f"{proxy.kind.program}, {proxy.kind.protocol}{login}"
            self.story.say(f"      port {proxy.port}: {what}")
        lists = {
            "acme.txt": "".join(f"{proxy.url}\n" for proxy in proxies[:2]),
            "globex.csv": "ip,port,protocol,username,password\n"
            + "".join(
                f"{HOST},{each.port},{each.kind.protocol},{each.kind.user},{each.kind.password}\n"
                for each in proxies[2:]
            ),
        }
        to_pool = ("--pool", POOL, "--max-concurrency", str(MAX_CONCURRENCY))
        for name, content in lists.items():
            file = folder / name
            file.write_text(content)
            first = self.pharox("import", str(file), *to_pool)
            second = self.pharox("import", str(file), *to_pool)
            self.story.held("the first import took all of it", when=" 2 new" in first)
            self.story.held("the second one changed nothing", when=" 0 new" in second)

    def import_gateway(self, folder: Path) -> None:
        self.story.step("Import a gateway: one address, an exit of its own for each lease")
        file = folder / "gateway.txt"
        file.write_text(f"http://ann-cc-{{country}}-sess-{{session}}:open-sesame@{HOST}:9\n")
        self.pharox("import", str(file), "--pool", "gateway", "--template", "--country", "AR")
        leases = self.manager.acquire_proxies("gateway", 2, "shopper", distinct=False)
        logins = [lease.proxy.credentials for lease in leases]
        users = {login.user for login in logins if login is not None}
        for user in sorted(users):
            self.story.say(f"      {user}")
        self.story.held("two leases ask for two exits", when=len(users) == len(leases))
        self.manager.release_proxies(leases)

    def check(self, page_url: str) -> None:
        self.story.step("Check each proxy, and record the results")
        self.pharox("sweep", POOL, "--target", page_url)
        for proxy in self.storage.load_proxies_for_healthchecks(POOL):
            found = self.storage.get_last_health_result(proxy.id)
            self.story.held(
                f"{proxy.protocol.value} on port {proxy.port} works: "
                f"{found.latency_ms if found else '?'} ms",
                when=proxy.status is ProxyStatus.ACTIVE and found is not None,
            )

    def work(self, page_url: str) -> None:
        self.story.step(f"{WORKERS} processes lease with each selector and fetch a page")
        names = [f"worker-{number}" for number in range(1, WORKERS + 1)]
        command = [sys.executable, "-m", "scripts.lib.demo_worker"]
        processes = [
            subprocess.Popen(
                [*command, name, POOL, self.storage.schema, page_url],
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in names
        ]
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        facts = [json.loads(line) for output in outputs for line in output.splitlines()]
        table = Table("selector", *names, box=None, padding=(0, 3, 0, 0))
        for selector in SelectorStrategy:
            ports = [fact["port"] for fact in facts if fact["selector"] == selector.value]
            table.add_row(selector.value, *(f"port {port}" for port in ports))
        self.story.say(table)
        self.story.held("every worker ended well", when=not any(p.returncode for p in processes))
        expected = WORKERS * len(SelectorStrategy)
        through = sum(f"through port {fact['port']}." in fact["page"] for fact in facts)
        self.story.held(
            f"{through} of {expected} pages came through the proxy that was leased",
            when=through == expected,
        )

    def keep(self) -> None:
        self.story.step("Keep a lease for a job three times as long")
        with self.manager.with_lease(POOL, "long-job", 1, keep_alive=True) as lease:
            assert lease is not None
            self.story.say(f"      {lease.proxy!r} for 1 s, and a job of 3 s")
            proxy = self.storage.get_proxy(str(lease.proxy_id))
            begun, refused = time.monotonic(), 0
            while time.monotonic() < begun + 3:
                try:
                    self.storage.create_lease(proxy, "greedy", 1)
                except ProxyUnavailableError:
                    refused += 1
                time.sleep(0.1)
        self.story.held(f"a greedy neighbour was refused {refused} times", when=refused > 0)
        self.story.held("the job kept its proxy to the end", when=not lease.is_lost)

    def wait(self) -> None:
        self.story.step(f"{WAITERS} workers wait for the same proxies: a fair queue")
        names = [f"waiter-{number}" for number in range(1, WAITERS + 1)]
        until = time.monotonic() + WAITED_S
        handles = [self.manager.pool(POOL, consumer=name) for name in names]

        def work(handle: PoolHandle) -> int:
            turns = 0
            while time.monotonic() < until:
                with handle.lease():
                    time.sleep(0.1)
                turns += 1
            return turns

        with ThreadPoolExecutor(WAITERS) as threads:
            turns = list(threads.map(work, handles))
        self.waited = sum(turns)
        self.story.say(f"      turns of 0.1 s each had in {WAITED_S:g} s: {turns}")
        self.story.held("everybody had a fair share", when=max(turns) - min(turns) <= 2)

    def expire(self) -> None:
        self.story.step("Let a lease run out")
        told: list[ExpireEventPayload] = []
        self.manager.register_expire_callback(told.append)
        lease = self.manager.acquire_proxy(POOL, "sleeper", duration_seconds=1)
        assert lease is not None
        time.sleep(1.1)
        ended = self.manager.cleanup_expired_leases()
        self.story.held("a lease of one second has expired after it", when=ended == 1)
        ids = [payload.lease.id for payload in told]
        self.story.held("the callback was notified", when=ids == [lease.id])

    def kill(self) -> None:
        self.story.step("Kill a worker with -9: whoever waits for its proxy has it")
        (proxy, *_) = self.storage.load_proxies_for_healthchecks(POOL)
        only = ("--proxy", str(proxy.id), "--duration", f"{KILLED_S}")
        doomed = self.started("run", POOL, "--consumer", "doomed", *only, "--", "sleep", "60")
        while not self.storage.list_held_leases(POOL, consumer_name="doomed"):
            time.sleep(0.05)
        os.killpg(doomed.pid, signal.SIGKILL)
        doomed.wait()
        begun = time.monotonic()
        waiter = self.manager.pool(
            POOL, consumer="patient", filters=ProxyFilters(proxy_id=proxy.id)
        )
        with waiter.lease():
            waited_s = time.monotonic() - begun
        self.story.say(f"      its lease of {KILLED_S} s ran out; served after {waited_s:.1f} s")
        self.story.held("the waiter was served", when=waited_s < KILLED_S + 2)

    def miss_and_release(self) -> None:
        self.story.step("Lease every proxy, miss, and release")
        reasons: list[MissReason | None] = []
        self.manager.register_acquire_callback(lambda payload: reasons.append(payload.miss_reason))
        pool = self.storage.get_pool_by_name(POOL)
        assert pool is not None
        capacity = MAX_CONCURRENCY * len(self.storage.list_proxies(str(pool.id)))
        leases = self.manager.acquire_proxies(POOL, capacity, "hoarder")
        self.story.held(f"{len(leases)} leases were granted", when=len(leases) == capacity)
        assert self.manager.acquire_proxy(POOL, "latecomer") is None
        self.story.held(
            "the next one was a miss, because all proxies are at capacity",
            when=reasons[-1] is MissReason.AT_CAPACITY,
        )
        for lease in leases:
            self.manager.release_proxy(lease)
        stats = self.storage.get_pool_stats(POOL)
        assert stats is not None
        self.story.held("all were released", when=stats.total_leases == 0)

    def audit(self, proxies: Sequence[RealProxy]) -> None:
        self.story.step("The audit trail: everything that happened, from the log")
        # Checks that were recorded together are one event; here each is shown as its own.
        events = [cast("Event", part) for each in self.storage.events() for part in each.parts()]
        self.story.say(trail(events))
        types = Counter(str(event.type) for event in events)
        leased = WORKERS * len(SelectorStrategy)
        hoarded = MAX_CONCURRENCY * len(proxies)
        expected = {
            "ProxyRegistered": len(proxies) + 1,
            "HealthChecked": len(proxies),
            "LeaseAcquired": leased + hoarded + self.waited + 6,
            "LeaseReleased": leased + hoarded + self.waited + 4,
            "LeaseExpired": 2,
            "AcquireMissed": 1,
        }
        for name, count in expected.items():
            self.story.held(f"{types[name]} {name}", when=types[name] == count)
        self.story.held(
            f"{types['LeaseRenewed']} renewals of the long job", when=types["LeaseRenewed"] >= 5
        )
        leases = [e for e in events if isinstance(e, LeaseAcquired) and e.pool_name == POOL]
        most = max(event.after.leases for event in leases)
        self.story.held(
            f"no proxy ever had more than {most} lease of {MAX_CONCURRENCY} allowed",
            when=most == MAX_CONCURRENCY,
        )
        written = "".join(event.model_dump_json() for event in events)
        passwords = [proxy.kind.password for proxy in proxies if proxy.kind.password]
        passwords.append("open-sesame")
        self.story.held("no password in it", when=not any(p in written for p in passwords))

    def explain(self) -> None:
        self.story.step("Why did the latecomer get nothing?")
        told = self.pharox("why", "latecomer")
        self.story.held("the log names who held what", when="  hoarder, " in told)

    def refuse(self) -> None:
        self.story.step(
            f"A site refuses each exit after {demo_refusals.TAKEN} requests, for a second: "
            f"{demo_refusals.WORKERS} workers"
        )
        exits = demo_refusals.pool_of_exits(self.manager, CRAWLED)
        chance = demo_refusals.by_chance(exits)
        leased = demo_refusals.with_leases(self.manager, CRAWLED)
        self.story.say(f"      random.choice  {chance}")
        self.story.say(f"      pharox         {leased}")
        self.story.held(
            "what was refused rested for the site, for all workers",
            when=leased.refused < chance.refused / 2 and leased.answered > 0,
        )

    def break_down(self) -> None:
        self.story.step("The site itself is down: it is to blame, so nothing rests")
        with demo_refusals.failing_site(self.manager, CRAWLED) as count:
            events = [e for e in self.storage.events() if isinstance(e, TargetTroubled)]
            resting = [
                pair
                for pair in self.storage.list_target_outcomes(CRAWLED, target="down.example")
                if pair.cools_until is not None
            ]
        self.story.say(f"      it failed for {count} exits")
        self.story.held("the log says that the target is in trouble", when=len(events) == 1)
        self.story.held("no exit rests for it", when=not resting)

    def statistics(self) -> None:
        self.story.step("The pool in numbers")
        self.pharox("stats")

    @contextmanager
    def console(self) -> Iterator[str]:
        """Serve the console for a block, and yield its address once it answers."""
        self.story.step("Open the console in a browser, for as long as this runs")
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        serving = self.started("console", "--port", str(port))
        address = f"http://{HOST}:{port}/"
        try:
            until = time.monotonic() + 30
            while time.monotonic() < until and serving.poll() is None:
                with suppress(httpx.TransportError):
                    httpx.get(address, trust_env=False)
                    break
                time.sleep(0.1)
            yield address
        finally:
            serving.terminate()
            serving.wait()

    def look(self, address: str) -> None:
        self.story.step("Look at the console")
        found = httpx.get(address, trust_env=False)
        self.story.say(f"      {address} shows pools, alerts, stories, and any moment of this demo")
        self.story.held("the console shows the pool", when=f">{POOL}<" in found.text)
        why = httpx.get(f"{address}why", params={"consumer": "latecomer"}, trust_env=False)
        self.story.held("and who stood in latecomer's way", when="hoarder" in why.text)

    def fold_again(self) -> None:
        self.story.step("Fold the log again, and compare it with the live read models")
        folded = projections.fold(self.storage.events(), projections.ALL)
        live = self.storage.live_states()
        findings = Counter(finding.check for finding in self.storage.verify())
        table = Table("read model", box=None, padding=(0, 3, 0, 0))
        for column in ("live rows", "folded rows", "drift"):
            table.add_column(column, justify="right")
        for name, rows in folded.items():
            table.add_row(name, str(len(live[name])), str(len(rows)), str(findings[name]))
        self.story.say(table)
        self.story.held("the read models match the fold of the log", when=live == folded)
        self.story.held("no event was changed since it was sealed", when=not findings)

    def prove(self, folder: Path) -> None:
        self.story.step("Prove a lease to somebody who trusts neither the database nor its owner")
        key, published, proof = folder / "key", folder / "checkpoints", folder / "lease.proof"
        self.pharox("checkpoint", "keygen", "--out", str(key), "--name", "demo.example/proxies")
        self.pharox("checkpoint", "publish", "--to", str(published), "--key", str(key))
        lease = next(each for each in self.storage.events() if isinstance(each, LeaseAcquired))
        proven = self.pharox("prove", str(lease.seq), "--checkpoint", str(published), shows=False)
        self.story.say(f"      {proof.write_text(proven):,} bytes, to hand on")
        told = self.pharox("check", str(proof), "--key", f"{key}.pub")
        self.story.held("the lease is proven without the database", when=lease.consumer in told)
        shown = EventProof.parse(proof.read_text())
        other = shown.inclusion.event.replace(lease.consumer.encode(), b"somebody-else")
        forged = replace(shown, inclusion=shown.inclusion._replace(event=other))
        self.story.held("with another consumer it is not", when=not forged.is_consistent())

    def pharox(self, *arguments: str, shows: bool = True) -> str:
        """Print and run a command, and return its output, which is printed if it ``shows``."""
        command = self._command(arguments)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if shows:
            self.story.console.print(done.stdout.rstrip(), soft_wrap=True)
        if done.returncode != 0:
            raise RuntimeError(f"`pharox {arguments[0]}` failed with status {done.returncode}")
        return done.stdout

    def started(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Print a command and start it, with what it starts in a process group of its own."""
        return subprocess.Popen(self._command(arguments), start_new_session=True)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        if self.storage.schema != "pharox":
            arguments = ("--schema", self.storage.schema, *arguments)
        self.story.say(Text(f"$ pharox {shlex.join(arguments)}", "cyan"))
        program = "import sys; from pharox.cli import main; sys.exit(main())"
        return [sys.executable, "-c", program, *arguments]


def trail(events: Sequence[Event]) -> Table:
    """Return the log as a table, one event per line."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("#", justify="right")
    for column in ("at", "event", "consumer", "proxy", ""):
        table.add_column(column)
    addresses: dict[UUID, str] = {}
    for event in events:
        if isinstance(event, ProxyRegistered):
            addresses[event.proxy_id] = f"{event.protocol.value} :{event.port}"
        proxy = addresses[event.proxy_id] if event.proxy_id else ""
        at = f"{event.recorded_at:%H:%M:%S.%f}"[:-3]
        table.add_row(str(event.seq), at, event.type, event.consumer, proxy, note(event))
    return table


def note(event: Event) -> str:
    """Return the details of an event."""
    match event:
        case PoolRegistered():
            told = f"pool {event.name}"
        case ProxyRegistered():
            told = f"at most {event.after.max_concurrency} leases"
        case HealthChecked():
            told = f"{event.status.value}, {event.latency_ms} ms"
        case LeaseAcquired():
            told = f"{event.before.leases} -> {event.after.leases}, {event.selector}"
        case LeaseRenewed():
            told = f"until {event.expires_at:%H:%M:%S.%f}"[:-3]
        case LeaseReleased() | LeaseExpired():
            held_s = held(event).total_seconds()
            told = f"{event.before.leases} -> {event.after.leases}, held {held_s:.2f} s"
        case AcquireMissed():
            told = event.reason.value
        case _:
            told = ""
    return told


@contextmanager
def own_ledger(folder: Path) -> Iterator[PostgresStorage]:
    """Open a ledger on an embedded server in a folder."""
    os.environ["PHAROX_DATA_DIR"] = str(folder)  # for the processes that are started here, too
    with closing(embedded.start()), closing(connect()) as storage:
        yield storage


@contextmanager
def given_ledger() -> Iterator[PostgresStorage]:
    """Open a ledger in a new schema of PHAROX_DATABASE_URL, and drop it afterwards."""
    os.environ.setdefault("PHAROX_SECRET_KEY", Fernet.generate_key().decode())
    with closing(connect(schema=f"pharox_demo_{uuid4().hex[:8]}")) as storage:
        storage.schema_version()  # so that an unreachable server raises our error
        try:
            yield storage
        finally:
            with storage.engine.connect() as connection:
                connection.execute(DropSchema(storage.schema, cascade=True, if_exists=True))


@contextmanager
def open_ledger(story: Story, folder: Path) -> Iterator[PostgresStorage]:
    """Open an empty ledger, and remove it afterwards."""
    given = bool(os.environ.get("PHAROX_DATABASE_URL"))
    story.step(
        "A ledger in the database of PHAROX_DATABASE_URL"
        if given
        else "A ledger in an embedded PostgreSQL"
    )
    with given_ledger() if given else own_ledger(folder / "data") as storage:
        with storage.engine.connect() as connection:
            version = connection.execute(text("SHOW server_version")).scalar()
        story.say(f"      PostgreSQL {version}, schema {storage.schema}")
        yield storage


def tell(story: Story) -> None:
    """Run all steps in order."""
    with (
        tempfile.TemporaryDirectory(prefix="pharox-demo-", ignore_cleanup_errors=True) as scratch,
        open_ledger(story, Path(scratch)) as storage,
        running_proxies() as proxies,
        running_site(proxies) as page_url,
    ):
        demo = Demo(story, storage)
        demo.upgrade()
        demo.import_list(proxies, Path(scratch))
        demo.import_gateway(Path(scratch))
        with demo.console() as address:
            demo.check(page_url)
            demo.work(page_url)
            demo.keep()
            demo.wait()
            demo.expire()
            demo.kill()
            demo.miss_and_release()
            demo.audit(proxies)
            demo.explain()
            demo.refuse()
            demo.break_down()
            demo.statistics()
            demo.look(address)
        demo.fold_again()
        demo.prove(Path(scratch))


def main() -> int:
    """Return 0 if everything held; else print what did not, and return 1."""
    story = Story()
    began = time.monotonic()
    try:
        tell(story)
    except KeyboardInterrupt:
        story.say("Interrupted.")
        return 130
    except Exception as error:
        if not isinstance(error, PharoxError):  # ours say it all in their sentence
            traceback.print_exc()
        story.failures.append(f"the demo could not continue: {error}")
    took = f"{time.monotonic() - began:.1f} s"
    story.say("")
    if story.failures:
        story.say(Text(f"This did not hold ({took}):", "bold red"))
        for failure in story.failures:
            story.say(f"      {failure}")
        return 1
    story.say(Text(f"Everything held, in {took}.", "bold green"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
