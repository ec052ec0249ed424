"""Faults, one after the other, under readers and a writer: `python -m benchmarks.faults --faults 200`.

Three reader processes and one writer reach a store through a proxy.  Each fault lasts a moment; then it is healed, and
the time is taken until reads come out of the store again, and until an invalidation is acknowledged again.  What
readers saw and the writer learned is recorded, and the history checker looks for a read that is older than an
acknowledged invalidation: there must be none.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.console import Console

from benchmarks import report
from benchmarks.fault_tools import SteppingValkey, can_drop_packets, can_step_clocks, cut_off
from benchmarks.history import History, Recorder, Stale, check
from benchmarks.snapshot_faults import REPLAY_FOR, SnapshotFaults
from benchmarks.snapshot_faults import started as snapshot_started
from cacheworkers import Cache, CacheworkersError, Config, Load
from cacheworkers.events import Event
from cacheworkers.testing import FaultProxy, Valkey
from cacheworkers.testing.servers import wait_until

KEYS = 20
READERS = 3
L1_FOR = 1.0
#: By how much the clocks of threads that record may differ, seconds.
MARGIN = 0.5
LASTS = 0.3
BACK_WITHIN = 30.0
#: The last: what the servers themselves take of it, where one replaces another; or what the drain's replay takes.
HEADS = (
    "fault",
    "times",
    "reads after, median ms",
    "all after, median ms",
    "most ms",
    "another master after, median ms",
)
REPLAYED = "replayed after, median ms"
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "faults.md"
SHAPES = {
    "standalone": "One server",
    "sentinel": "A master, two replicas and three Sentinels",
    "cluster": "A Cluster of three masters and three replicas",
    "snapshot": "One server that comes back with an older snapshot",
}
TITLE = "# How long faults take to heal"
INTRO = """
`make faults` writes this page.  Each fault lasts for 0.3 s and is then healed, while three processes read and one
writes.  The time is taken from there until the store answers reads of all keys again, and until all works: it
acknowledges an invalidation and keeps a value.  Reads of other processes meanwhile load for themselves, or come from
memory.  The history checker compares all of them with what was acknowledged before they began.  To drop packets takes
root, to step a clock faketime: where these are not there, their faults are left out.

Where another server takes over, the time is taken from the fault itself.  Here Sentinels and Cluster replace a master
after a second of silence: the last column says when another answered that it is the master.  `Config.replicas` has an
invalidation acknowledged once all replicas have it, so that it waits until the old master is one of them: Sentinels
demote one that was frozen or cut off some ten seconds after it goes on.

A snapshot brings back what was invalidated after it, until the running drain has delivered the outbox again; changes go
through a watched session there.  From the server's death until then a read may be as old as the snapshot, from another
process's memory for `l1_for` longer; the last column says how long the replay took, of 30 s of outbox rows and some 40
changes a second.  For these reads the checker leaves out what was acknowledged between snapshot and death, and nothing
else: what was acknowledged before the snapshot holds, and so does what the new server has acknowledged.  After the
replay all holds again.  A lease that the snapshot has, or that a killed process held, ends with `load_for`, here 5 s:
until then who reads its key loads it, and it is not kept.  On a Cluster nothing is replayed.
"""


#: What heals a fault beside the readers, as who supervises servers does; None where it is healed already.
Healing = Callable[[], object] | None


class Took(NamedTuple):
    """Seconds until the store answered reads again, and until it also took invalidations and values."""

    reads: float
    all: float


class Found(NamedTuple):
    """What came of all faults, by kind."""

    took: dict[str, list[Took]]
    stale: list[Stale]
    reads: int
    failed: int
    replaced: dict[str, list[float]]
    of_snapshots: int


def made(url: str, versions: Any, replicas: int = 0, hook: Callable[[Event], None] | None = None) -> tuple[Cache, Any]:
    """Return a cache and a loader that reads the "database": a version for each key."""
    config = Config(
        redis_url=url,
        namespace="faults",
        replicas=replicas,
        store_timeout=0.1,
        breaker_for=0.2,
        l1_for=L1_FOR,
        replay_for=REPLAY_FOR,
    )
    cache = Cache(config, hook=hook)

    @cache.loader(tags=("key:{key}",), fresh_for=60, stale_for=60, wait_for=0.5, load_for=5)
    def version(load: Load, key: int) -> int:
        return int(versions[key])

    return cache, version


def read_on(url: str, versions: Any, stop: Any, path: str, counts: Any, number: int, replicas: int) -> None:
    """Read all keys in turn at some 500 a second, and record what came back.

    Args:
        counts: reads, and how many failed, of each reader by its number.  Nothing shared has a lock: who is killed
            while it holds one leaves all others waiting for it.
    """
    cache, version = made(url, versions, replicas)
    memory, reads = f"reader{os.getpid()}", 0
    with Recorder(path) as recorder:
        while not stop.value:
            key = reads % KEYS
            began = time.monotonic()
            try:
                found = version.read(key)
            except CacheworkersError:
                counts[2 * number + 1] += 1
            else:
                recorder.read(f"key:{key}", found.value, began, tier=found.tier, by=f"version[{key}]", memory=memory)
            reads += 1
            counts[2 * number] = reads
            time.sleep(0.002)
    cache.close()


def write_on(cache: Cache, versions: Any, stop: threading.Event, path: str) -> None:
    """Change a key, and invalidate it until that is acknowledged, as the relay of an outbox does."""
    chance = random.Random(2)
    with Recorder(path) as recorder:
        while not stop.wait(0.02):
            key = chance.randrange(KEYS)
            began = time.monotonic()
            versions[key] += 1
            number = int(versions[key])
            recorder.wrote(f"key:{key}", number, began)
            while not stop.is_set():
                began = time.monotonic()
                try:
                    cache.invalidate(f"key:{key}")
                except CacheworkersError:
                    time.sleep(0.05)
                else:
                    recorder.invalidated(f"key:{key}", began, version=number)
                    break


@contextlib.contextmanager
def configured(store: Valkey, changes: dict[str, str], normal: dict[str, str]) -> Iterator[None]:
    """Set something of the server, and set it back."""
    with redis.Redis(port=store.port) as client:
        for name, value in changes.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in normal.items():
                client.config_set(name, value)


class Faults:
    """A server behind a proxy.  Each method is one kind of fault: it breaks something, waits, and heals it."""

    replicas = 0
    replaced: ClassVar[dict[str, list[float]]] = {}

    def __init__(self, store: Valkey, proxy: FaultProxy) -> None:
        self._store = store
        self._seconds = 30
        self._proxy = proxy
        self.url = proxy.url
        self.kinds: dict[str, Callable[[], Healing]] = {
            "store killed, back empty": self.kill,
            "store frozen": self.freeze,
            "store emptied": lambda: self.run("FLUSHALL"),
            "store full": self.fill,
            "store read-only": self.read_only,
            "store denies writes": self.deny,
            "store busy with a script": self.busy,
            "store kills all connections": lambda: self.run("CLIENT", "KILL", "TYPE", "normal"),
            "connections cut": proxy.cut,
            "replies held back": self.hold,
            "replies late by 30 ms": self.delay,
            "tracking connections cut": self.run_kill_tracking,
        }
        if isinstance(store, SteppingValkey):
            self.kinds["store killed, back with its data"] = lambda: self.kill(is_empty=False)
            if can_step_clocks():
                self.kinds["the store's clock steps"] = lambda: self.step(store)
        if can_drop_packets():
            self.kinds["store cut off"] = self.cut_off

    def run(self, *words: Any) -> None:
        """Run a command on the server itself."""
        with redis.Redis(port=self._store.port) as client:
            client.execute_command(*words)

    def kill(self, *, is_empty: bool = True) -> None:
        """Kill the server, and start it again."""
        self._store.kill()
        if is_empty and isinstance(self._store, SteppingValkey):
            self._store.delete_entries()
        time.sleep(LASTS)
        self._store.start()

    def step(self, store: SteppingValkey) -> None:
        """Set the server's clock half a minute ahead or back, and right again."""
        self._seconds = -self._seconds
        store.step(self._seconds)
        time.sleep(LASTS)
        store.step(0)

    def cut_off(self) -> None:
        """Drop all packets to the server and from there."""
        with cut_off([self._store.port]):
            time.sleep(LASTS)

    def freeze(self) -> None:
        """Stop the server's process for a moment."""
        self._store.pause()
        time.sleep(LASTS)
        self._store.resume()

    def fill(self) -> None:
        """Leave no room, and evict nothing."""
        with configured(self._store, {"maxmemory": "1"}, {"maxmemory": "0"}):
            time.sleep(LASTS)

    def read_only(self) -> None:
        """Have the server refuse writes as a replica does, as after a failover that its clients have missed."""
        self.run("REPLICAOF", "127.0.0.1", "1")
        time.sleep(LASTS)
        self.run("REPLICAOF", "NO", "ONE")

    def deny(self) -> None:
        """Take the rights to write away."""
        self.run("ACL", "SETUSER", "default", "-set", "-eval", "-evalsha", "-zadd", "-hset")
        time.sleep(LASTS)
        self.run("ACL", "SETUSER", "default", "+@all")

    def busy(self) -> None:
        """Keep the server busy with a script for longer than it bears quietly."""
        never = Retry(NoBackoff(), 0)
        with (
            contextlib.suppress(redis.RedisError),
            redis.Redis(port=self._store.port, socket_timeout=LASTS, retry=never) as one,
        ):
            one.eval("while true do end", 0)
        with contextlib.suppress(redis.ResponseError):  # it has ended already
            self.run("SCRIPT", "KILL")
        wait_until(self._store.is_ready)

    def hold(self) -> None:
        """Keep replies back, and deliver them late."""
        self._proxy.hold_replies()
        time.sleep(LASTS)
        self._proxy.release()

    def delay(self) -> None:
        """Have every reply come later for a while."""
        self._proxy.delay = 0.03
        time.sleep(LASTS)
        self._proxy.delay = 0.0

    def run_kill_tracking(self) -> None:
        """Cut those connections that bring invalidation messages."""
        with redis.Redis(port=self._store.port) as client:
            for each in client.client_list():
                if "t" in each["flags"] and int(each["id"]) != client.client_id():
                    with contextlib.suppress(redis.ResponseError):
                        client.client_kill_filter(_id=each["id"])


@contextlib.contextmanager
def started(shape: str) -> Iterator[Any]:
    """Start a store, and yield its faults: `url`, `replicas` and `kinds`."""
    if shape == "standalone":
        with SteppingValkey(busy_reply_threshold="50") as store, FaultProxy(store.url) as proxy:
            yield Faults(store, proxy)
        return
    if shape == "snapshot":
        with snapshot_started(lambda url, versions, hook=None: made(url, versions, hook=hook)[0], KEYS) as faults:
            yield faults
        return
    from benchmarks.replicated_faults import ReplicatedFaults, deployed

    with deployed(shape) as deployment, ReplicatedFaults(deployment) as replicated:
        yield replicated


def run(faults: int, seed: int = 1, shape: str = "standalone") -> Found:
    """Inject a number of faults, of each kind in turn in a shuffled order."""
    context = multiprocessing.get_context("spawn")
    versions, counts = context.Array("q", KEYS, lock=False), context.Array("q", 2 * (READERS + faults), lock=False)
    stop, done = context.Value("b", 0, lock=False), threading.Event()
    with started(shape) as store, _directory() as directory:
        readers: list[Any] = []
        numbers = itertools.count()
        if isinstance(store, SnapshotFaults):
            versions = store.versions

        def start_a_reader() -> None:
            number = next(numbers)
            path = str(directory / f"reads{number}")
            words = (store.url, versions, stop, path, counts, number, store.replicas)
            process = context.Process(target=read_on, args=words)
            process.start()
            readers.append(process)

        def kill_a_reader() -> None:
            process = readers.pop(0)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            start_a_reader()

        for _ in range(READERS):
            start_a_reader()
        cache, _ = made(store.url, versions, store.replicas)
        probe, probed = made(store.url, versions, store.replicas)
        path = str(directory / "writes")
        writer = threading.Thread(target=write_on, args=(cache, versions, done, path))
        if isinstance(store, SnapshotFaults):
            writer = threading.Thread(target=store.write_on, args=(done, path))
        writer.start()
        kinds = {**store.kinds, "a reader process killed": kill_a_reader}
        order = [kind for _ in range(-(-faults // len(kinds))) for kind in kinds][:faults]
        random.Random(seed).shuffle(order)
        took: dict[str, list[Took]] = collections.defaultdict(list)
        try:
            with report.progress() as bar:
                task = bar.add_task("faults", total=len(order))
                for kind in order:
                    bar.update(task, description=kind)
                    heal = kinds[kind]()
                    with concurrent.futures.ThreadPoolExecutor(1) as supervisor:
                        healed = supervisor.submit(heal or bool)
                        took[kind].append(_back_after(probe, probed))
                    healed.result()
                    bar.advance(task)
        finally:
            done.set()
            stop.value = 1
            for process in readers:
                process.join()
            writer.join()
            cache.close()
            probe.close()
        history = History(sorted(directory.iterdir()))
        if isinstance(store, SnapshotFaults):
            stale = store.check(list(history), l1_for=L1_FOR + MARGIN)
        else:
            stale = check(history, l1_for=L1_FOR + MARGIN)
    of_snapshots = store.of_snapshots if isinstance(store, SnapshotFaults) else 0
    return Found(dict(took), stale, sum(counts[::2]), sum(counts[1::2]), store.replaced, of_snapshots)


def _back_after(cache: Cache, version: Any) -> Took:
    """Return how long it takes until the store answers reads of all keys, and until all works."""
    began, reads_after = time.monotonic(), None
    while time.monotonic() < began + BACK_WITHIN:
        try:
            for key in range(KEYS):
                version.peek(key)
            reads_after = reads_after or time.monotonic() - began
            cache.invalidate("key:0")
            version.get(0)
            if version.peek(0) is not None:
                return Took(reads_after, time.monotonic() - began)
        except CacheworkersError:
            pass
        time.sleep(0.002)
    raise AssertionError(f"the store is of no use {BACK_WITHIN:g} s after the fault was healed")


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def table_of(found: Found, shape: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table's heads and rows."""
    rows = [
        (
            kind,
            str(len(took)),
            _median([each.reads for each in took]),
            _median([each.all for each in took]),
            f"{max(each.all for each in took) * 1e3:,.0f}",
            _median(found.replaced.get(kind, [])),
        )
        for kind, took in sorted(found.took.items())
    ]
    heads = (*HEADS[:-1], REPLAYED) if shape == "snapshot" else HEADS
    width = len(heads) if found.replaced else len(heads) - 1
    return heads[:width], [row[:width] for row in rows]


def _median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:,.0f}" if seconds else ""


def main() -> int:
    """Inject, and print a table for each shape; 1 if a read was too old."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="for each shape")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["standalone"])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    sections, stale = [f"{TITLE}\n{INTRO}"], []
    for shape in options.shapes:
        found = run(options.faults, options.seed, shape)
        title = f"{options.faults} faults, {found.reads:,} reads, {found.failed:,} failed, {len(found.stale)} too old"
        if shape == "snapshot":
            title += f"; {found.of_snapshots:,} as old as the snapshot before the replay had ended"
        heads, rows = table_of(found, shape)
        Console(width=120).print(report.table(f"{shape}: {title}", heads, rows))
        sections.append(f"## {SHAPES[shape]}\n\n{title}.\n\n{report.markdown(heads, rows)}")
        for each in found.stale[:10]:
            print(each)
        stale += found.stale
    if options.write:
        PAGE.write_text("\n".join(sections))
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
