"""What metrics cost: `python -m benchmarks.metrics_cost [--quick]`.

An L1 hit of a cache with the hook `Metrics` and of one without, measured in turn in one process; beside them a second
cache without, to see what two equal caches differ by.  Hits make no event: they are reported in bulk, so what that
costs is measured too, and shared out among them.  Then what the hook takes of a read of the store, and a scrape; all
of it once with the metrics of one process, and once with those of many, in files that they share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.report import markdown
from cacheworkers import Cache, Config, Load
from cacheworkers.events import Event, MemoryHits, MemoryUsed, Served
from cacheworkers.ops.metrics import Metrics, exposition
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

#: What one hit may cost more with metrics, nanoseconds.
MOST = 100.0
HITS = 200_000
ROUNDS = 25
LOADERS = 20
#: Reads that a busy process reports together: 10,000 a second, every 5 s.
REPORTED = 50_000


def each(call: Callable[[Any], Any], argument: Any, count: int) -> float:
    """Return the nanoseconds of one call."""
    began = time.perf_counter_ns()
    for _ in itertools.repeat(None, count):
        call(argument)
    return (time.perf_counter_ns() - began) / count


def hits(loaders: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Return the nanoseconds of an L1 hit of each loader, round by round; each round begins with another of them."""
    names = list(loaders)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(each(loaders[name].get, 42, HITS))
    return found


def declared(url: str, namespace: str, hook: Callable[[Event], None] | None) -> tuple[Cache, Any]:
    """Return a cache that reports its hits now and then, as all do, and its loader with one entry in memory."""
    cache = Cache(Config(redis_url=url, namespace=namespace, store_timeout=5.0), hook=hook)

    @cache.loader(fresh_for=3600, early=0)
    def product(load: Load, number: int) -> int:
        return number

    product.get(42)
    wait_until(lambda: product.read(42).tier == "l1")
    return cache, product


def measured(rounds: int) -> dict[str, float]:
    """Measure in this process; the environment says whether its metrics are in shared files."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    events = [MemoryHits(f"loader{number}", REPORTED // LOADERS) for number in range(LOADERS)]
    served = Served("product", "fresh", "store", 12.0, 0.0004)
    with Valkey() as valkey:
        caches = {
            "with": declared(valkey.url, "with", metrics),
            "without": declared(valkey.url, "without", None),
            "again": declared(valkey.url, "again", None),
        }
        times = hits({name: product for name, (_, product) in caches.items()}, rounds)
        for cache, _ in caches.values():
            cache.close()

    def report_hits(_: None) -> None:
        for event in events:
            metrics(event)
        metrics(MemoryUsed(20_000, 40_000_000, 0))

    report_hits(None)
    metrics(served)

    def more(one: str, other: str) -> float:
        return statistics.median(a - b for a, b in zip(times[one], times[other], strict=True))

    return {
        "with": statistics.median(times["with"]),
        "without": statistics.median(times["without"]),
        "more": more("with", "without"),
        "noise": more("again", "without"),
        "reporting": min(each(report_hits, None, 200) for _ in range(5)) / REPORTED,
        "served": min(each(metrics, served, 20_000) for _ in range(5)),
        "scrape": min(each(lambda _: exposition(registry), None, 5) for _ in range(5)),
    }


def apart(rounds: int, **env: str) -> dict[str, float]:
    """Measure in a process of its own: the client decides when it is imported where its numbers are."""
    words = [sys.executable, "-m", "benchmarks.metrics_cost", "--here", "--rounds", str(rounds)]
    done = subprocess.run(words, env={**os.environ, **env}, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> int:
    """Print one table; status 1 if a hit costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of 200,000 hits of each cache")
    parser.add_argument("--quick", action="store_true", help="five rounds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    if options.here:
        print(json.dumps(measured(rounds)))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        one, many = apart(rounds), apart(rounds, PROMETHEUS_MULTIPROC_DIR=directory)
    costs = [found["more"] + found["reporting"] for found in (one, many)]

    def row(what: str, name: str, unit: float, shown: str) -> tuple[str, ...]:
        return (what, *(shown.format(found[name] / unit) for found in (one, many)))

    rows = [
        row("an L1 hit with the hook", "with", 1, "{:.0f} ns"),
        row("an L1 hit without", "without", 1, "{:.0f} ns"),
        row("median difference of neighbours", "more", 1, "{:+.1f} ns"),
        row("the same of two caches without", "noise", 1, "{:+.1f} ns"),
        row(f"reporting {REPORTED:,} hits of {LOADERS} loaders, a hit", "reporting", 1, "{:.1f} ns"),
        (f"**a hit costs more, in all; at most {MOST:.0f} ns**", *(f"{cost:+.1f} ns" for cost in costs)),
        row("a read of the store", "served", 1000, "{:.1f} us"),
        row("a scrape", "scrape", 1_000_000, "{:.1f} ms"),
    ]
    print(markdown(("what", "one process", "shared files"), rows))
    return int(max(costs) > MOST)


if __name__ == "__main__":
    sys.exit(main())
