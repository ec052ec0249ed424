"""Requests to replay: recorded traces where they are at hand, else a seeded Zipf."""

from __future__ import annotations

import array
import itertools
import lzma
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Names a directory with recorded traces, which `--trace` names one by one.
VARIABLE = "TRACES"
SUFFIXES = (".trace.xz", ".longs.xz")


@dataclass(slots=True)
class Trace:
    """Keys in the order in which they were asked for.

    Attributes:
        counts: key -> how often.
    """

    name: str
    keys: Sequence[int]
    counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.counts = Counter(self.keys)

    def hottest(self, most: int) -> list[int]:
        """Return the keys that are asked for most."""
        return [key for key, _ in self.counts.most_common(most)]


def read_trace(path: Path, *, longs: bool = False) -> Sequence[int]:
    """Return the keys of a trace file: xz of 4-byte big-endian integers, or of 8-byte ones."""
    keys = array.array("q" if longs else "i")
    keys.frombytes(lzma.decompress(path.read_bytes()))
    if sys.byteorder == "little":
        keys.byteswap()
    return keys


def zipf(requests: int, keys: int, *, skew: float = 0.9, seed: int = 7) -> Sequence[int]:
    """Return a made-up trace: popularity falls as rank to the power of `-skew`; the same seed gives the same trace."""
    weights = list(itertools.accumulate((rank + 1) ** -skew for rank in range(keys)))
    return random.Random(seed).choices(range(keys), cum_weights=weights, k=requests)


def found(paths: Sequence[Path] | None) -> list[Path]:
    """Return the traces that were named, or else those in the directory that `TRACES` names, the small ones first."""
    directory = os.environ.get(VARIABLE)
    if paths or not directory:
        return list(paths or ())
    there = [path for path in Path(directory).glob("*.xz") if path.name.endswith(SUFFIXES)]
    return sorted(there, key=lambda path: path.stat().st_size)


def named(path: Path) -> Trace:
    """Return the trace of a file; `.longs.xz` has 8-byte keys."""
    return Trace(path.name.split(".")[0], read_trace(path, longs=path.name.endswith(".longs.xz")))
