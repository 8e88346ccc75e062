"""Asks /health from a process of its own, as a load balancer does: `python -m backup_engine.health URL`.

It asks until standard input ends, then prints how often it asked and how long the answers took, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import httpx

EVERY = 0.005  # seconds


def main() -> int:
    """Ask until standard input ends; print the figures."""
    over = threading.Event()
    with httpx.Client(base_url=sys.argv[1], timeout=30) as client:
        _ask(client)  # the first connection is not what is measured
        print("ready", flush=True)
        threading.Thread(target=_wait, args=(over,), daemon=True).start()
        latencies, unanswered = _ask_on(client, over)
    json.dump(_figures(sorted(latencies), unanswered), sys.stdout)
    return 0


def _wait(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def _ask_on(client: httpx.Client, over: threading.Event) -> tuple[list[float], int]:
    """Ask every `EVERY` seconds, or as soon as a later answer is there; the last time after `over`."""
    latencies, unanswered = [], 0
    is_last = False
    while not is_last:
        is_last = over.is_set()
        begun = time.perf_counter()
        if _ask(client):
            latencies.append(time.perf_counter() - begun)
        else:
            unanswered += 1
        over.wait(max(0.0, EVERY - (time.perf_counter() - begun)))
    return latencies, unanswered


def _ask(client: httpx.Client) -> bool:
    try:
        response = client.get("/health")
        return response.status_code == 200 and bool(response.json()["ok"])
    except httpx.HTTPError:
        return False


def _figures(ascending: list[float], unanswered: int) -> dict[str, float]:
    figures: dict[str, float] = {"asked": len(ascending) + unanswered, "unanswered": unanswered}
    if ascending:
        ranks = {"p50_ms": len(ascending) // 2, "p99_ms": len(ascending) * 99 // 100, "max_ms": -1}
        figures |= {name: ascending[rank] * 1_000 for name, rank in ranks.items()}
    return figures


if __name__ == "__main__":
    sys.exit(main())
