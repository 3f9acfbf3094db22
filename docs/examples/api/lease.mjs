// Lease a proxy, use it, and give it back. Node 18 or later, without a package.
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

const api = process.env.PHAROX_API ?? "http://127.0.0.1:8081/api/v1";

async function ask(path, body) {
  const answer = await fetch(api + path, {
    method: "POST",
    headers: { authorization: `Bearer ${process.env.PHAROX_TOKEN}` },
    body: JSON.stringify(body),
  });
  const value = await answer.json();
  return answer.ok ? value : Promise.reject(Object.assign(new Error(value.detail), value));
}

// Acquire under an id of one's own: whatever breaks on the way, asking again leases only once. A lease
// whose answer did not arrive may have been given back meanwhile: then it is asked for under a new id.
async function acquire(request, attempts = 5) {
  const asked = { lease_id: randomUUID(), wait_seconds: 30, ...request };
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask("/acquire", asked);
    } catch (problem) {
      const hasEnded = problem.code === "lease_ended";
      const passes = problem.code === undefined || problem.status === 503 || problem.retry_after_seconds;
      if (!(passes || hasEnded) || attempt === attempts) throw problem;
      if (hasEnded) asked.lease_id = randomUUID();
      await pause(1000 * Math.min(problem.retry_after_seconds ?? attempt, 30));
    }
  }
}

const lease = await acquire({ pool: "residential", target: "shop.example" });
let outcome = { kind: "unclear" };
try {
  // lease.proxy_url goes to what sends the request: undici's ProxyAgent, Playwright, got, axios.
  console.log(`${new URL(lease.proxy_url).host} until ${lease.expires_at}`);
  outcome = { kind: "ok", status: 200 };
} finally {
  const { status } = await ask("/release", { lease_id: lease.lease_id, outcome });
  console.log(status);
}
