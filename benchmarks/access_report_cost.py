"""What it costs to count reads, and whether the hottest are found: `python -m benchmarks.access_report_cost [--quick]`.

The cost is the difference between `Loader.get` as it is and the same function compiled without its one line that
counts, measured in turn.  Then four caches read ten million times from a million distinct calls, by Zipf: what their
L1 has is counted in its slots, the rest in `local/access_counter.py`; each reports to the store
what it counted as often as it would
at 10,000 reads a second.  The hottest by the store are compared with the hottest by a count of everything.
"""

from __future__ import annotations

import argparse
import array
import inspect
import itertools
import random
import statistics
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import redis

from benchmarks.report import markdown, progress
from cacheworkers import Cache, Config, Load
from cacheworkers import loader as loaders
from cacheworkers.core.entry import Entry
from cacheworkers.local import access_counter as counting
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

COUNTS = "slot.reads += 1"
HITS = 200_000
ROUNDS = 25
CACHES = 4
READS_A_SECOND = 10_000
CHUNK = 10_000
ENTRY = Entry("", (), b'{"id":1}', 0.0, 1e12, 1e12, 1e12, 0.0, 0.0, 0, b"12345678", b"12345678")


class Cost(NamedTuple):
    """Nanoseconds of an L1 hit with and without counting, their median difference, and what a store hit takes more."""

    counting: float
    without: float
    more: float
    store: float


class Hottest(NamedTuple):
    """How many of the true hottest were found, by how many were asked for; and what was kept, with its bytes."""

    skew: float
    there: dict[int, int]
    counted: int
    counted_bytes: int
    kept: int
    kept_bytes: int


def without_counting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled from another's source without the line that counts.

    Raises:
        ValueError: it has no such line, or several.
    """
    source = textwrap.dedent(inspect.getsource(function))
    lines = [line for line in source.splitlines() if line.strip() != COUNTS]
    if len(lines) != len(source.splitlines()) - 1:
        raise ValueError(f"{function.__qualname__} must have one line {COUNTS!r}")
    made: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + "\n".join(lines), "<without counting>", "exec")
    exec(code, {**vars(loaders)}, made)
    found: Callable[..., Any] = made[function.__name__]
    return found


def each(call: Callable[[int], Any], count: int) -> float:
    """Return the nanoseconds of one call."""
    began = time.perf_counter_ns()
    for _ in itertools.repeat(None, count):
        call(42)
    return (time.perf_counter_ns() - began) / count


def cost_of_a_hit(product: Any, rounds: int) -> tuple[float, float, float]:
    """Return the nanoseconds of an L1 hit with and without counting, and the median difference of neighbours."""
    counts = type(product).get.__get__(product)
    counts_not = without_counting(type(product).get).__get__(product)
    pairs = []
    for turn in range(rounds):
        order = (counts, counts_not) if turn % 2 else (counts_not, counts)
        times = {call: each(call, HITS) for call in order}
        pairs.append((times[counts], times[counts_not]))
    return (
        statistics.median(with_ for with_, _ in pairs),
        statistics.median(without for _, without in pairs),
        statistics.median(with_ - without for with_, without in pairs),
    )


def cost_of_a_store_hit(cache: Cache) -> float:
    """Return the nanoseconds by which counting lengthens a hit in the store."""
    counter = cache._ports.access_counter

    def note(number: int) -> None:
        counter.reads.append("product[42]")
        if len(counter.reads) >= counting.TOGETHER:
            counter.count_noted()

    return min(each(note, HITS) - each(lambda number: None, HITS) for _ in range(5))


def cost_of_reporting(cache: Cache, entry: Entry) -> float:
    """Return the milliseconds that it takes to report a full L1 and of as much again that was read in the store."""
    l1 = cache._ports.l1
    for number in range(cache.config.l1_entries):
        call = f"product[{number}]"
        slot = l1.fill(call, entry=entry, value=1, until=1e12, guard=l1.guard(call))
        assert slot is not None
        slot.reads += 1 + number % 50
    for number in range(cache.config.l1_entries):
        cache._ports.access_counter.count(f"product[{-number}]", 1 + number % 50)
    began = time.perf_counter()
    cache.report_accesses()
    return 1000 * (time.perf_counter() - began)


class Reader:
    """One process's way of counting: slots of an L1, and counts of what it has not."""

    def __init__(self, cache: Cache, entry: Entry) -> None:
        self.cache = cache
        self.most = self.most_bytes = 0
        self._entry = entry
        self._reads = 0
        self._every = int(READS_A_SECOND * cache.config.access_report_interval)

    def read(self, call: str) -> None:
        """Read a call as far as counting is concerned, and report to the store when it is time."""
        ports = self.cache._ports
        slot = ports.l1.slots.get(call)
        if slot is not None:
            slot.reads += 1
        else:
            ports.access_counter.count(call)
            ports.l1.fill(call, entry=self._entry, value=1, until=1e12, guard=ports.l1.guard(call))
        self._reads += 1
        if self._reads % 1000 == 0:
            self.most = max(self.most, len(ports.access_counter))
        if self._reads % self._every == 0:
            counts = ports.access_counter._counts
            self.most_bytes = max(self.most_bytes, sys.getsizeof(counts) + sum(map(sys.getsizeof, counts)))
            self.cache.report_accesses()


def find_the_hottest(url: str, reads: int, distinct: int, skew: float) -> Hottest:
    """Read so often, and return how many of the hottest were found, and what memory it took."""
    chance = random.Random(11)
    weights = list(itertools.accumulate((rank + 1) ** -skew for rank in range(distinct)))
    truth = array.array("l", [0]) * distinct
    namespace = f"heat{int(skew * 100)}"
    caches = [declared(url, namespace)[0] for _ in range(CACHES)]
    readers = [Reader(cache, ENTRY) for cache in caches]
    turns = itertools.cycle(readers)
    with progress() as bar:
        task = bar.add_task(f"reads, Zipf {skew:g}", total=reads)
        for _ in range(reads // CHUNK):
            for number in chance.choices(range(distinct), cum_weights=weights, k=CHUNK):
                truth[number] += 1
                next(turns).read(f"product[{number}]")
            bar.advance(task, CHUNK)
    for cache in caches:
        cache.report_accesses()
    ranked = sorted(range(distinct), key=truth.__getitem__, reverse=True)
    there = {}
    for most in (10, 100, 500):
        found = {call for call, _ in caches[0].hot("product", most)}
        there[most] = sum(f"product[{number}]" in found for number in ranked[:most])
    client = redis.Redis.from_url(url)
    key = caches[0]._ports.store.keys.accesses("product")
    counted = max(reader.most for reader in readers), max(reader.most_bytes for reader in readers)
    kept = client.zcard(key), client.memory_usage(key, samples=0) or 0
    for cache in caches:
        cache.close()
    return Hottest(skew, there, *counted, *kept)


def declared(url: str, namespace: str) -> tuple[Cache, Any]:
    """Return a cache that reports when `report` is called, and its loader."""
    cache = Cache(Config(redis_url=url, namespace=namespace, store_timeout=5.0))
    cache._runtime._access_reporter.close()

    @cache.loader(fresh_for=3600, early=0)
    def product(load: Load, number: int) -> int:
        return number

    return cache, product


def costs(url: str, rounds: int) -> Cost:
    """Return what counting costs."""
    cache, product = declared(url, "cost")
    product.get(42)
    wait_until(lambda: product.read(42).tier == "l1")
    found = Cost(*cost_of_a_hit(product, rounds), cost_of_a_store_hit(cache))
    cache.close()
    return found


def rows_of(hottest: Hottest) -> list[tuple[str, str]]:
    """Return the rows of the table."""
    name = f"Zipf {hottest.skew:g}:"
    counted, kept = (
        f"{hottest.counted:,}, {hottest.counted_bytes / 1e6:.1f} MB",
        f"{hottest.kept:,}, {hottest.kept_bytes / 1e6:.2f} MB",
    )
    return [
        *((f"{name} of the true top {most} found", f"{there}") for most, there in hottest.there.items()),
        (f"{name} most calls counted in a process (bound {counting.MAX_CALLS:,})", counted),
        (f"{name} calls in the store (bound {Config().max_hot_calls:,})", kept),
    ]


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=10_000_000)
    parser.add_argument("--calls", type=int, default=1_000_000, help="distinct ones")
    parser.add_argument("--skews", type=float, nargs="+", default=[1.0, 0.8])
    parser.add_argument("--quick", action="store_true", help="a million reads of 100,000 calls, one skew")
    options = parser.parse_args()
    if options.quick:
        options.reads, options.calls, options.skews = 1_000_000, 100_000, [1.0]
    with Valkey() as valkey:
        cost = costs(valkey.url, 5 if options.quick else ROUNDS)
        cache, _ = declared(valkey.url, "reporting")
        reporting = cost_of_reporting(cache, ENTRY)
        cache.close()
        rows = [
            ("L1 hit as it is", f"{cost.counting:.0f} ns"),
            ("L1 hit without counting", f"{cost.without:.0f} ns"),
            ("difference, median of neighbours", f"{cost.more:.0f} ns"),
            ("counting a store hit", f"{cost.store:.0f} ns"),
            (f"reporting 20,000 calls, every {cache.config.access_report_interval:g} s", f"{reporting:.1f} ms"),
        ]
        for skew in options.skews:
            rows += rows_of(find_the_hottest(valkey.url, options.reads, options.calls, skew))
    print(markdown(("what", "measured"), rows))


if __name__ == "__main__":
    main()
