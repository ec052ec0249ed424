"""Invalidate a tag of a million members while somebody reads: `python -m benchmarks.huge_tag [--members 1000000]`."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any, Literal, NamedTuple

import msgspec
import redis

from benchmarks.report import percentile
from cacheworkers import Cache, Config, Load
from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.testing import Valkey

#: A command that takes longer is in the server's own slow log, microseconds.
SLOW = 5000
#: Kinds of commands that were sent less often are not printed.
OFTEN = 100


class Invalidated(NamedTuple):
    """What it took, and what was noticed.

    Attributes:
        took: seconds.
        slow: commands over `SLOW` by the server's slow log, and how long they took, microseconds.
        longest: the kind of command that takes longest on average, and how long, microseconds.
        latencies: of a reader meanwhile, sorted, milliseconds.
    """

    entries: int
    took: float
    slow: list[tuple[bytes, int]]
    longest: tuple[str, float]
    latencies: list[float]


def read(url: str, stop: Any, results: Any) -> None:
    """Read one entry of another tag, through the store, and report the latencies in milliseconds."""
    cache = Cache(Config(redis_url=url, store_timeout=5.0))

    @cache.loader(fresh_for=600, l1_for=0.0)
    def other(load: Load, number: int) -> int:
        return number

    other.get(1)
    results.put("ready")
    latencies = []
    while not stop.is_set():
        began = time.perf_counter()
        other.get(1)
        latencies.append(1000 * (time.perf_counter() - began))
        time.sleep(0.0005)
    results.put(sorted(latencies))


def fill(cache: Cache, client: Any, members: int) -> None:
    """Write entries and the tag's set as workers would."""
    keys = cache._ports.store.keys
    now = time.time()
    ends = (now, now + 600, now + 600, now + 600)
    blank = Entry("", ("all",), b'{"id":1,"name":"of some product"}', *ends, 0.0, 0.0, 0, b"12345678", b"")
    for start in range(0, members, 5000):
        pipeline = client.pipeline(transaction=False)
        calls = [f"page[{number}]" for number in range(start, min(start + 5000, members))]
        for call in calls:
            pipeline.set(keys.entry(call), envelope.pack(msgspec.structs.replace(blank, call=call)), ex=600)
        pipeline.zadd(keys.tag_set("all"), {call: int((now + 700) * 1000) for call in calls})
        pipeline.execute()


def measured(members: int, mode: Literal["hard", "soft"] = "hard") -> Invalidated:
    """Fill a tag of this many members, and invalidate it."""
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey:
        cache = Cache(Config(redis_url=valkey.url, store_timeout=5.0))
        client = redis.Redis.from_url(valkey.url)
        fill(cache, client, members)
        client.config_set("slowlog-log-slower-than", SLOW)
        client.config_set("slowlog-max-len", 1000)
        stop, results = context.Event(), context.Queue()
        reader = context.Process(target=read, args=(valkey.url, stop, results))
        reader.start()
        results.get(timeout=60)
        time.sleep(1.0)
        client.slowlog_reset()
        client.config_resetstat()
        began = time.perf_counter()
        done = cache.invalidate("all", mode=mode)
        took = time.perf_counter() - began
        stop.set()
        latencies = results.get(timeout=60)
        reader.join()
        slow = [(entry["command"], entry["duration"]) for entry in client.slowlog_get(1000)]
        kinds = client.info("commandstats")
        often = {name: stat["usec_per_call"] for name, stat in kinds.items() if stat["calls"] >= OFTEN}
        longest = max(often, key=lambda name: often[name], default="")
        cache.close()
    kind = longest.removeprefix("cmdstat_")
    return Invalidated(done.entries, took, slow, (kind, often.get(longest, 0.0)), latencies)


def main() -> None:
    """Fill, invalidate, and print how long it took, what was slow, and what readers noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--mode", choices=["hard", "soft"], default="hard")
    options = parser.parse_args()
    found = measured(options.members, options.mode)
    shown = [(command[:40], duration) for command, duration in found.slow[:3]]
    print(f"{options.mode}: {found.entries:,} entries of one tag in {found.took:.1f} s")
    print(f"commands over {SLOW / 1000:g} ms by the server's slow log: {len(found.slow)} {shown}")
    # The slow log goes by the clock: on a busy machine a command counts whose time the server spent not running.
    print(f"the longest kind of command on average: {found.longest[0]}, {found.longest[1]:.0f} us")
    print(
        f"a reader meanwhile: p50 {percentile(found.latencies, 0.5):.2f} ms, "
        f"p99 {percentile(found.latencies, 0.99):.2f} ms, most {found.latencies[-1]:.2f} ms"
    )


if __name__ == "__main__":
    main()
