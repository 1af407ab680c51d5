"""What NGINX adds to the first token: the same requests through the front and straight to the server, side by side.

    python tests/benchmarks/front_latency.py [--requests 300] [--prompt-characters 200]

A server process on a Unix socket, an engine that computes nothing, and the NGINX of `pagebox nginx render` in front of
it, with TLS. One request at a time, each way in turn, over connections that are kept: straight over the socket, through
NGINX over HTTP/1.1 and HTTP/2, and through NGINX over a new connection each time (TLS handshake included). A line for
each way: milliseconds until the first event of the stream, and by how much the median is later than the direct one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2

from appliance.front.description import machine_front
from tests.integration.server.byte_tokenizer import byte_tokenizer
from tests.integration.server.harness import KEY, running_server, settings_with
from tests.support.nginx import RunningNginx, program, running_nginx

HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def client_of(nginx: RunningNginx, *, http2: bool) -> httpx2.AsyncClient:
    context = ssl.create_default_context(cafile=str(nginx.layout.certificate))
    return httpx2.AsyncClient(base_url=nginx.url, verify=context, http2=http2, headers=HEADERS)


async def first_event(client: httpx2.AsyncClient, body: bytes) -> float:
    """Seconds until the first event; the stream is then read to its end, so that the connection is kept."""
    began = time.perf_counter()
    first = 0.0
    async with client.stream("POST", "/v1/completions", content=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not first and line.startswith("data: {"):
                first = time.perf_counter() - began
    return first


async def measure(requests: int, prompt_characters: int) -> dict[str, list[float]]:
    body = json.dumps({"prompt": "a" * prompt_characters, "max_tokens": 4, "stream": True}).encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"uds": str(folder / "http.sock"), "api_key": (KEY,), "disable_log_requests": True}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running_server(folder / "engine.sock", byte_tokenizer(), **settings))
            front = machine_front(settings_with(**settings), key_rate=1_000_000)
            nginx = await stack.enter_async_context(running_nginx(front, folder))
            direct = httpx2.AsyncHTTPTransport(uds=str(settings["uds"]))
            ways = {
                "direct": httpx2.AsyncClient(base_url="http://server", transport=direct, headers=HEADERS),
                "NGINX, HTTP/1.1": client_of(nginx, http2=False),
                "NGINX, HTTP/2": client_of(nginx, http2=True),
            }
            for client in ways.values():
                await stack.enter_async_context(client)
                await first_event(client, body)
            found: dict[str, list[float]] = {way: [] for way in [*ways, "NGINX, new connection"]}
            for _ in range(requests):
                for way, client in ways.items():
                    found[way].append(await first_event(client, body))
                async with client_of(nginx, http2=True) as fresh:
                    found["NGINX, new connection"].append(await first_event(fresh, body))
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--prompt-characters", type=int, default=200)
    options = parser.parse_args()
    if program() is None:
        raise SystemExit("There is no NGINX here; install nginx-light.")
    found = asyncio.run(measure(options.requests, options.prompt_characters))
    direct = statistics.median(found["direct"])
    print(f"{'first event, ms':<24}{'p50':>8}{'p95':>8}{'p99':>8}{'p50 later by':>14}")
    for way, seconds in found.items():
        quantiles = statistics.quantiles(seconds, n=100)
        p50, p95, p99 = (1000 * quantiles[percent - 1] for percent in (50, 95, 99))
        print(f"{way:<24}{p50:>8.2f}{p95:>8.2f}{p99:>8.2f}{p50 - 1000 * direct:>14.2f}")


if __name__ == "__main__":
    main()
