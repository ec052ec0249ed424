"""Simultaneous readers of one cold key: `python -m benchmarks.stampede [--readers 50000] [--processes 4]`."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.stack import stack


def read(readers: int, key: int, gate: Any, results: Any) -> None:
    """Read one key from many tasks of this process, once everybody is at the gate."""
    from benchmarks.shop import slow

    async def one() -> float:
        await slow.aget(key)
        return time.monotonic()

    async def all_of_them() -> tuple[float, float, int]:
        await slow.apeek(key)
        gate.wait()
        begin = time.monotonic()
        ends = await asyncio.gather(*(one() for _ in range(readers)), return_exceptions=True)
        served = [end for end in ends if isinstance(end, float)]
        return begin, max(served, default=begin), len(served)

    results.put(asyncio.run(all_of_them()))


def rounds(readers: int, processes: int, count: int) -> Iterator[tuple[int, int, float]]:
    """Yield, of each round with a key of its own: loads by Postgres's count, readers served, seconds to the last."""
    context = multiprocessing.get_context("spawn")
    with stack() as here:
        for key in range(1, count + 1):
            here.sql("SELECT pg_stat_statements_reset()")
            gate, results = context.Barrier(processes), context.Queue()
            share = readers // processes
            crowd = [context.Process(target=read, args=(share, key, gate, results)) for _ in range(processes)]
            for each in crowd:
                each.start()
            rows = [results.get(timeout=120) for _ in crowd]
            for each in crowd:
                each.join()
            took = max(end for _, end, _ in rows) - min(begin for begin, _, _ in rows)
            yield here.calls("SELECT pg_sleep%"), sum(served for _, _, served in rows), took


def main() -> None:
    """Run it and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    for loads, served, took in rounds(options.readers, options.processes, 3):
        print(
            f"{options.readers:,} readers in {options.processes} processes, load 0.4 s: "
            f"{loads} load(s) by Postgres's count, {served:,} served, last after {took:.2f} s"
        )


if __name__ == "__main__":
    main()
