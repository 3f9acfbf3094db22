"""An application that fetches pages through leased proxies: `uvicorn fastapi_app:app`.

It needs a ledger (`PHAROX_DATABASE_URL`) with a pool "residential".
"""

from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Request

from pharox import AsyncLeasedClient, Lease, Outcome
from pharox.integrations.fastapi import leased, leased_client, pharox_lifespan

LeaseDep = Annotated[Lease, Depends(leased("residential"))]
ClientDep = Annotated[AsyncLeasedClient, Depends(leased_client("residential"))]

app = FastAPI(lifespan=pharox_lifespan())


@app.get("/fetch")
async def fetch(url: str, client: ClientDep) -> str:
    """Fetch a page with a client of httpx, which reports what became of it."""
    return (await client.get(url)).text


@app.get("/status")
async def status(url: str, lease: LeaseDep, request: Request) -> int:
    """Fetch a page with a library of your own, and report what became of it."""
    async with httpx.AsyncClient(proxy=lease.proxy.url, trust_env=False) as own:
        answer = await own.get(url)
    await request.state.pharox.report(lease, Outcome.from_response(answer))
    return answer.status_code
