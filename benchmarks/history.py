"""Records reads and invalidations, and checks which reads were older than an invalidation acknowledged before.

A key is a register whose writes are numbered in the order of their commits: a version that rises.  Then no search for
a fitting order is needed.  Deciding whether reads and writes of a register are linearizable (M. Herlihy, J. Wing:
Linearizability, ACM TOPLAS 12(3), 1990) is NP-complete in general, and takes sorting where it is known who wrote
first and what each read returns (P. Gibbons, E. Korach: Testing Shared Memories, SIAM J. Computing 26(4), 1997).

Only what a cache promises is checked: a read may be old until an invalidation that covers the write has been
acknowledged, before the read began.  Of two instants that overlap or are equal either may have been first: then
nothing is found.  L1 of another process may be late until it has received the invalidation, and at most `l1_for`.

A history is a file of JSON lines in any order, several files are one history:

    {"op": "write", "key": "price:3", "version": 7, "began": 1.10, "ended": 1.15}
    {"op": "invalidate", "key": "price:3", "began": 1.16, "ended": 1.18}
    {"op": "read", "key": "price:3", "version": 6, "began": 1.19, "ended": 1.20, "tier": "store", "by": "price[3]"}
    {"op": "receive", "memory": "web1", "began": 1.21, "ended": 1.22}

`began` and `ended` are seconds of one clock for all processes; `ended` is null, or left out, for what has no known
end.  A write has ended when its commit returned; an invalidation covers all writes of its key that had ended before
it began, and its own `version`, if it names one.  At its end a `receive` has brought one process's L1 all that had been
acknowledged when it began.  A read from tier "l1" names its `memory`; of many reads in a row that returned the same
from there, the last may stand for all, with their `count`.  `tier`, but for "l1", and `by` are free text.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

_Number = TypeVar("_Number", int, float)


class HistoryError(ValueError):
    """A line of a history is malformed; the message names file, line and rule."""


class Write(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="write"):
    """A change of a key to `version`; versions rise in the order of the commits."""

    key: str
    version: int
    began: float
    ended: float | None = None


class Invalidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="invalidate"):
    """An invalidation of a key, acknowledged at `ended`; `version` is what its caller knows to have committed."""

    key: str
    began: float
    ended: float | None = None
    version: int | None = None


class Read(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="read"):
    """A read of a key that returned `version`."""

    key: str
    version: int
    began: float
    ended: float | None = None
    tier: str = ""
    by: str = ""
    memory: str = ""
    count: int = 1


class Received(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="receive"):
    """A process's L1 had received, at `ended`, everything that was acknowledged before `began`."""

    memory: str
    began: float
    ended: float | None = None


Operation = Write | Invalidate | Read | Received


class Stale(msgspec.Struct, frozen=True):
    """A read that is older than an invalidation acknowledged before it began.

    Attributes:
        least: the version that it had to return at least.
        late: seconds from the first acknowledgement that it missed to its beginning.
    """

    read: Read
    least: int
    late: float

    def __str__(self) -> str:
        who = f" by {self.read.by}" if self.read.by else ""
        where = f" from {self.read.tier}" if self.read.tier else ""
        return (
            f"{self.read.key} read{who}{where} at {self.read.began:.6f} is version {self.read.version}, "
            f"{self.least} was acknowledged; {self.late:.6f} s late"
        )


def check(history: Iterable[Operation], *, l1_for: float = 0.0) -> list[Stale]:
    """Return every read that is older than an invalidation acknowledged before it began, in the history's order.

    Args:
        history: in any order; gone through twice, so that a `History` of files need not fit into memory.
        l1_for: seconds by which a read from tier "l1" may be late, for what its memory had not received before.
    """
    if isinstance(history, Iterator):
        history = list(history)
    promises, received = _promises(history), _received(history)
    found = []
    for read in history:
        if isinstance(read, Read) and read.key in promises:
            known_at = read.began
            if read.tier == "l1" and l1_for:
                known_at = max(known_at - l1_for, _last_before(received.get(read.memory, ()), read.began) or 0.0)
            stale = promises[read.key].broken_by(read, known_at)
            if stale is not None:
                found.append(stale)
    return found


class _Promises:
    """What the acknowledged invalidations of one key promise: from each instant on, at least a version."""

    def __init__(self, writes: list[Write], invalidations: list[Invalidate]) -> None:
        committed = _rising((w.ended, w.version) for w in writes if w.ended is not None)
        acknowledged = []
        for each in invalidations:
            if each.ended is None:
                continue
            covered = _last_before(committed, each.began)
            versions = [version for version in (covered, each.version) if version is not None]
            if versions:
                acknowledged.append((each.ended, max(versions)))
        self._acknowledged = _rising(acknowledged)

    def broken_by(self, read: Read, known_at: float) -> Stale | None:
        """Return how a read breaks them that must know what was acknowledged before an instant; None if it does not."""
        least = _last_before(self._acknowledged, known_at)
        if least is None or read.version >= least:
            return None
        first = bisect_right(self._acknowledged, read.version, key=lambda each: each[1])
        return Stale(read, least, read.began - self._acknowledged[first][0])


def _promises(history: Iterable[Operation]) -> dict[str, _Promises]:
    writes: dict[str, list[Write]] = {}
    invalidations: dict[str, list[Invalidate]] = {}
    for each in history:
        if isinstance(each, Write):
            writes.setdefault(each.key, []).append(each)
        elif isinstance(each, Invalidate):
            invalidations.setdefault(each.key, []).append(each)
    return {key: _Promises(writes.get(key, []), mine) for key, mine in invalidations.items()}


def _received(history: Iterable[Operation]) -> dict[str, list[tuple[float, float]]]:
    """Return memory -> (instant, until when it had received everything)."""
    received: dict[str, list[tuple[float, float]]] = {}
    for each in history:
        if isinstance(each, Received) and each.ended is not None:
            received.setdefault(each.memory, []).append((each.ended, each.began))
    return {memory: _rising(proofs) for memory, proofs in received.items()}


def _rising(versions: Iterable[tuple[float, _Number]]) -> list[tuple[float, _Number]]:
    """Return (instant, largest version up to then), by instant."""
    found: list[tuple[float, _Number]] = []
    for at, version in sorted(versions):
        if not found or version > found[-1][1]:
            found.append((at, version))
    return found


def _last_before(rising: Sequence[tuple[float, _Number]], instant: float) -> _Number | None:
    """Return the version of the last that is before an instant; equal instants are not."""
    at = bisect_left(rising, instant, key=lambda each: each[0])
    return rising[at - 1][1] if at else None


class History:
    """The operations in some files, read again at each iteration."""

    def __init__(self, paths: Iterable[Path | str]) -> None:
        self._paths = [Path(path) for path in paths]

    def __iter__(self) -> Iterator[Operation]:
        """Yield every operation.

        Raises:
            HistoryError: a line is malformed, other than one cut short.
            OSError: a file cannot be read.
        """
        for path in self._paths:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    try:
                        yield _parsed(line)
                    except (msgspec.DecodeError, ValueError) as error:
                        if line.startswith(b"{") and not line.rstrip().endswith(b"}"):
                            continue  # its process was killed while it wrote this, and reported it to nobody
                        raise HistoryError(f"{path}:{number}: {error}") from None


def _parsed(line: bytes) -> Operation:
    operation = _decoder.decode(line)
    if operation.ended is not None and operation.ended < operation.began:
        raise ValueError(f"ended must be >= began, got {operation.ended!r} after {operation.began!r}")
    return operation


_decoder: msgspec.json.Decoder[Operation] = msgspec.json.Decoder(Operation)
_encoder = msgspec.json.Encoder()


class Recorder:
    """Appends what happens to a file; any number of threads and processes may append to one, or to one each.

    Each operation is one write to a file opened for appending, a line between two ends of lines: of what a process was
    writing when it was killed a part may be there, and spoils no other line.  What was not recorded promises nothing.
    Instants are `time.monotonic()`, which all processes of one machine share.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def read(
        self,
        key: str,
        version: int,
        began: float,
        *,
        tier: str = "",
        by: str = "",
        memory: str = "",
        count: int = 1,
    ) -> None:
        """Record a read that has just returned, or the last of `count` in a row that returned the same from L1."""
        self._append(Read(key, version, began, time.monotonic(), tier, by, memory, count))

    def received(self, memory: str, began: float) -> None:
        """Record that L1 of this process has just received everything that had been acknowledged when this began."""
        self._append(Received(memory, began, time.monotonic()))

    def wrote(self, key: str, version: int, began: float) -> None:
        """Record a change whose commit has just returned."""
        self._append(Write(key, version, began, time.monotonic()))

    def invalidated(self, key: str, began: float, *, version: int | None = None) -> None:
        """Record an invalidation that has just returned."""
        self._append(Invalidate(key, began, time.monotonic(), version))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _append(self, operation: Operation) -> None:
        os.write(self._file, b"\n" + _encoder.encode(operation) + b"\n")
