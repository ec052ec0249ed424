"""A registry of all processes that share `PROMETHEUS_MULTIPROC_DIR`; it archives the counts of processes that ended.

Each process keeps its metrics in files that are named by its id.  At every scrape, gauges of processes that have ended
are forgotten, and their counts are added to one archive: the directory does not grow with each pool child that is
replaced, and no count is lost.  Scrapes share a lock that merging holds alone, so that none counts a file twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cacheworkers.core.extras import needs_extra

with needs_extra("metrics"):
    from prometheus_client.core import Metric
    from prometheus_client.mmap_dict import MmapedDict
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
    from prometheus_client.registry import CollectorRegistry


DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
#: Kinds of files whose values add up.
_SUMMED = ("counter", "histogram", "summary")
_ARCHIVE = "archive"
_LOCK = "archive.lock"
#: A file begins with the number of bytes that are used, and a pad.
_HEAD = struct.Struct("i4x")


def make_directory() -> bool:
    """Make the directory of `PROMETHEUS_MULTIPROC_DIR` if it is not there; False if that is not set."""
    if DIRECTORY not in os.environ:
        return False
    Path(os.environ[DIRECTORY]).mkdir(parents=True, exist_ok=True)
    return True


def shared_registry() -> CollectorRegistry | None:
    """Return a registry of all processes that share `PROMETHEUS_MULTIPROC_DIR`; None if it is not set."""
    if not make_directory():
        return None
    shared = CollectorRegistry()
    SharedMetrics(shared, Path(os.environ[DIRECTORY]))
    return shared


class SharedMetrics(MultiProcessCollector):
    """Collects the metrics of all processes that share a directory."""

    def __init__(self, registry: CollectorRegistry, directory: Path) -> None:
        super().__init__(registry, str(directory))  # type: ignore[no-untyped-call]  # the client has no types here
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Return what all processes count together, without what has ended."""
        with _locked(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_alone:
            if is_alone:
                forget_the_dead(self._directory)
        with _locked(self._directory, fcntl.LOCK_SH):
            files = [str(file) for file in sorted(self._directory.glob("*.db")) if _is_whole(file)]
            return list(self.merge(files, accumulate=True))  # type: ignore[no-untyped-call]


def forget_the_dead(directory: Path) -> None:
    """Remove the files of processes that have ended: gauges are forgotten, counts go into the archive."""
    dead: dict[str, list[Path]] = {}
    for file in sorted(directory.glob("*.db")):
        kind, _, owner = file.stem.rpartition("_")
        if owner.isdigit() and not _is_alive(int(owner)):
            dead.setdefault(kind, []).append(file)
            mark_process_dead(int(owner), str(directory))  # type: ignore[no-untyped-call]  # its live gauges
    for kind in _SUMMED:
        if kind in dead:
            _archive(directory, kind, dead[kind])


def _archive(directory: Path, kind: str, files: list[Path]) -> None:
    """Add the values of some files to the archive of their kind, and remove them."""
    archive, new = directory / f"{kind}_{_ARCHIVE}.db", directory / f"{kind}_{_ARCHIVE}.new"
    new.unlink(missing_ok=True)
    sums: Any = MmapedDict(str(new))  # type: ignore[no-untyped-call]
    try:
        for file in [archive, *files]:
            if not _is_whole(file):
                continue
            for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
                sums.write_value(key, sums.read_value(key)[0] + value, timestamp)
    finally:
        sums.close()
    os.replace(new, archive)
    for file in files:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[bool]:
    """Hold the directory's lock; give False where another holds it, or the directory cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(stack.enter_context(open(directory / _LOCK, "a")), how)
            is_held = True
        except (BlockingIOError, PermissionError):
            is_held = False
        yield is_held


def _is_whole(file: Path) -> bool:
    """Return whether a file is there, and as long as it says.

    One that is just being made is empty; a full disk and a process that is killed leave others cut short.  One of them
    would fail every scrape.
    """
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        head = opened.read(_HEAD.size)
        return len(head) == _HEAD.size and _HEAD.size < _HEAD.unpack(head)[0] <= os.fstat(opened.fileno()).st_size
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
