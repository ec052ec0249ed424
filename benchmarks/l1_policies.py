"""Hit ratios of eviction policies for L1, on a real trace or a seeded Zipf, beside this library's own L1.

    python -m benchmarks.l1_policies [TRACE.trace.xz] [--sizes 256 1024] [--policies LRU SIEVE]

A trace is xz of 4-byte big-endian integers, one key each (8-byte with `--longs`).  W-TinyLFU is theine's (`pip install
theine`), and is left out where that is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.traces import read_trace, zipf
from cacheworkers.core.entry import Entry
from cacheworkers.local.l1 import L1, MISSING

#: Runs a trace through a cache of this size, and returns its hits.
Policy = Callable[[Sequence[int], int], int]


def lru(trace: Sequence[int], size: int) -> int:
    """Evict what was read least lately."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in cache:
            hits += 1
            cache.move_to_end(key)
        else:
            if len(cache) >= size:
                cache.popitem(last=False)
            cache[key] = None
    return hits


def sieve(trace: Sequence[int], size: int) -> int:
    """A hand moves from old to new and evicts the first entry not read since it came by (NSDI 2024)."""
    visited: dict[int, bool] = {}
    newer: dict[int, int | None] = {}
    older: dict[int, int | None] = {}
    oldest: int | None = None
    newest: int | None = None
    hand: int | None = None
    hits = 0
    for key in trace:
        if key in visited:
            hits += 1
            visited[key] = True
            continue
        if len(visited) >= size:
            at = oldest if hand is None else hand
            while at is not None and visited[at]:
                visited[at] = False
                at = newer[at]
                if at is None:
                    at = oldest
            assert at is not None
            before, after = older.pop(at), newer.pop(at)
            del visited[at]
            if before is None:
                oldest = after
            else:
                newer[before] = after
            if after is None:
                newest = before
            else:
                older[after] = before
            hand = after
        visited[key] = False
        older[key], newer[key] = newest, None
        if newest is None:
            oldest = key
        else:
            newer[newest] = key
        newest = key
    return hits


def s3fifo(trace: Sequence[int], size: int) -> int:
    """A small queue for the new, a main queue for what was read again, and a memory of what left (SOSP 2023)."""
    room = max(1, size // 10)
    small: deque[int] = deque()
    main: deque[int] = deque()
    reads: dict[int, int] = {}
    ghosts: OrderedDict[int, None] = OrderedDict()
    hits = 0

    def evict() -> None:
        while True:
            if small and (len(small) >= room or not main):
                key = small.popleft()
                if reads[key] > 1:
                    reads[key] = 0
                    main.append(key)
                    continue
                del reads[key]
                ghosts[key] = None
                if len(ghosts) > size - room:
                    ghosts.popitem(last=False)
                return
            key = main.popleft()
            if reads[key]:
                reads[key] -= 1
                main.append(key)
                continue
            del reads[key]
            return

    for key in trace:
        if key in reads:
            hits += 1
            if reads[key] < 3:
                reads[key] += 1
            continue
        if len(reads) >= size:
            evict()
        if key in ghosts:
            del ghosts[key]
            main.append(key)
        else:
            small.append(key)
        reads[key] = 0
    return hits


def w_tinylfu(trace: Sequence[int], size: int) -> int:
    """A window, and a main part that admits by frequency; theine's, with its lock and its buffers."""
    from theine import Cache  # type: ignore[import-not-found,unused-ignore]

    cache: Cache[int, int] = Cache(size)
    hits = 0
    for key in trace:
        if cache.get(key)[1]:
            hits += 1
        else:
            cache.set(key, key)
    cache.close()
    return hits


def this_l1(trace: Sequence[int], size: int) -> int:
    """This library's own L1: fills, visit marks and bounds as in production."""
    l1 = L1(size, 1 << 40)
    get, fill, guard = l1.slots.get, l1.fill, l1.guard
    entry = Entry("", (), b"", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, b"", b"")
    calls = {key: f"product[{key}]" for key in set(trace)}
    hits = 0
    for key in trace:
        call = calls[key]
        slot = get(call)
        if slot is not None:
            slot.reads += 1
            hits += 1
        else:
            fill(call, entry=entry, value=MISSING, until=1.0, guard=guard(call))
    return hits


POLICIES: dict[str, Policy] = {
    "LRU": lru,
    "SIEVE": sieve,
    "S3-FIFO": s3fifo,
    "W-TinyLFU": w_tinylfu,
    "L1": this_l1,
}


def main() -> None:
    """Print a table: a row a policy, a column a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path, help="none: a seeded Zipf of 500,000 reads of 50,000 keys")
    parser.add_argument("--longs", action="store_true", help="keys are 8 bytes")
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 1024, 4096, 16384])
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    options = parser.parse_args()

    trace = read_trace(options.trace, longs=options.longs) if options.trace else zipf(500_000, 50_000)
    distinct = len(set(trace))
    name = options.trace.name if options.trace else "Zipf 0.9, seed 7"
    print(f"{name}: {len(trace):,} reads, {distinct:,} keys, ideal hit ratio {1 - distinct / len(trace):.3f}")
    print("".join(["policy    ", *(f"{size:>9,}" for size in options.sizes), "     us a read"]))
    for policy in options.policies:
        if policy == "W-TinyLFU" and importlib.util.find_spec("theine") is None:
            print(f"{policy:10} not measured: theine is not installed")
            continue
        began = time.perf_counter()
        ratios = [POLICIES[policy](trace, size) / len(trace) for size in options.sizes]
        each = (time.perf_counter() - began) / len(trace) / len(options.sizes) * 1e6
        print("".join([f"{policy:10}", *(f"{ratio:9.3f}" for ratio in ratios), f"{each:14.2f}"]), flush=True)


if __name__ == "__main__":
    main()
