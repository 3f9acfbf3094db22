"""Programs that register, change and remove consumers, pools and proxies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg

from ...errors import ConflictError, PoolNotFoundError, ProxyNotFoundError, SecretKeyError
from ...models import (
    Consumer,
    Proxy,
    ProxyCredentials,
    ProxyPool,
    check_aware,
    check_name,
)
from ...models.gateway import GATEWAY_CONCURRENCY
from ...models.ids import NIL, derived_id, following
from ..validation import (
    check_kind,
    check_one_pool_each,
    check_reason,
    checked_model,
    checked_pool,
    id_from_text,
)
from . import ending, health_statements, moves, reading, registry_statements
from .appending import origin
from .driver import Program, Rows, Step
from .lookups import PAGE, Lookups
from .sql import Query, Statement
from .vault import Fingerprints, Place

T = TypeVar("T")

BATCH = 1000
"""How many proxies one statement registers."""


class Registry(Lookups):
    """The commands that manage consumers, pools and proxies."""

    def ensure_consumer(self, name: str, consumer_id: UUID | None = None) -> Program[UUID]:
        """Return a consumer's id, registering the name if it is new."""
        return self._ensure_consumer(check_name(name, "consumer"), consumer_id)

    def add_consumer(self, consumer: Consumer) -> Program[Consumer]:
        """Register a consumer and return it, with its existing id if the name is registered."""
        check_kind(consumer, Consumer)
        uuid = yield from self.ensure_consumer(consumer.name, consumer.id)
        return Consumer(id=uuid, name=consumer.name)

    def _ensure_consumer(self, name: str, consumer_id: UUID | None) -> Program[UUID]:
        statement = registry_statements.register_consumer_statement(self.schema)
        values = {**origin(), "consumer": name, "consumer_id": consumer_id or uuid4()}
        while True:
            try:
                rows = yield Query(statement, values)
            except psycopg.errors.UniqueViolation as error:
                if error.diag.constraint_name == "uq_consumers_id":
                    raise ConflictError(
                        f"consumer id {consumer_id} belongs to another name", name=name
                    ) from error
                continue  # Another session registered it after this statement had checked.
            answer: UUID = rows[0]["id"]
            return answer

    def save_pool(self, pool: ProxyPool) -> Program[None]:
        """Register a pool, or change the one with this id."""
        return self._save_pool(checked_pool(pool))

    def _save_pool(self, pool: ProxyPool) -> Program[None]:
        cool_down = pool.cool_down and pool.cool_down.model_dump_json()
        limits = pool.limits and pool.limits.model_dump_json()
        rotation = pool.rotation and pool.rotation.model_dump_json()
        as_json = {"cool_down": cool_down, "limits": limits, "rotation": rotation}
        described = {**pool.model_dump(exclude={"id"}), **as_json}
        values = {**origin(), "pool_id": pool.id, **described}
        save = Query(registry_statements.save_pool_statement(self.schema), values)
        while True:
            try:
                yield moves.unless_moved(self.schema, pool.name, pool.id, save)
            except psycopg.errors.UniqueViolation as error:
                if error.diag.constraint_name == "uq_pools_name":
                    raise ConflictError(
                        f"another pool is named {pool.name!r}", name=pool.name
                    ) from error
                continue
            return

    def save_proxies(self, proxies: Sequence[Proxy], *, change: bool) -> Program[int]:
        """Register proxies atomically; with ``change`` also change known ones."""
        return self._save_proxies([checked_model(proxy, Proxy) for proxy in proxies], change=change)

    def change_proxy(self, proxy: Proxy) -> Program[None]:
        """Change a known proxy, except its status, which somebody else may be changing."""
        return self._change_proxy(checked_model(proxy, Proxy))

    def _change_proxy(self, proxy: Proxy) -> Program[None]:
        yield from self.current(proxy.id)  # raises ProxyNotFoundError
        yield from self._save_proxies([proxy], change=True, keep_status=True)

    def _save_proxies(
        self, proxies: Sequence[Proxy], *, change: bool, keep_status: bool = False
    ) -> Program[int]:
        if not proxies:
            return 0
        statement = registry_statements.save_proxies_statement(self.schema, change=change)
        by_pool: dict[UUID, list[Proxy]] = {}
        for proxy in check_one_pool_each(proxies):
            by_pool.setdefault(proxy.pool_id, []).append(proxy)
        # Repeated if another session registers one of the proxies or removes a pool meanwhile.
        while True:
            yield from self._check_pools(by_pool)
            known = yield from self._known_credentials(proxies)
            steps: list[Step] = []
            saved: list[int] = []
            # Locks are taken in the order of ids over all batches, so that callers cannot deadlock.
            for pool_id, members in sorted(by_pool.items()):
                for batch in batches(sorted(members, key=lambda proxy: proxy.id)):
                    rows = [self._row(n, p, known.get(p.id)) for n, p in enumerate(batch)]
                    if keep_status:
                        rows = [_without_status(row) for row in rows]
                    values = {**origin(), "pool_id": pool_id, "rows": json.dumps(rows)}
                    saved.append(len(steps))
                    steps.append(Query(statement, values))
                    if change:
                        steps.append(self._forget_changed(pool_id, batch, saved[-1]))
            try:
                answers: list[Rows] = yield steps
            except psycopg.errors.UniqueViolation:
                continue
            if all(answers[n] for n in saved):
                return sum(answers[n][0]["new"] for n in saved)

    def delete_proxy(self, proxy_id: str) -> Program[None]:
        """Release a proxy's leases and remove it."""
        return self._delete_proxy(id_from_text(proxy_id) or NIL)

    def _delete_proxy(self, proxy_id: UUID) -> Program[None]:
        row = yield from self.current(proxy_id)
        values = {
            **origin(),
            "pool_id": row["pool_id"],
            "proxies": [proxy_id],
            "reason": "proxy removed",
        }
        # Locks first: a lease that was granted meanwhile must be among those released.
        answers = yield [
            *(Query(lock, values) for lock in self._removal_locks(whole_pool=False)),
            Query(ending.release_held_statement(self.schema, whole_pool=False), values),
            Query(
                registry_statements.remove_proxies_statement(self.schema, whole_pool=False), values
            ),
            Query(registry_statements.forget_credentials_statement(self.schema), values),
        ]
        if not answers[-2][0]["removed"]:
            raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)

    def drain_proxy(self, proxy_id: UUID, reason: str | None) -> Program[Proxy | None]:
        """Ban a proxy, and remove it when its last lease ends: at once if it has none."""
        check_reason(reason)
        return self._drain_proxy(id_from_text(proxy_id) or NIL, reason)

    def _drain_proxy(self, proxy_id: UUID, reason: str | None) -> Program[Proxy | None]:
        row = yield from self.current(proxy_id)
        values = {
            **origin(),
            "pool_id": row["pool_id"],
            "proxy_id": proxy_id,
            "ids": [proxy_id],
            "proxies": [proxy_id],
            "reason": reason,
        }
        # The change must see the latest state, so the proxy is locked in a statement before it.
        locked, *_ = yield [
            Query(health_statements.lock_statement(self.schema), values),
            Query(registry_statements.drain_statement(self.schema), values),
            Query(
                registry_statements.remove_proxies_statement(
                    self.schema, whole_pool=False, idle_only=True
                ),
                values,
            ),
            Query(registry_statements.forget_credentials_statement(self.schema), values),
        ]
        if not locked:
            raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
        return (yield from self.updated_proxy(proxy_id))

    def delete_pool(self, pool_id: str) -> Program[None]:
        """Release a pool's leases, remove its proxies and then the pool."""
        return self._delete_pool(id_from_text(pool_id) or NIL)

    def _delete_pool(self, pool_id: UUID) -> Program[None]:
        values = {**origin(), "pool_id": pool_id, "proxies": None, "reason": "pool removed"}
        # Locks first, as for a proxy; the pool goes last, once it has no proxies.
        answers = yield [
            *(Query(lock, values) for lock in self._removal_locks(whole_pool=True)),
            Query(ending.release_held_statement(self.schema, whole_pool=True), values),
            Query(
                registry_statements.remove_proxies_statement(self.schema, whole_pool=True), values
            ),
            Query(registry_statements.forget_credentials_statement(self.schema), values),
            Query(registry_statements.remove_pool_statement(self.schema), values),
        ]
        if not answers[-1][0]["removed"]:
            raise PoolNotFoundError(f"Pool {pool_id} not found.", pool_id=pool_id)

    def prune(self, ended_before: datetime) -> Program[int]:
        """Delete leases that ended before a given time. Return how many."""
        return self._prune(check_aware(ended_before))

    def _prune(self, ended_before: datetime) -> Program[int]:
        pruned = 0
        concerned = reading.pools_with_ended_statement(self.schema)
        pools: Rows = yield Query(concerned, {"ended_before": ended_before})
        if not pools:
            yield from self.check_writable()
        for row in pools:
            values = {**origin(), "pool_id": row["pool_id"], "ended_before": ended_before}
            rows = yield Query(registry_statements.prune_statement(self.schema), values)
            pruned += rows[0]["pruned"]
        return pruned

    def rotate_secrets(self) -> Program[int]:
        """Encrypt all credentials again with the first key. Return how many.

        Unreadable credentials are skipped, and the error of the first is raised at the end.
        All others no longer need the old key.
        """
        statement = registry_statements.rotate_secrets_statement(self.schema)
        rotated, first = 0, NIL
        failure: SecretKeyError | None = None
        while True:
            rows: Rows = yield from self.rows(
                reading.secrets_page_statement, from_id=first, limit=PAGE
            )
            readable, failed = self._readable(rows)
            failure = failure or failed
            if readable:
                answer: Rows = yield Query(statement, self._rotated(readable))
                rotated += len(answer)
            if len(rows) < PAGE:
                break
            first = following(rows[-1]["id"])
        links, failed = yield from self._rotate_links()
        rotated, failure = rotated + links, failure or failed
        if not rotated:
            yield from self.check_writable()
        if failure is not None:
            raise failure
        return rotated

    def _rotate_links(self) -> Program[tuple[int, SecretKeyError | None]]:
        """Encrypt all links for another exit again. Return how many, and what failed first."""
        statement = registry_statements.rotate_secrets_statement(self.schema)
        rotated, first = 0, NIL
        failure: SecretKeyError | None = None
        while True:
            rows: Rows = yield from self.rows(
                reading.links_page_statement, from_id=first, limit=PAGE
            )
            values: dict[str, list[Any]] = {
                name: []
                for name in ("ids", "pool_ids", "proxy_ids", "secret", "account", "identity")
            }
            for row in rows:
                place = Place(row["rotate_id"], row["pool_id"], row["id"])
                try:
                    link = self.vault.open_link(row["secret"], place)
                except SecretKeyError as error:
                    failure = failure or error
                    continue
                stored = self.vault.link_prints(row["pool_id"], row["id"], link)[0]
                secret = self.vault.seal_link(link, place)
                own = (*place, secret, stored, stored)
                for kept, value in zip(values.values(), own, strict=True):
                    kept.append(value)
            if values["ids"]:
                answer: Rows = yield Query(statement, values)
                rotated += len(answer)
            if len(rows) < PAGE:
                return rotated, failure
            first = following(rows[-1]["id"])

    # Internals

    def _removal_locks(self, *, whole_pool: bool) -> Sequence[Statement]:
        return registry_statements.removal_locks(self.schema, whole_pool=whole_pool)

    def _check_pools(self, by_pool: Mapping[UUID, Any]) -> Program[None]:
        rows = yield Query(reading.pools_statement(self.schema), {})
        if missing := by_pool.keys() - {row["id"] for row in rows}:
            pool_id = min(missing)
            raise PoolNotFoundError(f"Pool {pool_id} not found.", pool_id=pool_id)

    def _known_credentials(self, proxies: Sequence[Proxy]) -> Program[dict[UUID, Any]]:
        """Return the stored credentials of registered proxies, by proxy id.

        Raises :class:`ConflictError` if a proxy is registered in another pool.
        """
        rows = yield Query(
            reading.known_proxies_statement(self.schema), {"ids": [p.id for p in proxies]}
        )
        pools = {proxy.id: proxy.pool_id for proxy in proxies}
        for row in rows:
            if row["pool_id"] != pools[row["id"]]:
                raise ConflictError(
                    f"proxy {row['id']} is registered in another pool; remove it there first",
                    proxy_id=row["id"],
                    pool_id=row["pool_id"],
                )
        return {row["id"]: row for row in rows}

    def _readable(self, rows: Rows) -> tuple[Rows, SecretKeyError | None]:
        """Return the rows with readable credentials, and the error of the first unreadable one."""
        readable, failure = [], None
        for row in rows:
            try:
                place = Place(row["credential_id"], row["pool_id"], row["id"])
                self.vault.open(row["secret"], place)
                readable.append(row)
            except SecretKeyError as error:
                failure = failure or error
        return readable, failure

    def _rotated(self, rows: Rows) -> dict[str, Any]:
        """Return the statement's parameters, with the credentials encrypted again."""
        places = [Place(row["credential_id"], row["pool_id"], row["id"]) for row in rows]
        proxies = [reading.proxy_from_row(row, self.vault) for row in rows]
        prints = [self.vault.fingerprints(proxy.pool_id, proxy) for proxy in proxies]
        return {
            "ids": [place.credential_id for place in places],
            "pool_ids": [place.pool_id for place in places],
            "proxy_ids": [place.proxy_id for place in places],
            "secret": [
                self.vault.seal(proxy.credentials, place)
                for proxy, place in zip(proxies, places, strict=True)
                if proxy.credentials is not None
            ],
            "account": [each.account for each in prints],
            "identity": [each.identity for each in prints],
        }

    def _forget_changed(
        self, pool_id: UUID, proxies: Sequence[Proxy], saved: int
    ) -> Callable[[Sequence[Rows]], Query | None]:
        """Return the step that deletes old credentials if any of the proxies has changed."""
        statement = registry_statements.forget_credentials_statement(self.schema)
        values = {"pool_id": pool_id, "proxies": [proxy.id for proxy in proxies]}

        def step(answers: Sequence[Rows]) -> Query | None:
            is_changed = any(row["changed"] for row in answers[saved])
            return Query(statement, values) if is_changed else None

        return step

    def _keeps_credentials(self, proxy: Proxy, known: Mapping[str, Any]) -> bool:
        """Return whether a proxy's stored credentials are readable and equal to its own."""
        prints = self.vault.known_fingerprints(proxy.pool_id, proxy)
        if known["identity"] not in [each.identity for each in prints]:
            return False
        try:
            place = Place(known["credential_id"], proxy.pool_id, proxy.id)
            return self.vault.open(known["secret"], place) == proxy.credentials
        except SecretKeyError:  # damaged: replace it
            return False

    def _stored(
        self,
        proxy: Proxy,
        credentials: ProxyCredentials,
        credential_id: UUID,
        prints: Fingerprints | None,
    ) -> dict[str, str]:
        """Return a proxy's encrypted credentials and fingerprints, in hex."""
        secret = self.vault.seal(credentials, Place(credential_id, proxy.pool_id, proxy.id))
        known = prints or self.vault.fingerprints(proxy.pool_id, proxy)
        parts = {"secret": secret, "account": known.account, "identity": known.identity}
        return {name: part.hex() for name, part in parts.items()}

    def _link(self, proxy: Proxy, known: UUID | None) -> tuple[UUID | None, dict[str, str]]:
        """Return the id of a proxy's link, and the link encrypted in hex if it is to be stored.

        The id follows from the link, so a link that is given again is the same. It is sealed again,
        too: another session may just have replaced and forgotten it.
        """
        if proxy.rotate_url is None:
            return None, {}  # The statement keeps the one that the proxy has when it is locked.
        if not proxy.rotate_url.get_secret_value():
            return None, {}
        prints = self.vault.link_prints(proxy.pool_id, proxy.id, proxy.rotate_url)
        rotate_id = derived_id(prints[0])
        if known not in (None, rotate_id) and known in map(derived_id, prints):
            return known, {}  # It is stored with an earlier key.
        place = Place(rotate_id, proxy.pool_id, proxy.id)
        secret = self.vault.seal_link(proxy.rotate_url, place)
        return rotate_id, {"link": secret.hex(), "link_print": prints[0].hex()}

    def _row(
        self,
        place: int,
        proxy: Proxy,
        known: Mapping[str, Any] | None = None,
        prints: Fingerprints | None = None,
    ) -> dict[str, Any]:
        """Return a proxy as an item of the parameter ``rows``."""
        credential_id: UUID | None = None
        stored: dict[str, str] = {}
        if proxy.credentials is not None:
            if (
                known is not None
                and known["credential_id"] is not None
                and self._keeps_credentials(proxy, known)
            ):
                credential_id = known["credential_id"]
            else:
                credential_id = uuid4()
                stored = self._stored(proxy, proxy.credentials, credential_id, prints)
        rotate_id, link = self._link(proxy, None if known is None else known["rotate_id"])
        data = {
            "protocol": proxy.protocol.value,
            "host": str(proxy.host),
            "port": proxy.port,
            "checked_at": proxy.checked_at.isoformat(),
            "credential_id": credential_id and str(credential_id),
            "source": proxy.source,
            "country": proxy.country,
            "city": proxy.city,
            "latitude": proxy.latitude,
            "longitude": proxy.longitude,
            "isp": proxy.isp,
            "asn": proxy.asn,
            **{name: _number(getattr(proxy, name)) for name in ("cost_per_gb", "cost_per_lease")},
            "placeholders": proxy.recorded_placeholders,
            "weight": proxy.weight,
            "rotate_id": rotate_id and str(rotate_id),
        }
        is_limited = "max_concurrency" in proxy.model_fields_set
        usual = GATEWAY_CONCURRENCY if proxy.placeholders else None
        return {
            "place": place,
            "id": str(proxy.id),
            **stored,
            **link,
            "keeps_link": proxy.rotate_url is None,
            "status": proxy.status.value,
            "max_concurrency": proxy.max_concurrency if is_limited else usual,
            "limited_by_pool": not is_limited,
            "data": {name: value for name, value in data.items() if value is not None},
        }


def _number(price: Decimal | None) -> float | None:
    """Return a price as JSON has it: with its at most 15 digits it is exact."""
    return None if price is None else float(price)


def _without_status(row: dict[str, Any]) -> dict[str, Any]:
    data = {name: value for name, value in row["data"].items() if name != "checked_at"}
    return {**row, "status": None, "data": data}


def batches(members: Sequence[T], size: int = BATCH) -> list[Sequence[T]]:
    """Return slices of at most this size, in order."""
    return [members[start : start + size] for start in range(0, len(members), size)]
