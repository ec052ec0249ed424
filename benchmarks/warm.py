"""Warm many keys of a batch loader through real workers: `python -m benchmarks.warm [--keys 1000 100000]`.

Beside it cold keys of another loader are read, one after the other, in turns with and without warming, and some of the
very keys that are being warmed: warming must not hurt those who wait.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from benchmarks.report import percentile
from benchmarks.stack import Pool, stack

#: Between two reads, seconds.
PAUSE = 0.01
#: One in this number of reads is of a key that is being warmed.
OF_THOSE_WARMED = 10


class Warmed(NamedTuple):
    """What warming took: seconds, queries; and of misses meanwhile and without, their latencies in seconds.

    `wanted` are those of misses of keys that were being warmed; each is a query more.
    """

    keys: int
    took: float
    queries: int
    busy: list[float]
    idle: list[float]
    wanted: list[float]


def warm_as_ordered(pipe: Connection) -> None:
    """Have ranges of keys warmed, one after the other, as a command in a session of its own would."""
    os.setsid()
    from benchmarks.shop import cache

    pipe.send(None)
    with contextlib.suppress(EOFError):  # the sender was ended
        while (reported := pipe.recv()) is not None:
            keys, pace = reported
            done = cache.warm("prices", [cache.call("prices", key) for key in keys], **pace).wait()
            assert done.done == done.calls, done
            pipe.send(None)
    cache.close()


class Reader:
    """Reads cold keys, one after the other, and now and then one of those that are being warmed.

    Attributes:
        misses: how long each of those warmed took that was not there yet, seconds.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self.misses: list[float] = []

    def read(self, is_over: Callable[[float], bool], warmed: range = range(0)) -> list[float]:
        """Read, and pause for `PAUSE`, until it is over; how long each read of a cold key took, seconds.

        Args:
            is_over: waits for at most a number of seconds.
            warmed: keys that are warmed meanwhile; the last of them are warmed last.
        """
        from benchmarks.shop import price, prices

        latencies: list[float] = []
        ahead = iter(reversed(warmed))
        while not is_over(PAUSE):
            began = time.perf_counter()
            price.get(self._next)
            latencies.append(time.perf_counter() - began)
            self._next += 1
            key = next(ahead, None) if self._next % OF_THOSE_WARMED == 0 else None
            if key is None or prices.peek(key) is not None:
                continue
            began = time.perf_counter()
            prices.get(key)
            self.misses.append(time.perf_counter() - began)
        return latencies


def at(latencies: list[float], share: float) -> float:
    """Return a percentile, milliseconds."""
    return 1000 * percentile(latencies, share)


def for_seconds(seconds: float) -> Callable[[float], bool]:
    """Return what says whether a number of seconds have passed, having waited for a while."""
    end = time.perf_counter() + seconds

    def is_over(pause: float) -> bool:
        time.sleep(pause)
        return time.perf_counter() >= end

    return is_over


def measured(
    counts: Sequence[int], *, max_rate: float = 2000.0, concurrency: int = 200, part: int = 5000
) -> Iterator[Warmed]:
    """Warm a number of keys, one count after the other, and yield what each took.

    Args:
        max_rate, concurrency: keys a second and keys under way, of more than a thousand.
        part: keys after which nothing is warmed for as long.
    """
    with stack(Pool(("miss", "revalidate")), Pool(("warm", "upkeep"), concurrency=1)) as here:
        from benchmarks.shop import cache

        here.sql("CREATE TABLE price (id int PRIMARY KEY, amount int)")
        here.sql(f"INSERT INTO price SELECT i, i FROM generate_series(1, {sum(counts) + 100_000}) i")
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        multiprocessing.get_context("spawn").Process(target=warm_as_ordered, args=(theirs,), daemon=True).start()
        ours.recv()
        reader = Reader(sum(counts) + 2)
        ours.send(([1], {}))
        reader.read(ours.poll)
        ours.recv()
        reader.read(for_seconds(2.0))
        first = 2
        for keys in counts:
            here.sql("SELECT pg_stat_statements_reset()")
            pace = {"max_rate": max_rate, "concurrency": concurrency} if keys > 1000 else {}
            took, idle, busy = 0.0, [], []
            reader.misses.clear()
            for start in range(first, first + keys, part):
                began = time.perf_counter()
                these = range(start, min(start + part, first + keys))
                ours.send((these, pace))
                busy += reader.read(ours.poll, these if keys > 1000 else range(0))
                ours.recv()
                lasted = time.perf_counter() - began
                took += lasted
                # As long again without: what else the machine does meanwhile is in both.
                idle += reader.read(for_seconds(max(1.0, lasted)))
            yield Warmed(keys, took, here.calls("SELECT id, amount%"), busy, idle, list(reader.misses))
            first += keys
        ours.send(None)
        cache.close()


def main() -> None:
    """Warm, and print how long it took, in how many queries, and what a miss cost meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--max-rate", type=float, default=2000.0, help="keys a second, of more than a thousand")
    parser.add_argument("--concurrency", type=int, default=200, help="keys under way, of more than a thousand")
    parser.add_argument("--part", type=int, default=5000, help="keys after which nothing is warmed for as long")
    options = parser.parse_args()
    pace = {"max_rate": options.max_rate, "concurrency": options.concurrency, "part": options.part}
    for keys, took, queries, busy, idle, wanted in measured(options.keys, **pace):
        print(
            f"{keys:,} keys warm in {took:.1f} s and {queries:,} queries; p50, p99 of "
            f"{len(busy):,} misses meanwhile {at(busy, 0.5):.1f}, {at(busy, 0.99):.1f} ms, of {len(idle):,} idle "
            f"{at(idle, 0.5):.1f}, {at(idle, 0.99):.1f} ms ({at(busy, 0.99) / at(idle, 0.99):.2f}x)",
            flush=True,
        )
        if wanted:
            print(
                f"p50, p99 of {len(wanted):,} misses of keys that were being warmed, each a query of those, "
                f"{at(wanted, 0.5):.1f}, {at(wanted, 0.99):.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
