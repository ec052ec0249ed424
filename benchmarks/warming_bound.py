"""The best that any rule of warming can do on the simulation's requests: `python -m benchmarks.warming_bound`.

A read is stale where its key was read in the period before and nobody has loaded the key since: warming avoids it by
one load for each period that would have brought no read.  A rule chooses the periods to warm by what it knows.  For
each kind of knowledge this prints the fewest stale reads of hot keys at 1.1 times the loads, and the fewest loads at
which 0.1 % of those reads are stale.  The rules are given the true odds of each thing that they can know, on this very
trace, and reads that no warming could help are not counted.  So it is optimistic, and in one more way: all periods of
a key are counted from its first read, and a load ahead whose entry is read costs nothing.  In truth a key that is not
warmed is loaded by the first read after its entry's end, later than warming does: each load ahead costs a part of one.
"""

from __future__ import annotations

import argparse
import collections
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.simulation import Scene, title_of, traces

MOST_LOADS, MOST_STALE = 1.1, 0.001
HEADS = ("what the rule knows", "stale % of hot at 1.1 x loads", "x loads for 0.1 % stale")


class Past(NamedTuple):
    """What a rule may look at when it decides about one period of one key.

    Attributes:
        last: reads in the period before.
        recent, usual: reads that count half after two and after eight periods.
        age: periods since the first read.
    """

    key: int
    last: int
    recent: float
    usual: float
    age: int


#: What a rule knows -> the cell of a past: it decides alike about all that are in one cell.
KNOWLEDGE: dict[str, Callable[[Past], Hashable]] = {
    "the future": lambda past: (past.key, past.age),
    "which keys are hot": lambda past: past.key,
    "a count that halves in two periods": lambda past: _size(past.recent),
    "last reads, two counts that halve, age": lambda past: (
        min(past.last, 8),
        _size(past.recent),
        _size(past.usual),
        min(int(math.log2(past.age)), 5),
    ),
}


class Bound(NamedTuple):
    """The best of one kind of rule.

    Attributes:
        stale: the least share of stale reads of hot keys within `MOST_LOADS` times the loads.
        loads: the fewest times the loads without warming with at most `MOST_STALE` stale reads of hot keys.
    """

    stale: float
    loads: float


def bounds(times: dict[int, Sequence[float]], hot: frozenset[int], fresh_for: float) -> dict[str, Bound]:
    """Return the best of each kind of rule.

    Args:
        times: when each key is read, in order.
    """
    end = max(each[-1] for each in times.values())
    cells: dict[str, dict[Hashable, list[int]]] = {name: {} for name in KNOWLEDGE}  # -> loads in vain, stale reads
    without = stale = 0
    for key, read_at in times.items():
        reads = collections.Counter(int((at - read_at[0]) / fresh_for) for at in read_at)
        without += len(reads)
        recent = usual = float(reads[0])
        for age in range(1, int((end - read_at[0]) / fresh_for) + 1):
            past = Past(key, reads.get(age - 1, 0), recent, usual, age)
            is_read = age in reads
            is_stale = is_read and past.last > 0 and key in hot
            stale += is_stale
            for name, cell_of in KNOWLEDGE.items():
                cell = cells[name].setdefault(cell_of(past), [0, 0])
                cell[0] += not is_read
                cell[1] += is_stale
            recent = recent * 0.5 ** (1 / 2) + reads.get(age, 0)
            usual = usual * 0.5 ** (1 / 8) + reads.get(age, 0)
    hot_reads = sum(len(times[key]) for key in hot)
    return {name: _best(list(those.values()), without, stale, hot_reads) for name, those in cells.items()}


def _best(cells: list[list[int]], without: int, stale: int, hot_reads: int) -> Bound:
    """Warm the cells in the order of their price, each as far as it takes."""
    in_vain, least, loads = 0.0, stale / hot_reads, 1.0
    room, allowed = (MOST_LOADS - 1.0) * without, MOST_STALE * hot_reads
    left = float(stale)
    for price, saved in sorted((cell for cell in cells if cell[1]), key=lambda cell: cell[0] / cell[1]):
        if left > allowed:
            loads = 1.0 + (in_vain + price * min(1.0, (left - allowed) / saved)) / without
        if in_vain <= room:
            affordable = min(1.0, (room - in_vain) / price) if price else 1.0
            least = (left - saved * affordable) / hot_reads
        in_vain += price
        left -= saved
    return Bound(least, loads)


def _size(count: float) -> int:
    """Return the order of magnitude of a count, in steps of about 1.4."""
    return round(2 * math.log2(1 + count))


def bounds_of(scene: Scene) -> dict[str, Bound]:
    """Return the best of each kind of rule for what the simulation replays."""
    times: dict[int, list[float]] = {}
    for at, _, key in scene.arrivals():
        times.setdefault(key, []).append(at)
    hot = scene.trace.hottest(scene.hot or max(1, len(scene.trace.counts) // 100))
    return bounds(dict(times), frozenset(hot), scene.fresh_for)


def main() -> None:
    """Print one table a trace and period."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, nargs="+", help="as for the simulation")
    parser.add_argument("--only", nargs="+", help="names of traces")
    parser.add_argument("--fresh-for", type=float, nargs="+", default=[300.0, 60.0])
    options = parser.parse_args()
    for trace in traces(options.trace, is_quick=False):
        if options.only and trace.name not in options.only:
            continue
        for fresh_for in options.fresh_for:
            scene = Scene(trace, fresh_for, 60.0)
            rows = [(name, f"{100 * one.stale:.2f}", f"{one.loads:.2f}") for name, one in bounds_of(scene).items()]
            print(f"**{title_of(scene)}**\n\n{report.markdown(HEADS, rows)}")


if __name__ == "__main__":
    main()
