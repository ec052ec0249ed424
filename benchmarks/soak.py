"""Everything dies all the time, and no read is older than an acknowledged change: `python -m benchmarks.soak`.

Readers, writers, workers, drains and a garbage collector are processes of their own.  All but readers are killed with
-9, at random and in exact windows (`DIES_BEFORE`): writers between commit and invalidation, and half-way through it;
drains likewise, and before they mark what they have delivered; workers between any two steps of a load; the garbage
collector within what it finishes for the dead.  The store is frozen, entries and leases are deleted, loads outlast
their leases.  What does not die goes wrong in part: the store has no room, denies writes, is read-only or busy with a
script; half of the processes get its replies late, all together or never; loads fail, batches have bad keys, a rate
limit leaves no turn.  A change is acknowledged when the commit of its watched session has returned.
Readers and writers record what they did;
at the end each read is compared with what was acknowledged before it began (`benchmarks.history`; `--keep
DIR` leaves the files), and once the drain is through, every entry must be what the
database says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import Faults
from benchmarks.history import History, Recorder, check
from benchmarks.soakdeaths import counted, environment
from benchmarks.stack import ROOT
from cacheworkers.errors import CacheworkersError, LoadError, LoadErrors
from cacheworkers.testing import FaultProxy, Postgres, Valkey
from cacheworkers.testing.servers import end_with_parent, wait_until

PRICES, READERS, WRITERS = 40, 4, 2
WORKER = [sys.executable, "-m", "celery", "-A", "benchmarks.soakshop", "worker", "-c", "2", "-l", "ERROR"]
WORKER += ["-Q", "cw.miss,cw.revalidate,cw.warm,cw.upkeep", "--without-mingle", "--without-gossip"]
DRAIN = [sys.executable, "-c", "from benchmarks.soak import drain; drain()"]
COLLECT = [sys.executable, "-c", "from benchmarks.soak import collect; collect()"]
#: What goes wrong in part, by its name in `benchmarks.faults`.
PARTIAL = (
    "store full", "store read-only", "store denies writes", "store busy with a script", "store kills all connections",
    "connections cut", "replies held back", "replies late by 30 ms", "tracking connections cut",
)  # fmt: skip
#: Longest that a read may take, seconds: it waits for a worker, loads itself, perhaps for longer than a lease, and asks
#: a store that does not answer; a machine that is busy with all of this adds to it.
BOUND = 10.0
#: Who dies how often right before which step.
DIES_BEFORE = {
    "writer": {"next_seq": 0.005, "detach": 0.001, "drop": 0.001, "remove_drained": 0.001},
    "drain": {"next_seq": 0.05, "detach": 0.05, "drop": 0.05, "remove_drained": 0.05, "mark": 0.1},
    "worker": {"begin": 0.001, "snapshot": 0.001, "register": 0.001, "write": 0.001},
    "collector": {"drop": 0.05, "remove_drained": 0.05, "trim_tag": 0.001},
}


@dataclass
class Report:
    """What happened.

    Attributes:
        reads: by loader and tier; failed: by error.
        acts: what was done from outside; deaths: who died before which step.
        old: reads through the store older than an acknowledged change, as evidence.
        lag: of each L1 read that was older, how long before it the change was acknowledged, seconds.
        slowest: the longest read, seconds; late: how many took longer than BOUND.
        unequal: entries that are not what the database says, at the end.
    """

    reads: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    writes: int = 0
    old: list[str] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    slowest: float = 0.0
    late: int = 0
    unequal: list[str] = field(default_factory=list)


class Shared:
    """What all processes see; each number has one writer, so that nobody holds a lock when it is killed."""

    def __init__(self, context: Any) -> None:
        self.version = context.Array("q", PRICES + 1, lock=False)
        self.reads = context.Array("q", READERS, lock=False)
        self.stop_reading = context.Event()
        self.stop_writing = context.Value("b", 0, lock=False)


def read(number: int, shared: Shared, results: Any, histories: Path) -> None:
    """Read for ever, and record it; every second process through the proxy."""
    if number % 2:
        os.environ["REDIS_URL"] = os.environ["PROXY_URL"]
    from benchmarks import soakshop as shop

    report = Report()
    recorder = Recorder(histories / f"reader{number}.jsonl")
    chance = random.Random(number)

    async def values(kind: float, key: int) -> tuple[str, str, dict[Any, int]]:
        """Read something; the loader's name, where it came from, and the versions of prices."""
        if kind < 0.1:
            total = await shop.total.aread(key % shop.GROUPS)
            return "total", total.tier, total.value
        if kind < 0.2:
            keys = [key, *(chance.randrange(1, PRICES + 3) for _ in range(3))]
            try:
                return "several", "store", await shop.several.aget_many(keys)
            except LoadErrors as error:
                report.failed.update(type(each).__name__ for each in error.errors.values())
                return "several", "store", dict(error.values)
        loader = shop.near if kind < 0.5 else shop.limited if kind < 0.6 else shop.strict
        found = await loader.aread(key)
        return loader.name, found.tier, {key: found.value}

    async def one() -> None:
        while not shared.stop_reading.is_set():
            kind, key = chance.random(), chance.randrange(1, PRICES + 1)
            began = time.monotonic()
            try:
                name, tier, versions = await values(kind, key)
            except Exception as error:
                report.failed[type(error).__name__] += 1
                await asyncio.sleep(0.001)
                continue
            finally:
                took = time.monotonic() - began
                report.slowest = max(report.slowest, took)
                report.late += took > BOUND
            for each, version in versions.items():
                recorder.read(f"price:{each}", version, began, tier=tier, by=f"{name}[{key}]")
            shared.reads[number] += 1
            report.reads[f"{name} {tier}"] += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(8)))

    asyncio.run(all_of_them())
    results.put(report)


def write(number: int, shared: Shared, rate: float, histories: Path) -> None:
    """Raise prices of one's own share, for ever."""
    os.environ.update(environment("writer", DIES_BEFORE["writer"], histories))
    if number % 2:
        os.environ["REDIS_URL"] = os.environ["PROXY_URL"]
    from benchmarks.soakshop import Price, sessions, undelivered

    chance = random.Random()
    recorder = Recorder(histories / f"writer{number}.jsonl")
    mine = [n for n in range(1, PRICES + 1) if n % WRITERS == number]
    while not shared.stop_writing.value:
        key = chance.choice(mine)
        version = shared.version[key] = shared.version[key] + 1
        before = len(undelivered)
        began = time.monotonic()
        try:
            with sessions.begin() as session:
                session.get_one(Price, key).amount = version
        except Exception as error:
            print(f"writer: {error}", file=sys.stderr)
            continue
        if len(undelivered) == before:
            recorder.invalidated(f"price:{key}", began, version=version)
        time.sleep(chance.expovariate(rate))


def drain() -> None:
    """Deliver what dead writers have left, for ever."""
    from benchmarks.soakshop import cache, deaths

    mark = cache.outbox.delivered

    def die_or_mark(*args: Any) -> None:
        deaths.before("mark")
        mark(*args)

    cache.outbox.delivered = die_or_mark  # type: ignore[assignment, method-assign]  # as only a process of its own can be treated
    cache.drain_until(threading.Event())


def collect() -> None:
    """Collect garbage, for ever."""
    from benchmarks.soakshop import cache

    while True:
        with contextlib.suppress(CacheworkersError):
            cache.collect_garbage()
        time.sleep(0.5)


class Chaos:
    """Starts what dies, and kills it."""

    def __init__(
        self, context: Any, shared: Shared, valkey: Valkey, proxy: FaultProxy, where: Path, rate: float, report: Report
    ) -> None:
        self.context, self.shared, self.valkey, self.where, self.rate = context, shared, valkey, where, rate
        self.report = report
        self.faults = Faults(valkey, proxy).kinds
        self.is_over = False
        self.others = {"worker": [WORKER] * 2, "drain": [DRAIN] * 2, "collector": [COLLECT]}
        self.running = {who: [self._spawn(who, words) for words in each] for who, each in self.others.items()}
        self.writers = [self._writer(n) for n in range(WRITERS)]

    def act(self) -> None:
        """Do one bad thing."""
        import redis

        self.revive()
        deadly = ["worker", "child", "drain", "collector", "writer", "freeze", "evict", "leases", "evict"]
        act = random.choice(deadly if random.random() < 0.5 else PARTIAL)
        self.report.acts[act] += 1
        if act in PARTIAL:
            with contextlib.suppress(redis.RedisError):
                self.faults[act]()
            return
        client = redis.Redis.from_url(self.valkey.url)
        if act in self.running:
            at = random.randrange(len(self.running[act]))
            self._kill(self.running[act][at])
            self.running[act][at] = self._spawn(act, self.others[act][at])
        elif act == "child":
            worker = random.choice(self.running["worker"])
            children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
            for child in children[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        elif act == "writer":
            at = random.randrange(WRITERS)
            self.writers[at].kill()
            self.writers[at].join()
            self.writers[at] = self._writer(at)
        elif act == "freeze":
            self.valkey.pause()
            time.sleep(random.uniform(0.1, 1.0))
            self.valkey.resume()
        else:
            pattern = "cw:e:*" if act == "evict" else "cw:l:*"
            keys = [key for key in client.scan_iter(pattern, count=1000) if random.random() < 0.3]
            if keys:
                client.unlink(*keys)
        client.close()

    def revive(self) -> None:
        """Start again what has killed itself."""
        for at, writer in enumerate(self.writers):
            if not writer.is_alive() and not self.shared.stop_writing.value:
                self.writers[at] = self._writer(at)
        for who, processes in self.running.items():
            for at, each in enumerate(processes):
                if each.poll() is not None:
                    processes[at] = self._spawn(who, self.others[who][at])

    def calm(self) -> None:
        """Let writers end, and drains live: a batch that was never ended may be more than they live through."""
        self.is_over = True
        self.shared.stop_writing.value = 1
        for writer in self.writers:
            writer.join()

    def end(self) -> None:
        """Kill what is left."""
        for process in itertools.chain(*self.running.values()):
            self._kill(process)

    def _writer(self, number: int) -> Any:
        process = self.context.Process(target=write, args=(number, self.shared, self.rate, self.where))
        process.start()
        return process

    def _spawn(self, who: str, words: list[str]) -> subprocess.Popen[bytes]:
        said = os.environ | environment(who, {} if self.is_over else DIES_BEFORE[who], self.where)
        with open(self.where / f"{who}.log", "ab") as log:
            return subprocess.Popen(
                words,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=said,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def soak(operations: int, rate: float = 20.0, act_every: float = 1.0, keep: Path | None = None) -> Report:
    """Run until this number of reads were served, and return what happened.

    Args:
        rate: changes a second, of each writer.
        act_every: seconds between two bad things.
        keep: where the histories are copied to.
    """
    context = multiprocessing.get_context("spawn")
    report = Report()
    with (
        Valkey() as valkey,
        FaultProxy(valkey.url) as proxy,
        Postgres() as postgres,
        tempfile.TemporaryDirectory() as directory,
    ):
        os.environ.update(REDIS_URL=valkey.url, BROKER_URL=valkey.url, PROXY_URL=proxy.url)
        os.environ.update(DATABASE_URL=postgres.create_database("soak"), PYTHONPATH=str(ROOT))
        from benchmarks.soakshop import Base, Price, cache, engine, near, sessions, strict

        Base.metadata.create_all(engine)
        cache.outbox.create(engine)
        with sessions.begin() as session:
            session.add_all(Price(id=n, amount=0) for n in range(1, PRICES + 1))
        shared, results = Shared(context), context.Queue()
        where = Path(directory)
        chaos = Chaos(context, shared, valkey, proxy, where, rate, report)
        readers = [context.Process(target=read, args=(n, shared, results, where)) for n in range(READERS)]
        for reader in readers:
            reader.start()
        try:
            while sum(shared.reads) < operations:
                time.sleep(random.expovariate(1 / act_every))
                chaos.act()
                print(f"\r{sum(shared.reads):,} of {operations:,} reads", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            chaos.calm()
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

                def is_drained() -> bool:
                    chaos.revive()
                    return cache.outbox.waiting(connection) == 0

                wait_until(is_drained, 60)
            shared.stop_reading.set()
            for _ in readers:
                mine = results.get(timeout=60)
                report.reads += mine.reads
                report.failed += mine.failed
                report.slowest = max(report.slowest, mine.slowest)
                report.late += mine.late
            with sessions() as session:
                for price in session.query(Price):
                    for loader in (near, strict):
                        value = _value(loader, price.id)
                        if value != price.amount:
                            report.unequal.append(
                                f"{loader.name}[{price.id}] is {value}, the database has {price.amount}"
                            )
        finally:
            for reader in readers:
                reader.kill()
                reader.join()
            chaos.calm()
            chaos.end()
            cache.close()
            engine.dispose()
        report.writes = sum(shared.version)
        report.deaths = counted(where)
        _compare(where, keep, report)
    return report


def _value(loader: Any, number: int) -> int:
    """Return a price; its load may fail, and is then due again soon."""
    found: list[int] = []

    def is_loaded() -> bool:
        with contextlib.suppress(LoadError):
            found.append(loader.get(number))
        return bool(found)

    wait_until(is_loaded, 60)
    return found[0]


def _compare(where: Path, keep: Path | None, report: Report) -> None:
    files = sorted(where.glob("*.jsonl"))
    for stale in check(History(files)):
        if stale.read.tier == "l1":
            report.lag.append(stale.late)
        else:
            report.old.append(str(stale))
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, keep)


def main() -> None:
    """Soak, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=20.0, help="changes a second, of each writer")
    parser.add_argument("--keep", type=Path, help="directory for what was recorded")
    options = parser.parse_args()
    report = soak(options.operations, options.rate, keep=options.keep)
    print(f"{sum(report.reads.values()):,} reads {dict(report.reads)}; failed {dict(report.failed)}")
    print(f"{report.writes:,} changes; from outside, {report.acts.total()}: {dict(report.acts)}")
    print(f"died right before a step, {report.deaths.total()}: {dict(sorted(report.deaths.items()))}")
    print(f"older than an acknowledged change, through the store: {len(report.old)} {report.old[:5]}")
    worst = f"; at most {max(report.lag) * 1000:.0f} ms after it" if report.lag else ""
    print(f"... from another process's L1, which a push must reach first: {len(report.lag)}{worst}")
    print(f"slowest read {report.slowest:.1f} s; later than {BOUND:g} s: {report.late}")
    print(f"not what the database says at the end: {len(report.unequal)} {report.unequal[:5]}")


if __name__ == "__main__":
    main()
