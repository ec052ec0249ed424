"""How much of a trace this library's L1 answers, by its size: `python -m benchmarks.l1_sizes [--trace FILE ...]`.

Replayed are a seeded Zipf and recorded traces (`--trace`, or all of a directory that the variable TRACES names),
through `L1` itself, with nothing invalidated and nothing expired: what is missed is missed for want of room, or read
for the first time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.l1_policies import this_l1
from benchmarks.report import markdown, progress
from benchmarks.traces import Trace, found, named, zipf
from cacheworkers import Config

SIZES = (100, 300, 1000, 3000, Config().l1_entries, 30_000, 100_000)
HEADS = ("trace", "entries kept", "share of keys", "hit ratio", "of the ideal", "CPU us a read")


class Hits(NamedTuple):
    """Hits of an L1 of this size; `us` of CPU a read."""

    trace: str
    size: int
    room: float
    ratio: float
    of_ideal: float
    us: float


def measured(trace: Trace, sizes: Sequence[int]) -> list[Hits]:
    """Return the hits by size; the last is the first that has room for everything."""
    reads, distinct = len(trace.keys), len(trace.counts)
    ideal = 1 - distinct / reads
    rows: list[Hits] = []
    with progress() as bar:
        for size in bar.track(sizes, description=trace.name):
            began = time.process_time()
            ratio = this_l1(trace.keys, size) / reads
            each = (time.process_time() - began) / reads * 1e6
            rows.append(Hits(trace.name, size, min(size / distinct, 1.0), ratio, ratio / ideal, each))
            if size >= distinct:
                break
    return rows


def cells(hits: Hits) -> tuple[str, ...]:
    """Return a row of the table."""
    ratios = (f"{hits.ratio:.3f}", f"{hits.of_ideal:.3f}", f"{hits.us:.2f}")
    return (hits.trace, f"{hits.size:,}", f"{hits.room:.1%}", *ratios)


def main() -> None:
    """Replay, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trace", type=Path, nargs="+", help="recorded traces; or the variable TRACES names their directory"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--quick", action="store_true", help="the Zipf only")
    options = parser.parse_args()
    traces = [Trace("Zipf 0.9", zipf(500_000, 50_000))]
    if not options.quick:
        traces += [named(path) for path in found(options.trace)]
    print(markdown(HEADS, [cells(hits) for trace in traces for hits in measured(trace, sorted(options.sizes))]))


if __name__ == "__main__":
    main()
