"""What each way of keeping entries fresh does to readers and to the database, by replaying requests in virtual time.

    python -m benchmarks.simulation [--quick] [--defaults] [--trace FILE.trace.xz ...]

Replayed are a seeded Zipf and recorded traces (`--trace`, or all of a directory that the variable TRACES names).
Requests come as a Poisson stream over an hour to four processes; writes invalidate what was read lately.  The
library's own flows decide (`benchmarks/virtual.py`); "every reader loads" is what a cache without leases does.

A hot key is one of the most read hundredth, or of the `--hot` most read.  Its period is what its entry is fresh for, or
until an invalidation: 1 load each, and a little more where loads come ahead (`benchmarks/periods.py`).  Those that come
in the middle of a period are counted.  The least loads there can be are those of a cache that loads when somebody
reads, and whose entries live for all of `fresh_for`: the first read after that, or after an invalidation, begins
another.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import multiprocessing
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.periods import Periods
from benchmarks.traces import Trace, found, named, zipf
from benchmarks.virtual import BEGIN, MESSAGE, System, World
from cacheworkers import Cache, Config, Load, Policy
from cacheworkers.core.entry import Entry, Freshness, life_of
from cacheworkers.core.signature import Call
from cacheworkers.flows.keep_warm import MARGIN, turns_of
from cacheworkers.flows.ports import LoaderSpec

#: A load's median, and the spread of its logarithm; no load takes longer than `LONGEST`, seconds.
MEDIAN, SPREAD, LONGEST = 0.05, 0.7, 1.5
#: A write invalidates one of this number of keys that were read last.
LATELY = 10_000
TIMES = 3600.0
HEADS = (
    "way",
    "stale % all",
    "stale % hot",
    "waits % all",
    "waits % hot",
    "loads",
    "loads % reads",
    "x without warming",
    "queries",
    "loads per hot key and period",
    "in mid-period",
    "loads of hot keys by the least",
    "most loads together",
    "loads in vain",
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way of keeping entries fresh.

    Attributes:
        is_plain: every reader that misses loads for itself.
        is_batch: the loader loads many keys with one query.
        periods: `warm_for` as a multiple of `fresh_for`.
        without: the way that is the same without warming.
        policy, config: what differs from the library's defaults.
    """

    name: str
    policy: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    is_plain: bool = False
    is_batch: bool = False
    periods: float | None = None
    without: str = ""


OFF = {"stale_for": 0.0, "early": 0.0}
COLD = {"warm_interval": 0.0}
WAYS = (
    Way("TTL, every reader loads", OFF, COLD, is_plain=True),
    Way("TTL, one load for all", OFF, COLD),
    Way("SWR", {"early": 0.0}, COLD),
    Way("early", {"stale_for": 0.0}, COLD),
    Way("warm", OFF, without="TTL, one load for all"),
    Way("SWR + early", {}, COLD),
    Way("SWR + warm", {"early": 0.0}, without="SWR"),
    Way("early + warm", {"stale_for": 0.0}, without="early"),
    Way("SWR + early + warm", without="SWR + early"),
)


DEFAULTS = (
    Way("without warming", config=COLD),
    Way("the defaults", without="without warming"),
    Way("the defaults, a batch loader", is_batch=True, without="without warming"),
    Way("no warming", {"warm_for": 0.0}),
    Way("no warming, a batch loader", {"warm_for": 0.0}, is_batch=True),
    Way("only what is read again and again", {"warm_for": 0.001}),
    *(Way(f"warm_for {periods:g} x fresh_for", periods=periods) for periods in (0.5, 1.0, 2.0, 6.0)),
    *(Way(f"warm_interval {every:g}", {}, {"warm_interval": every}) for every in (1.0, 5.0, 10.0)),
    *(
        Way(f"warm_rate {rate:g}", {}, {"warm_rate": rate, "warm_concurrency": int(2 * rate)})
        for rate in (50.0, 1000.0)
    ),
    Way("max_hot_calls 20,000", {}, {"max_hot_calls": 20_000}),
    *(Way(f"early {beta:g}", {"early": beta}) for beta in (0.0, 10.0)),
    Way("jitter 0", {"jitter": 0.0}),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is replayed.

    Attributes:
        fresh_for, stale_for: of every entry, seconds.
        lasts: seconds in which the whole trace is read.
        writes: per read.
        hot: how many of the most read keys are called hot; 0 for one in a hundred.
        workers: of each queue; 0 for as many as there is work.
    """

    trace: Trace
    fresh_for: float
    stale_for: float
    lasts: float = TIMES
    writes: float = 0.001
    hot: int = 0
    processes: int = 4
    workers: int = 0
    seed: int = 1

    def arrivals(self) -> Iterator[tuple[float, int, int]]:
        """Yield when, by which process and for which key each read comes."""
        chance = random.Random(self.seed)
        gap, processes, now = self.lasts / len(self.trace.keys), self.processes, BEGIN
        uniform, log = chance.random, math.log
        for key in self.trace.keys:
            one = uniform()
            now -= gap * log(1.0 - one)
            yield now, int(one * 1e9) % processes, key

    def changes(self) -> Iterator[int]:
        """Yield, endlessly: how many reads until the next write, and how many reads ago its key was read."""
        chance = random.Random(self.seed + 1)
        while True:
            yield int(chance.expovariate(self.writes)) + 1 if self.writes else len(self.trace.keys) + 1
            yield chance.randrange(LATELY)


@dataclass(slots=True)
class Tally:
    """What readers of some keys met."""

    reads: int = 0
    stale: int = 0
    waits: int = 0
    errors: int = 0

    def note(self, result: Any) -> None:
        """Take what a read through the store came to."""
        if isinstance(result, Exception):
            self.errors += 1
        elif result.waited > 0.0:
            self.waits += 1
        elif result.freshness is Freshness.STALE:
            self.stale += 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way came to in one scene; shares are percentages."""

    way: str
    stale: float
    stale_hot: float
    waits: float
    waits_hot: float
    loads: int
    reads: int
    queries: int
    loads_per_period: float
    again: int
    loads_by_least: float
    max_concurrent: int
    in_vain: int

    def row(self, without: Outcome | None) -> tuple[str, ...]:
        """Return it as text, beside the same way without warming."""
        shares = (f"{share:.3f}" for share in (self.stale, self.stale_hot, self.waits, self.waits_hot))
        rest = (
            f"{self.loads:,}",
            f"{share(self.loads, self.reads):.2f}",
            f"{self.loads / without.loads:.3f}" if without else "-",
            f"{self.queries:,}",
            f"{self.loads_per_period:.3f}",
            f"{self.again:,}",
            f"{self.loads_by_least:.3f}",
            f"{self.max_concurrent:,}",
            f"{self.in_vain:,}",
        )
        return (self.way, *shares, *rest)


class Replay:
    """One scene, one way."""

    def __init__(self, scene: Scene, way: Way) -> None:
        self.scene = scene
        self.way = way
        policy = {"fresh_for": scene.fresh_for, "stale_for": scene.stale_for, "error_for": 0.0, **way.policy}
        if way.periods is not None:
            policy["warm_for"] = way.periods * scene.fresh_for
        cache = Cache(Config(**way.config))

        @cache.loader(**policy)
        def product(load: Load, number: int) -> int:
            return number

        @cache.batch_loader(**policy)
        def products(load: Load, numbers: list[int]) -> dict[int, int]:
            return dict(zip(numbers, numbers, strict=True))

        self.spec: LoaderSpec = products._spec if way.is_batch else product._spec
        self.config = cache.config
        self.calls: dict[int, Call] = {key: self.spec.signature.bind((key,), {}) for key in scene.trace.counts}
        self.hot = frozenset(scene.trace.hottest(scene.hot or max(1, len(scene.trace.counts) // 100)))
        self.rest, self.of_hot = Tally(), Tally()
        self.least = 0.0
        self.world = World(scene.seed + 2, load_time)
        hot = frozenset(self.calls[key].text for key in self.hot)
        self.periods = Periods(hot, lambda call: None, lead_of(self.spec.policy, cache.config))
        self.world.on_load = self.periods.load

    def play(self) -> Outcome:
        """Replay, and return what it came to."""
        in_vain = self._play_plain() if self.way.is_plain else self._play()
        loads = self.world.loads
        rest, hot = self.rest, self.of_hot
        return Outcome(
            self.way.name,
            share(rest.stale + hot.stale, rest.reads + hot.reads),
            share(hot.stale, hot.reads),
            share(rest.waits + hot.waits + rest.errors + hot.errors, rest.reads + hot.reads),
            share(hot.waits + hot.errors, hot.reads),
            loads.total(),
            rest.reads + hot.reads,
            self.world.queries,
            self.periods.loads_per_period,
            self.periods.again,
            self.periods.loads / self.least,
            self.world.most_loading,
            in_vain,
        )

    def _play(self) -> int:
        """Replay with the library's flows; how many loads stored nothing."""
        system = System.made(
            self.world, self.spec, self.config, processes=self.scene.processes, workers=self.scene.workers
        )
        self.periods.life = system.store.life
        world, calls, due = self.world, self.calls, self.world._due
        slots = [process.l1.slots for process in system.processes]
        for now, at, key, tally in self._reads(lambda call: system.processes[0].invalidate(call)):
            if due and due[0][0] <= now:
                world.pass_until(now)
            world.now = now
            call = calls[key]
            slot = slots[at].get(call.text)
            if slot is not None and now < slot.until:
                slot.reads += 1
                if now >= slot.entry.fresh_until:
                    tally.stale += 1
            else:
                system.processes[at].read_through_store(call, tally.note)
        world.pass_until(world.now + 10.0)
        return world.loads.total() - system.workers.outcomes["stored"]

    def _play_plain(self) -> int:
        """Replay with a cache that has no leases: whoever misses loads; how many loads were not the first."""
        world, calls = self.world, self.calls
        entries: dict[str, Entry] = {}
        in_vain = 0

        def life(call: str) -> tuple[float, float] | None:
            there = entries.get(call)
            return None if there is None else (there.created, there.fresh_until)

        self.periods.life = life

        def load(call: str) -> None:
            began = world.now

            def store() -> None:
                nonlocal in_vain
                there = entries.get(call)
                in_vain += there is not None and there.freshness(world.now) is Freshness.FRESH
                life = life_of(
                    self.spec.policy,
                    created=began,
                    load_time=world.now - began,
                    is_negative=False,
                    fresh_for=None,
                    chance=world.chance.random,
                )
                ends = (life.created, life.fresh_until, life.stale_until, life.expires_at, life.stale_for)
                entries[call] = Entry(call, (), b"", *ends, life.load_time, 0, b"", b"")

            world.load([call], store)

        for now, _, key, tally in self._reads(lambda call: entries.pop(call, None)):
            world.pass_until(now)
            call = calls[key].text
            entry = entries.get(call)
            if entry is None or entry.freshness(now) is not Freshness.FRESH:
                tally.waits += 1
                load(call)
        world.pass_until(world.now + 10.0)
        return in_vain

    def _reads(self, invalidate: Any) -> Iterator[tuple[float, int, int, Tally]]:
        """Yield each read with the tally it belongs to, and invalidate in between."""
        scene, keys, fresh_for = self.scene, self.scene.trace.keys, self.scene.fresh_for
        ends = dict.fromkeys(self.hot, BEGIN)  # of each hot key's period: the first read after it begins another
        changes = scene.changes()
        write_in = next(changes)
        for number, (now, at, key) in enumerate(scene.arrivals()):
            if number % REPORTED_EVERY == 0:
                with _replayed.get_lock():
                    _replayed.value += REPORTED_EVERY
            write_in -= 1
            if not write_in:
                changed = keys[max(0, number - next(changes))]
                if changed in ends:
                    ends[changed] = now
                self.world.pass_until(now)
                self.periods.invalidate(self.calls[changed].text)
                invalidate(self.calls[changed].text)
                write_in = next(changes)
            end = ends.get(key)
            if end is None:
                tally = self.rest
            else:
                tally = self.of_hot
                if now >= end:
                    ends[key] = now + fresh_for
                    self.least += 1
            tally.reads += 1
            yield now, at, key, tally
        self.periods.close(now)
        # A period that has not ended counts as far as it has gone.
        self.least -= sum(max(0.0, end - now) / fresh_for for end in ends.values())


def lead_of(policy: Policy, config: Config) -> float:
    """Return how far ahead of an entry's end a round of warming loads it at most, seconds."""
    return turns_of(policy.fresh_for, config.warm_interval) * config.warm_interval + MARGIN + MESSAGE


def load_time(chance: random.Random) -> float:
    """Return the seconds of one load."""
    return min(MEDIAN * math.exp(chance.gauss(0.0, SPREAD)), LONGEST)


def share(part: int, whole: int) -> float:
    """Return a percentage."""
    return 100.0 * part / whole if whole else 0.0


#: Set before the pool forks, so that the traces are shared and not sent.
_scenes: list[Scene] = []
#: Reads that have been replayed, in all processes together.
_replayed = multiprocessing.get_context("fork").Value("q")
#: ... are reported after this number.
REPORTED_EVERY = 20_000


def _play(job: tuple[int, Way]) -> tuple[int, Outcome]:
    gc.set_threshold(200_000, 50, 50)  # hardly anything here is a circle, and a walk over all entries takes long
    return job[0], Replay(_scenes[job[0]], job[1]).play()


def play_all(scenes: Iterable[Scene], ways: Iterable[Way], jobs: int) -> list[list[Outcome]]:
    """Return, of each scene, the outcomes of all ways in their order."""
    _scenes[:] = scenes
    work = [(at, way) for at in range(len(_scenes)) for way in ways]
    outcomes: dict[tuple[int, str], Outcome] = {}
    with multiprocessing.get_context("fork").Pool(jobs) as pool, report.progress() as bar:
        task = bar.add_task("reads", total=sum(len(_scenes[at].trace.keys) for at, _ in work))
        played = pool.imap_unordered(_play, work)
        while len(outcomes) < len(work):
            with contextlib.suppress(multiprocessing.TimeoutError):
                at, outcome = played.next(1.0)
                outcomes[at, outcome.way] = outcome
            bar.update(task, completed=_replayed.value)
    return [[outcomes[at, way.name] for at2, way in work if at2 == at] for at in range(len(_scenes))]


def title_of(scene: Scene) -> str:
    """Return what a table is about."""
    trace = scene.trace
    return (
        f"{trace.name}: {len(trace.keys):,} reads of {len(trace.counts):,} keys in {scene.lasts:g} s, "
        f"fresh_for {scene.fresh_for:g}, stale_for {scene.stale_for:g}"
    )


def traces(paths: list[Path] | None, *, is_quick: bool) -> list[Trace]:
    """Return the traces to replay."""
    if is_quick:
        return [Trace("Zipf 0.9", zipf(60_000, 1000))]
    return [Trace("Zipf 0.9", zipf(500_000, 20_000)), *(named(path) for path in found(paths))]


def main() -> None:
    """Replay, and print one table a trace; written as Markdown and as a picture, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trace", type=Path, nargs="+", help="recorded traces; or the variable TRACES names their directory"
    )
    parser.add_argument("--only", nargs="+", help="names of traces")
    parser.add_argument("--fresh-for", type=float, nargs="+", default=[300.0, 60.0])
    parser.add_argument("--stale-for", type=float, default=60.0)
    parser.add_argument("--lasts", type=float, default=TIMES, help="seconds in which a trace is read")
    parser.add_argument("--writes", type=float, default=0.001, help="per read")
    parser.add_argument("--hot", type=int, default=0, help="how many keys are called hot; 0 for one in a hundred")
    parser.add_argument("--workers", type=int, default=0, help="of each queue; 0 for as many as there is work")
    parser.add_argument("--defaults", action="store_true", help="vary each default instead of the ways")
    parser.add_argument("--ways", nargs="+", help="names of rows; none for all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small Zipf only")
    parser.add_argument("--write-to", type=Path, help="directory for the tables and their picture")
    options = parser.parse_args()
    scenes = [
        Scene(trace, fresh_for, options.stale_for, options.lasts, options.writes, options.hot, workers=options.workers)
        for trace in traces(options.trace, is_quick=options.quick)
        if not options.only or trace.name in options.only
        for fresh_for in options.fresh_for
    ]
    if not scenes:
        parser.error(f"--only must name a trace that is there, got {', '.join(options.only)}")
    ways = [way for way in (DEFAULTS if options.defaults else WAYS) if not options.ways or way.name in options.ways]
    outcomes = play_all(scenes, ways, options.jobs)
    twins = {way.name: way.without for way in ways}
    tables = []
    for scene, those in zip(scenes, outcomes, strict=True):
        by_name = {one.way: one for one in those}
        tables.append((title_of(scene), [one.row(by_name.get(twins[one.way])) for one in those]))
    text = "\n".join(f"**{title}**\n\n{report.markdown(HEADS, rows)}" for title, rows in tables)
    print(text)
    if options.write_to:
        name = "simulation_defaults" if options.defaults else "simulation"
        options.write_to.mkdir(parents=True, exist_ok=True)
        (options.write_to / f"{name}.md").write_text(f"# What keeps readers from stale entries and waits\n\n{text}")
        pictures = [report.table(title, HEADS, rows) for title, rows in tables]
        report.write_picture(options.write_to / f"{name}.svg", "python -m benchmarks.simulation", pictures)


if __name__ == "__main__":
    main()
