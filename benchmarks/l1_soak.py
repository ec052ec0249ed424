"""Memory of several processes against a link that dies all the time: `python -m benchmarks.l1_soak [--seconds 180]`.

Processes read from their own memory as fast as they can: in one thread, in four, on an event loop, and in one that
forks children which read on.  Writers change values and invalidate them.  Meanwhile the tracking connections
are killed, cut, delayed and stalled, the store is frozen and restarted, and its entries are deleted.  What every read
returned, what every writer was answered and what every listener had proof of is recorded, and compared at the end
(`benchmarks.history`): a read through the store is never older than what had been acknowledged; one from
memory knows what its listener had proof of, and is never later than `l1_for` - or, while the store did not answer this
process, `l1_on_loss_for`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.history import History, Received, Recorder, Stale, check
from cacheworkers import Cache, Config, Load
from cacheworkers.errors import CacheworkersError
from cacheworkers.events import Event, Served
from cacheworkers.local.coherence import Coherence
from cacheworkers.testing import FaultProxy, Valkey

PRICES, WRITERS = 50, 2
KINDS = ("thread", "threads", "tasks", "forks")
L1_FOR, L1_ON_LOSS_FOR = 3.0, 10.0
#: Reads between two looks at whether it is over.
BURST = 500


@dataclass
class Report:
    """What happened.

    Attributes:
        reads: by tier; "kept" is from memory while the store did not answer.
        faults: by kind.
        proofs: how often a listener had proof of having received everything.
        late: reads from memory that were older than an acknowledged change, within what is promised or not.
        old: reads that break the promise, as evidence.
        oldest: by how much, at most, a read from memory was later than the invalidation it had not received, seconds;
            and one of "kept".
    """

    reads: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    unacknowledged: int = 0
    forks: int = 0
    proofs: int = 0
    old: list[str] = field(default_factory=list)
    late: int = 0
    oldest: float = 0.0
    oldest_kept: float = 0.0


class Shop:
    """One process's cache; the database is shared memory."""

    def __init__(self, url: str, database: Any, where: Path, **options: Any) -> None:
        self.where = where
        self.cache = Cache(
            Config(redis_url=url, l1_for=L1_FOR, l1_on_loss_for=L1_ON_LOSS_FOR, breaker_for=0.3, **options),
            hook=self._note,
        )
        self._served = threading.local()

        @self.cache.loader(tags=("price:{n}",), fresh_for=600)
        def price(load: Load, n: int) -> int:
            return int(database[n])

        @self.cache.loader(tags=("price:{n}",), fresh_for=600)
        def label(load: Load, n: int) -> int:
            return int(database[n])

        self.loaders: tuple[Any, ...] = (price, label)

    def _note(self, event: Event) -> None:
        if isinstance(event, Served):
            self._served.tier = event.tier

    def tier(self) -> str:
        """Return where this thread's last read was served from."""
        # Hits in memory make no event.  Events are emitted in the thread that reads, before anything else runs there.
        tier = self._served.__dict__.pop("tier", "")
        return {"": "l1", "l1": "kept"}.get(tier, tier)


class Reader:
    """What one thread or task has read: of reads in a row that returned the same from memory, the last stands for all.

    The later a read begins, the more it must know, so that nothing is lost by that.
    """

    def __init__(self, shop: Shop, recorders: tuple[Recorder, Recorder], number: int) -> None:
        self._shop = shop
        self._history, self._kept = recorders
        self._memory = f"{os.getpid()}"
        self._runs: dict[tuple[Any, int], list[Any]] = {}
        self.reads: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        chance = random.Random(number)
        pairs = [(loader, n) for loader in shop.loaders for n in range(PRICES)]
        self._turns = itertools.cycle(chance.choices(pairs, [1 / (1 + n) for _, n in pairs], k=5000))

    def some(self) -> None:
        """Read some hundred values."""
        tier, monotonic, seen = self._shop.tier, time.monotonic, self._seen
        for pair in itertools.islice(self._turns, BURST):
            loader, n = pair
            began = monotonic()
            try:
                version = loader.get(n)
            except CacheworkersError as error:
                self.failed[type(error).__name__] += 1
                continue
            seen(pair, version, began, tier())

    async def asome(self) -> None:
        """Read some hundred values on the running loop."""
        tier, monotonic, seen = self._shop.tier, time.monotonic, self._seen
        for pair in itertools.islice(self._turns, BURST):
            loader, n = pair
            began = monotonic()
            try:
                version = await loader.aget(n)
            except CacheworkersError as error:
                self.failed[type(error).__name__] += 1
                continue
            seen(pair, version, began, tier())

    def _seen(self, pair: tuple[Any, int], version: int, began: float, tier: str) -> None:
        run = self._runs.get(pair)
        if tier == "l1":
            if run is not None and run[0] == version:
                run[1] = began
                run[2] += 1
                return
            self._end(pair)
            self._runs[pair] = [version, began, 1]
            return
        self._end(pair)
        self.reads[tier] += 1
        recorder, tier = (self._kept, "l1") if tier == "kept" else (self._history, tier)
        recorder.read(f"price:{pair[1]}", version, began, tier=tier, by=f"{pair[0].name}[{pair[1]}]")

    def _end(self, pair: tuple[Any, int]) -> None:
        run = self._runs.pop(pair, None)
        if run is not None:
            version, began, count = run
            self.reads["l1"] += count
            loader, n = pair
            by = f"{loader.name}[{n}]"
            self._history.read(f"price:{n}", version, began, tier="l1", by=by, memory=self._memory, count=count)

    def close(self) -> None:
        """Record what has not been."""
        for pair in list(self._runs):
            self._end(pair)


def read(kind: str, number: int, url: str, database: Any, stop: Any, results: Any, where: Path) -> None:
    """Read until stopped, and record it."""
    shop = Shop(url, database, where)
    results.put("ready")
    with recorded(where, f"reader{number}") as recorders:
        readers = [Reader(shop, recorders, number + each) for each in range(1 if kind in ("thread", "forks") else 4)]
        match kind:
            case "thread":
                _read_until(stop.is_set, readers[0])
            case "threads":
                sys.setswitchinterval(1e-5)  # so that pushes come between any two things that a read does
                threads = [threading.Thread(target=_read_until, args=(stop.is_set, reader)) for reader in readers]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            case "tasks":
                asyncio.run(_aread_until(stop.is_set, readers))
            case "forks":
                _read_and_fork(shop, stop.is_set, readers[0], results, where)
        _report(readers, results)
    shop.cache.close()


def _read_until(is_over: Callable[[], bool], reader: Reader) -> None:
    while not is_over():
        reader.some()
    reader.close()


async def _aread_until(is_over: Callable[[], bool], readers: list[Reader]) -> None:
    async def one(reader: Reader) -> None:
        while not is_over():
            await reader.asome()
            await asyncio.sleep(0)
        reader.close()

    await asyncio.gather(*map(one, readers))


def _read_and_fork(shop: Shop, is_over: Callable[[], bool], reader: Reader, results: Any, where: Path) -> None:
    for number in itertools.count():
        if is_over():
            break
        child = os.fork()
        until = time.monotonic() + 2.0
        if child == 0:
            with recorded(where, f"child{number}") as recorders:
                mine = Reader(shop, recorders, number)
                _read_until(lambda until=until: is_over() or time.monotonic() > until, mine)  # type: ignore[misc]
                (where / f"child{number}.reads").write_text(json.dumps((mine.reads, mine.failed)))
            os._exit(0)
        while not os.waitpid(child, os.WNOHANG)[0]:
            reader.some()
    reader.close()


@contextlib.contextmanager
def recorded(where: Path, name: str) -> Iterator[tuple[Recorder, Recorder]]:
    """Record what this process reads, and what its listener has proof of; apart, what it read without the store."""
    with Recorder(where / f"{name}.jsonl") as history, Recorder(where / f"{name}.kept") as kept:
        received, me = _received, str(os.getpid())

        def note(coherence: Coherence, at: float) -> None:
            received(coherence, at)
            history.received(me, at)

        Coherence.prove = note  # type: ignore[assignment, method-assign]
        try:
            yield history, kept
        finally:
            Coherence.prove = received  # type: ignore[method-assign]


_received = Coherence.prove


def _report(readers: list[Reader], results: Any) -> None:
    reads = functools.reduce(lambda a, b: a + b, (reader.reads for reader in readers))
    failed = functools.reduce(lambda a, b: a + b, (reader.failed for reader in readers))
    results.put((reads, failed))


def write(number: int, url: str, database: Any, stop: Any, results: Any, where: Path, rate: float) -> None:
    """Raise the versions of one's own share of the prices, and invalidate them, until stopped."""
    shop = Shop(url, database, where)
    results.put("ready")
    chance = random.Random(number)
    mine = [n for n in range(PRICES) if n % WRITERS == number]
    changes = unacknowledged = 0
    with Recorder(where / f"writer{number}.jsonl") as recorder:
        while not stop.is_set():
            n = chance.choices(mine, [1 / (1 + n) for n in mine])[0]
            version = database[n] = database[n] + 1
            began = time.monotonic()
            try:
                shop.cache.invalidate(f"price:{n}")
            except CacheworkersError:
                unacknowledged += 1
            else:
                recorder.invalidated(f"price:{n}", began, version=version)
            changes += 1
            time.sleep(chance.expovariate(rate))
    results.put((changes, unacknowledged))
    shop.cache.close()


class Faults:
    """What goes wrong: one thing after another, for a while each."""

    def __init__(self, valkey: Valkey, proxy: FaultProxy) -> None:
        self._valkey = valkey
        self._proxy = proxy
        self.counts: Counter[str] = Counter()
        self._kinds = itertools.cycle(
            [self.kill_links, self.cut, self.delay, self.delete_entries, self.stall, self.freeze, self.restart]
        )

    def one(self) -> None:
        """Do the next one."""
        fault = next(self._kinds)
        self.counts[fault.__name__.replace("_", " ")] += 1
        fault()

    def kill_links(self) -> None:
        """Have the server close all connections that receives pushes."""
        with self._client() as client:
            for each in client.client_list():
                if "t" in each["flags"]:
                    client.client_kill_filter(_id=each["id"])

    def cut(self) -> None:
        self._proxy.cut()

    def delay(self) -> None:
        self._proxy.delay = random.uniform(0.01, 0.3)
        time.sleep(random.uniform(0.5, 2.0))
        self._proxy.delay = 0.0

    def stall(self) -> None:
        """For longer, now and then, than a ping may go unanswered."""
        self._proxy.hold_replies()
        time.sleep(random.uniform(0.2, 4.0))
        self._proxy.release()

    def freeze(self) -> None:
        self._valkey.pause()
        time.sleep(random.uniform(0.05, 1.5))
        self._valkey.resume()

    def restart(self) -> None:
        """It comes back with nothing."""
        self._valkey.kill()
        time.sleep(random.uniform(0.0, 1.0))
        self._valkey.start()

    def delete_entries(self) -> None:
        with self._client() as client:
            keys = [key for key in client.scan_iter("cw:e:*", count=1000) if random.random() < 0.3]
            if keys:
                client.unlink(*keys)

    def _client(self) -> Any:
        import redis

        return redis.Redis.from_url(self._valkey.url)


def soak(seconds: float, rate: float = 100.0, fault_every: float = 1.0) -> Report:
    """Run for so long, and return what happened.

    Args:
        rate: changes a second, of each writer.
        fault_every: seconds, on average, from the end of one fault to the next.
    """
    context = multiprocessing.get_context("spawn")
    report = Report()
    with (
        tempfile.TemporaryDirectory() as directory,
        Valkey() as valkey,
        FaultProxy(valkey.url, only=b"TRACKING") as proxy,
    ):
        where, database = Path(directory), context.Array("q", PRICES, lock=False)
        stop, reported, written = context.Event(), context.Queue(), context.Queue()
        processes = [
            context.Process(target=read, args=(kind, 10 * n, proxy.url, database, stop, reported, where))
            for n, kind in enumerate(KINDS)
        ]
        processes += [
            context.Process(target=write, args=(n, valkey.url, database, stop, written, where, rate))
            for n in range(WRITERS)
        ]
        for process in processes:
            process.start()
        faults = Faults(valkey, proxy)
        try:
            for queue in [reported] * len(KINDS) + [written] * WRITERS:
                assert queue.get(timeout=60) == "ready"
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, random.expovariate(1 / fault_every)))
                faults.one()
                print(f"\r{max(0.0, left):4.0f} s to go; {dict(faults.counts)}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            stop.set()
            for _ in KINDS:
                _add(report, reported.get(timeout=120))
            for _ in range(WRITERS):
                changes, unacknowledged = written.get(timeout=120)
                report.changes += changes
                report.unacknowledged += unacknowledged
            for process in processes:
                process.join(60)
        finally:
            for process in processes:
                process.kill()
        report.faults = faults.counts
        _compare(where, report)
    return report


def _add(report: Report, reported: tuple[Any, Any]) -> None:
    report.reads += Counter(reported[0])
    report.failed += Counter(reported[1])


def _compare(where: Path, report: Report) -> None:
    for reported in where.glob("*.reads"):
        report.forks += 1
        _add(report, json.loads(reported.read_text()))
    writers = sorted(where.glob("writer*.jsonl"))
    history = History([*writers, *where.glob("reader*.jsonl"), *where.glob("child*.jsonl")])
    kept = History([*writers, *where.glob("*.kept")])
    report.old = [str(stale) for stale in check(history, l1_for=L1_FOR) + check(kept, l1_for=L1_ON_LOSS_FOR)]
    late = [stale for stale in check(history) if stale.read.tier == "l1"]
    report.late = len(late)
    report.proofs = sum(isinstance(each, Received) for each in history)
    report.oldest, report.oldest_kept = _oldest(late), _oldest(check(kept))


def _oldest(late: list[Stale]) -> float:
    return max((stale.late for stale in late), default=0.0)


def main() -> None:
    """Soak, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second, of each writer")
    options = parser.parse_args()
    report = soak(options.seconds, options.rate)
    reads = sum(report.reads.values())
    print(f"{reads:,} reads {dict(report.reads)}; failed {dict(report.failed)}; {report.forks} forks")
    print(f"{report.changes:,} changes, {report.unacknowledged:,} of them not acknowledged")
    print(f"{sum(report.faults.values())} faults {dict(report.faults)}; {report.proofs:,} proofs of coherence")
    print(
        f"oldest from memory: {1000 * report.oldest:.0f} ms beyond its invalidation, {report.late:,} times late at all"
    )
    print(f"oldest from memory while the store did not answer: {1000 * report.oldest_kept:.0f} ms beyond")
    print(f"violations: {len(report.old)} {report.old[:5]}")


if __name__ == "__main__":
    main()
