"""Tasks that fetch pages through leased proxies: `celery -A celery_tasks worker`.

It needs a broker (`CELERY_BROKER_URL`) and a ledger (`PHAROX_DATABASE_URL`) with a pool
"residential".
"""

import httpx
from celery import Celery

from pharox import Lease, LeasedClient, Outcome
from pharox.integrations.celery import leased, leased_client, manager

app = Celery("shop")


@app.task(autoretry_for=(httpx.TransportError,), retry_backoff=True)  # type: ignore[untyped-decorator]
@leased_client("residential")
def fetch(url: str, *, client: LeasedClient) -> str:
    """Fetch a page with a client of httpx, which reports what became of it."""
    return client.get(url).raise_for_status().text


@app.task(soft_time_limit=60)  # type: ignore[untyped-decorator]
@leased("residential", duration_seconds=30)
def status(url: str, *, lease: Lease) -> int:
    """Fetch a page with a library of your own, and report what became of it."""
    answer = httpx.get(url, proxy=lease.proxy.url, trust_env=False)
    manager().report(lease, Outcome.from_response(answer))
    return answer.status_code
