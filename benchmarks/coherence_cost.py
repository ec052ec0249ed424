"""What a reader pays for receiving changes: `python -m benchmarks.coherence_cost [--rate 1000]`.

Another process writes or invalidates a number of entries a second; this one reads a thousand keys from its own memory,
at full speed, and then at a steady pace.  Changed are keys that this process does not have, or those that it reads:
then each change also costs the next read of it a round trip, and an invalidated one a load, here on a thread.
CPU is this process's alone, its listener thread's included.  The states follow one another in each round.  An entry is
written before it is invalidated where it is not read here: these changes are two pushes each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from benchmarks.report import markdown, progress
from cacheworkers import Cache, Config, Load
from cacheworkers.core.driver import run
from cacheworkers.core.entry import Entry
from cacheworkers.core.envelope import pack
from cacheworkers.flows.invalidate import invalidate_calls
from cacheworkers.store.connections.request import Request
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

KEYS = 1000
#: The writer changes this number of entries together, and rests in between.
BURST = 20
PACE = 10_000
#: Name -> (what the writer does, first of the keys it changes).
STATES = {
    "nobody writes": ("", 0),
    "writes, keys not here": ("write", 10_000_000),
    "invalidates, keys not here": ("invalidate", 10_000_000),
    "writes, keys in this L1": ("write", 0),
    "invalidates the keys that are read, which are loaded again": ("invalidate", 0),
}


class Cost(NamedTuple):
    """What one state costs a reader; CPU as a share of a core, and in microseconds a change, where there are any."""

    state: str
    reads_a_second: float
    ratio: float
    cpu: float
    cpu_us: float | None


def declared(url: str) -> tuple[Cache, Any]:
    """Return a cache and its loader."""
    cache = Cache(Config(redis_url=url, store_timeout=5.0))

    @cache.loader(fresh_for=3600, early=0)
    def product(load: Load, number: int) -> int:
        return number

    return cache, product


def changes(cache: Cache, kind: str, numbers: range) -> None:
    """Write or invalidate these keys' entries, whether they are there or not."""
    calls = [f"product[{number}]" for number in numbers]
    if kind == "invalidate":
        # The push comes from the deletion of what is there.
        write(cache, [call for call, number in zip(calls, numbers, strict=True) if number >= KEYS])
        run(invalidate_calls(cache._ports, calls, "hard"))
    else:
        write(cache, calls)


def write(cache: Cache, calls: list[str]) -> None:
    """Store entries as workers would, without their leases."""
    link, keys, now = cache._ports.store.link, cache._ports.store.keys, time.time()
    ends = (now, now + 3600, now + 3600, now + 3600, 0.0)
    blank = Entry("", (), b"7", *ends, 0.0, 0, b"12345678", b"12345678")
    requests = [
        Request(("SET", keys.entry(call), pack(msgspec.structs.replace(blank, call=call)), "EX", 3600))
        for call in calls
    ]
    if requests:
        link.exchange(requests)


def change_until(url: str, rate: float, state: Any, stop: Any) -> None:
    """Change entries at a rate, of the kind that `state` says, until stopped."""
    cache, _ = declared(url)
    names = list(STATES)
    at = 0
    due = time.monotonic()
    while not stop.is_set():
        kind, first = STATES[names[state.value]]
        if kind:
            changes(cache, kind, range(first + at, first + at + BURST))
            at = (at + BURST) % KEYS
        due = max(due + BURST / rate, time.monotonic() - 1.0)
        time.sleep(max(0.0, due - time.monotonic()))
    cache.close()


def measure(product: Any, seconds: float, pace: float) -> tuple[float, float]:
    """Read for so long, at most `pace` reads a second (0: full speed); reads and CPU seconds, both a second."""
    get, numbers = product.get, range(KEYS)
    reads = 0
    cpu, began = time.process_time(), time.monotonic()
    end = began + seconds
    while (now := time.monotonic()) < end:
        for number in numbers:
            get(number)
        reads += KEYS
        if pace:
            time.sleep(max(0.0, began + reads / pace - now))
    took = time.monotonic() - began
    return reads / took, (time.process_time() - cpu) / took


def rounds(product: Any, state: Any, seconds: float, count: int) -> Iterator[tuple[str, float, float]]:
    """Yield, of each state in turn: reads a second at full speed, and CPU at a steady pace."""
    with progress() as bar:
        task = bar.add_task("states", total=count * len(STATES))
        for _ in range(count):
            for at, name in enumerate(STATES):
                state.value = at
                time.sleep(0.3)
                product.get_many(range(KEYS))
                speed, _ = measure(product, seconds, 0.0)
                _, cpu = measure(product, seconds, PACE)
                yield name, speed, cpu
                bar.advance(task)


def measured(rate: float, seconds: float, count: int) -> list[Cost]:
    """Return what each state costs: medians of the rounds, compared within a round."""
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey:
        state, stop = context.Value("i", 0), context.Event()
        writer = context.Process(target=change_until, args=(valkey.url, rate, state, stop))
        writer.start()
        cache, product = declared(valkey.url)
        product.get_many(range(KEYS))
        wait_until(lambda: product.get_many(range(KEYS)) and product.read(1).tier == "l1")
        speeds: dict[str, list[float]] = {name: [] for name in STATES}
        cpus: dict[str, list[float]] = {name: [] for name in STATES}
        for name, speed, cpu in rounds(product, state, seconds, count):
            speeds[name].append(speed)
            cpus[name].append(cpu)
        stop.set()
        writer.join()
        cache.close()
    costs = []
    for name in STATES:
        # Compared within a round: a busy machine is busy for all of it.
        ratio = statistics.median(a / b for a, b in zip(speeds[name], speeds["nobody writes"], strict=True))
        more = statistics.median(a - b for a, b in zip(cpus[name], cpus["nobody writes"], strict=True))
        cpu_us = more / rate * 1e6 if STATES[name][0] else None
        costs.append(Cost(name, statistics.median(speeds[name]), ratio, statistics.median(cpus[name]), cpu_us))
    return costs


def heads(rate: float) -> tuple[str, ...]:
    """Return the heads of the table."""
    return (f"{rate:,.0f} changes a second", "reads/s, full speed", "ratio", f"CPU at {PACE:,} reads/s", "CPU a change")


def cells(cost: Cost) -> tuple[str, ...]:
    """Return a row of the table."""
    a_change = "" if cost.cpu_us is None else f"{cost.cpu_us:.0f} us"
    return (cost.state, f"{cost.reads_a_second:,.0f}", f"{cost.ratio:.2f}", f"{100 * cost.cpu:.1f} %", a_change)


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="changes a second")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    costs = measured(options.rate, options.seconds, 1 if options.quick else options.rounds)
    print(markdown(heads(options.rate), map(cells, costs)))


if __name__ == "__main__":
    main()
