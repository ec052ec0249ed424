"""Garbage collection of a million dead tag-set members while somebody reads.

    python -m benchmarks.garbage_collection [--quick]

Half of the members are in one set, most of the rest in sets of 400, and some tags have one member each, as tags of
single products do.  All have expired.  Every tenth tag was last invalidated two hours ago, every tenth just now: the
first mark may go, the second must stay, for loads that began before it may still be under way.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import redis

from benchmarks.report import markdown, percentile, progress
from cacheworkers import Cache, Config, Load
from cacheworkers.core.keys import Keyspace
from cacheworkers.testing import Valkey

#: A command that takes longer is in the server's own slow log, microseconds.
SLOW = 5000
MEMBERS = 1_000_000
QUICK = 100_000
SET_OF_MANY = 400
PIPELINE = 5000
AGO = 2 * 3600.0


class GarbageCollected(NamedTuple):
    """What there was, what it took, and what is left.

    Attributes:
        took: seconds.
        slow: commands over `SLOW` by the server's slow log: microseconds and command.
        idle, busy: a reader's latencies before and meanwhile, milliseconds.
        memory: megabytes empty, full, and after the collection.
        left: kinds of keys, and how many of each.
    """

    members: int
    sets: int
    fresh_marks: int
    removed: int
    took: float
    slow: list[tuple[int, bytes]]
    idle: list[float]
    busy: list[float]
    memory: tuple[float, float, float]
    left: list[tuple[str, int]]


def tags_of(members: int) -> Iterator[tuple[str, int]]:
    """Yield tags and their numbers of members: one large, many of middle size, and single ones; together `members`."""
    large, single = members // 2, members // 20
    yield "all", large
    rest = members - large - single
    for number in range(rest // SET_OF_MANY):
        yield f"category:{number}", SET_OF_MANY
    if rest % SET_OF_MANY:
        yield "category:last", rest % SET_OF_MANY
    for number in range(single):
        yield f"product:{number}", 1


def fill(client: Any, keys: Keyspace, members: int) -> tuple[int, int]:
    """Write tag sets whose members have all expired; how many sets, and how many marks that must stay."""
    now_ms = time.time() * 1000
    made = fresh_marks = 0
    with progress() as bar:
        task = bar.add_task("members", total=members)
        for tag, count in tags_of(members):
            pipeline = client.pipeline(transaction=False)
            for start in range(0, count, PIPELINE):
                numbers = range(start, min(start + PIPELINE, count))
                pipeline.zadd(keys.tag_set(tag), {f"page[{made},{number}]": now_ms - 1000 for number in numbers})
                bar.advance(task, len(numbers))
            if made % 10 == 0:
                pipeline.set(keys.last_invalidation(tag), int(now_ms - AGO * 1000))
            elif made % 10 == 1:
                pipeline.set(keys.last_invalidation(tag), int(now_ms))
                fresh_marks += 1
            pipeline.execute()
            made += 1
    return made, fresh_marks


def read(url: str, stop: Any, results: Any) -> None:
    """Read one entry through the store, and report the latencies in milliseconds."""
    cache = Cache(Config(redis_url=url, store_timeout=5.0))

    @cache.loader(fresh_for=3600, l1_for=0.0)
    def alive(load: Load, number: int) -> int:
        return number

    alive.get(1)
    results.put("ready")
    idle: list[float] = []
    busy: list[float] = []
    while not stop[1].is_set():
        began = time.perf_counter()
        alive.get(1)
        (busy if stop[0].is_set() else idle).append(1000 * (time.perf_counter() - began))
        time.sleep(0.0005)
    results.put((idle, busy))
    cache.close()


def kinds_of(client: Any, namespace: str) -> dict[str, int]:
    """Return how many keys of each kind there are: `t`, `v`, `seq`, and so on."""
    return dict(collections.Counter(key.decode().split(":")[1] for key in client.scan_iter(f"{namespace}:*", 1000)))


def used(client: Any) -> float:
    """Return the server's memory without its clients' buffers, in MB."""
    memory = client.info("memory")
    return float(memory["used_memory"] - memory["mem_clients_normal"]) / 1e6


def watch(client: Any, key: str, members: int, done: threading.Event) -> None:
    """Show how far the collection has got, by the size of the largest set."""
    with progress() as bar:
        task = bar.add_task("collection, largest set", total=members // 2)
        while not done.wait(0.5):
            bar.update(task, completed=members // 2 - client.zcard(key))


def measured(members: int) -> GarbageCollected:
    """Fill, and collect."""
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey:
        cache = Cache(Config(redis_url=valkey.url, store_timeout=5.0))
        client = redis.Redis.from_url(valkey.url)
        stop, results = (context.Event(), context.Event()), context.Queue()
        reader = context.Process(target=read, args=(valkey.url, stop, results))
        reader.start()
        results.get(timeout=60)
        cache.invalidate("category:1")  # from now on there is a `seq`
        cache.collect_garbage()  # connects, and has the scripts loaded
        empty = used(client)
        sets, fresh_marks = fill(client, cache._ports.store.keys, members)
        full = used(client)
        client.config_set("slowlog-log-slower-than", SLOW)
        client.config_set("slowlog-max-len", 1000)
        time.sleep(2.0)
        client.slowlog_reset()
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(client, cache._ports.store.keys.tag_set("all"), members, done))
        watcher.start()
        stop[0].set()
        began = time.perf_counter()
        collected = cache.collect_garbage()
        took = time.perf_counter() - began
        stop[1].set()
        done.set()
        watcher.join()
        idle, busy = results.get(timeout=60)
        reader.join()
        slow = [(entry["duration"], entry["command"]) for entry in client.slowlog_get(1000)]
        left = sorted(kinds_of(client, cache.config.namespace).items())
        memory = empty, full, used(client)
        cache.close()
    return GarbageCollected(members, sets, fresh_marks, collected.members, took, slow, idle, busy, memory, left)


def main() -> None:
    """Fill, collect, and print how long it took, what was slow, what readers noticed, and what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} members")
    options = parser.parse_args()
    found = measured(QUICK if options.quick else options.members)
    rows = [
        ("dead members, tag sets", f"{found.members:,}, {found.sets:,}"),
        ("removed, in", f"{found.removed:,}, {found.took:.1f} s"),
        (f"commands over {SLOW / 1000:g} ms (SLOWLOG)", f"{len(found.slow)}"),
        ("a reader, idle: p50, p99, most", line(found.idle)),
        ("a reader meanwhile: p50, p99, most", line(found.busy)),
        ("memory empty, full, collected", ", ".join(f"{each:.1f}" for each in found.memory) + " MB"),
        (
            f"keys left ({found.fresh_marks + 1:,} marks must stay)",
            ", ".join(f"{kind}: {count:,}" for kind, count in found.left),
        ),
    ]
    print(markdown(("what", "measured"), rows))
    for duration, command in found.slow[:5]:
        print(f"slow: {duration / 1000:.1f} ms {command[:60]!r}")


def line(latencies: list[float]) -> str:
    """Return median, 99th percentile and maximum."""
    return f"{percentile(latencies, 0.5):.2f}, {percentile(latencies, 0.99):.2f}, {max(latencies):.2f} ms"


if __name__ == "__main__":
    main()
