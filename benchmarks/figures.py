"""All figures that the design asks for: each from its own benchmark, put beside its aim.  `python -m benchmarks`.

Sizes are such that all of them take some minutes; each benchmark alone has larger ones, and options.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from benchmarks import (
    access_report_cost,
    coherence,
    coherence_cost,
    garbage_collection,
    http,
    huge_tag,
    l1_sizes,
    misses,
    outbox,
    queries,
    race,
    read_path,
    soak,
    stampede,
    threads,
    visible,
    warm,
)
from benchmarks.report import counted, percentile
from benchmarks.sheet import Detail, Figure, Found, Row, Scale
from benchmarks.traces import Trace, found, named, zipf
from cacheworkers import Config
from cacheworkers.testing import Valkey

PROCESSES = 4
READS_A_SECOND = visible.READS
#: Entries kept in memory, of which hit ratios are printed.
SIZES = (1000, 3000, Config().l1_entries, 30_000)


def hits(scale: Scale) -> Found:
    """Hits beside redis-py and peers."""
    bench = read_path.measured(rounds=scale.of(read_path.ROUNDS, 1))
    lru, near = bench["memory, sync", "functools.lru_cache"], bench["memory, sync", "cacheworkers get (coherent)"]
    far, plain = (bench["store, sync", name] for name in ("cacheworkers get", "redis-py get + decode"))
    many = bench["store, sync, one of 100 together", "cacheworkers get_many"]
    empty, anear = (bench["memory, async", name] for name in ("an empty coroutine", "cacheworkers aget (coherent)"))
    alone = bench["store, async, alone", "cacheworkers aget"]
    amany = bench["store, async, one of 100 by one call", "cacheworkers aget_many"]
    together = bench["store, async, one of 100 together", "cacheworkers aget"]
    rows = [
        Row(
            "hit in memory, `product.get(42)`",
            "<= 4x lru_cache",
            f"{near.us:.2f} us",
            f"{near.ratio:.1f}x functools.lru_cache ({lru.us:.2f} us)",
            near.ratio <= 4,
        ),
        Row(
            "hit in the store, decoded, in a thread",
            "<= 1.15x a bare socket with hiredis",
            f"{far.us:.1f} us",
            f"{far.ratio:.2f}x a bare socket with hiredis; redis-py get + decode {plain.ratio:.2f}x",
            far.ratio <= 1.15,
        ),
        Row(
            "`get_many` of 100 in the store, each",
            "<= 1.15x MGET + decode",
            f"{many.us:.2f} us",
            f"{many.ratio:.2f}x redis-py mget + decode",
            many.ratio <= 1.15,
        ),
        Row(
            "hit in memory, `await product.aget(42)`",
            "<= 0.5 us above an empty coroutine",
            f"{anear.us:.2f} us",
            f"{anear.us - empty.us:.2f} us above an empty coroutine",
            anear.us - empty.us <= 0.5,
        ),
        Row(
            "hit in the store, on a loop, alone",
            "<= 1.1x redis.asyncio",
            f"{alone.us:.1f} us",
            f"{alone.ratio:.2f}x redis.asyncio get + decode",
            alone.ratio <= 1.1,
        ),
        Row(
            "... 100 together, each",
            "<= 0.15x redis.asyncio",
            f"{together.us:.1f} us",
            f"{together.ratio:.2f}x redis.asyncio get + decode",
            together.ratio <= 0.15,
        ),
        Row(
            "`aget_many` of 100 in the store, each",
            "",
            f"{amany.us:.2f} us",
            f"{amany.ratio:.2f}x redis.asyncio mget + decode",
        ),
    ]
    table = [(row.group, row.name, f"{row.us:,.2f}", f"{row.ratio:.2f}x") for row in bench.rows]
    detail = Detail("What a hit costs", ("hit", "library", "us a read", "ratio"), table)
    return Found(rows, [detail], read_path.files(bench))


def in_threads(scale: Scale) -> Found:
    """Hits in 1 to 32 threads."""
    speeds = threads.measured(scale.of((1, 8, 32), (1, 2)), scale.of(0.5, 0.1))
    most = max(speed.threads for speed in speeds)
    near, far, bare = (
        next(speed for speed in speeds if (speed.read, speed.threads) == (name, most))
        for name in ("L1 hit", "store hit", "redis-py get + decode")
    )
    rows = [
        Row(
            f"hits in memory, {most} threads",
            "",
            f"{near.reads_a_second:,.0f} a second",
            f"{near.ratio:.2f}x one thread",
        ),
        Row(
            f"hits in the store, {most} threads",
            "",
            f"{far.reads_a_second:,.0f} a second",
            f"{far.reads_a_second / bare.reads_a_second:.2f}x redis-py in as many; {far.ratio:.2f}x one thread",
        ),
    ]
    return Found(rows, [Detail("Threads", threads.HEADS, [*map(threads.cells, speeds)])])


def over_http(scale: Scale) -> Found:
    """The product API beside constant bytes."""
    aim = ">= 0.9x constant bytes"
    if shutil.which("wrk") is None:
        return Found([Row("product API over HTTP", aim, "left out: wrk is not installed")])
    ratios = http.measured(scale.of(3, 1), 1)
    api, unchanged = (
        (f"{ratio.rate:,.0f} a second", f"{ratio.of_rate:.2f}x the same server's constant bytes")
        for ratio in ratios[1:3]
    )
    rows = [Row("product API over HTTP", aim, *api, ratios[1].of_rate >= 0.9), Row("... as 304", "", *unchanged)]
    return Found(rows, [Detail("HTTP", ("answer", *http.HEADS[1:]), [*map(http.cells, ratios)])])


def crowd(scale: Scale) -> Found:
    """Simultaneous readers of one cold key."""
    readers = scale.of(50_000, 400)
    [found] = stampede.rounds(readers, PROCESSES, 1, with_floor=True)
    most = 2 * stampede.LOAD_TIME
    row = Row(
        f"{readers:,} readers of a cold key, {PROCESSES} processes, load {stampede.LOAD_TIME:g} s",
        f"1 load; all served in <= {most:g} s",
        f"{counted(found.loads, 'load')}, {found.served:,} served, the last after {found.took:.2f} s",
        found.beside_floor,
        found.loads == 1 and found.served == readers and found.took <= most,
    )
    return Found([row])


def crowd_beside_peers(scale: Scale) -> Found:
    """The same, fewer, beside libraries with a lock."""
    readers = scale.of(2000, 400)
    ours, *peers = stampede.beside_peers(readers, PROCESSES)
    reported = (f"{each.name} {stampede.cells(each)[-1]}" for each in peers if each.how != stampede.ABSENT)
    row = Row(
        f"{readers:,} readers beside peers",
        "",
        f"{counted(ours.loads, 'load')}, {ours.served:,} served, the last after {ours.took:.2f} s",
        "; ".join(reported),
    )
    heads = stampede.heads(readers, PROCESSES)
    return Found([row], [Detail("A stampede beside peers", heads, [*map(stampede.cells, [ours, *peers])])])


def commit_to_seen(scale: Scale) -> Found:
    """Commit to gone, and to visible, in every process."""
    changes = scale.of(1000, 50)
    shares: dict[str, float] = {}
    delays = visible.delays(visible.at_a_rate(changes, 100.0, PROCESSES, visible.READS, shares), PROCESSES)
    rows = [
        Row(
            f"commit until {what} in the last of {PROCESSES} processes, {changes:,} changes, 100 a second",
            f"p99 <= {most} ms",
            lags(noticed.last),
            f"in each of them p99 {percentile(noticed.each, 0.99):.1f} ms; cores idle {shares['idle']:.0%}",
            percentile(noticed.last, 0.99) <= most,
        )
        for what, noticed, most in (
            ("the old value is gone", delays.gone, 10),
            ("the new one is loaded and seen", delays.new, 25),
        )
    ]
    return Found(rows)


def gone_from_memory(scale: Scale) -> Found:
    """A change to gone from other processes' memory, which each of them reads 2,000 times a second."""
    changes = scale.of(2000, 50)
    seen = coherence.measured(changes, scale.of(PROCESSES, 2), pace=READS_A_SECOND)
    row = Row(
        f"change until gone from memory of processes that read {READS_A_SECOND:,} a second each, {changes:,} changes",
        "p99 <= 10 ms",
        lags(seen.gone),
        f"new value seen: p99 {percentile(seen.seen, 0.99):.1f} ms; {len(seen.gone):,} sightings",
        percentile(seen.gone, 0.99) <= 10,
    )
    return Found([row])


def price_of_coherence(scale: Scale) -> Found:
    """What a reader pays for receiving changes."""
    rate = 1000.0
    costs = coherence_cost.measured(rate, scale.of(1.0, 0.1), scale.of(2, 1))
    rows = [
        Row(
            f"reads while another process {cost.state}, {rate:,.0f} a second",
            "",
            f"{cost.reads_a_second:,.0f} reads a second",
            f"{cost.ratio:.2f}x of nobody writing; {cost.cpu_us:.0f} us of CPU a change",
        )
        for cost in costs
        if cost.cpu_us is not None
    ]
    detail = Detail("What coherence costs a reader", coherence_cost.heads(rate), [*map(coherence_cost.cells, costs)])
    return Found(rows, [detail])


def large_tag(scale: Scale) -> Found:
    """A tag of a million members."""
    done = huge_tag.measured(scale.of(1_000_000, 5000))
    slow = ", ".join(f"{took / 1000:.1f} ms" for _, took in done.slow[:3])
    rows = [
        Row(
            f"a tag of {done.entries:,} entries, hard",
            "<= 10 s",
            f"{done.took:.1f} s",
            f"a reader meanwhile p99 {percentile(done.latencies, 0.99):.2f} ms",
            done.took <= 10,
        ),
        slow_commands(len(done.slow), slow),
    ]
    return Found(rows)


def collected(scale: Scale) -> Found:
    """Dead members removed."""
    done = garbage_collection.measured(scale.of(1_000_000, 5000))
    slow = ", ".join(f"{took / 1000:.1f} ms" for took, _ in done.slow[:3])
    rows = [
        Row(
            f"{done.removed:,} of {done.members:,} dead members removed",
            "<= 30 s",
            f"{done.took:.1f} s",
            f"a reader meanwhile p99 {percentile(done.busy, 0.99):.2f} ms, idle {percentile(done.idle, 0.99):.2f} ms",
            done.took <= 30 and done.removed == done.members,
        ),
        slow_commands(len(done.slow), slow),
    ]
    return Found(rows)


def slow_commands(count: int, slow: str) -> Row:
    """Return the row of what the server's own slow log has; it goes by the clock, and so counts preemption."""
    return Row("... single commands over 5 ms, by SLOWLOG", "0", f"{count}", slow, count == 0)


def cold_misses(scale: Scale) -> Found:
    """A cold miss beside a bare Celery task."""
    readers = scale.of(misses.READERS, 10)
    done = misses.measured(scale.of(misses.MISSES, 20), readers, scale.of(misses.CROWD, 50))
    took, many = done.alone[misses.MISS], done.together
    rows = [
        Row(
            "a cold miss of a loader that does nothing",
            "<= 1.3x a bare Celery task",
            f"{percentile(took.whole, 0.5):.2f} ms",
            f"{done.ratio:.2f}x a bare Celery task, there and back",
            done.ratio <= 1.3,
        ),
        Row(
            f"... {readers} readers together",
            "",
            f"{many.misses_a_second:,.0f} a second",
            f"{many.misses_a_second / many.bare_a_second:.1f}x bare Celery tasks; until the loader ran "
            f"p50 {percentile(many.until_run, 0.5):.0f} ms",
        ),
        Row(
            "... bare Celery tasks through the same worker",
            "",
            f"{many.bare_a_second:,.0f} a second",
            "published back to back by one process",
        ),
    ]
    return Found(rows, [Detail("A cold miss", misses.HEADS, misses.rows(done))])


def warming(scale: Scale) -> Found:
    """A thousand products warmed."""
    [done] = warm.measured([scale.of(1000, 100)])
    row = Row(
        f"{done.keys:,} products warmed",
        "<= 10 queries; <= 1 s",
        f"{done.queries} queries, {done.took:.3f} s",
        f"{done.keys / done.queries:,.0f} keys a query" if done.queries else "",
        done.queries <= 10 and done.took <= 1.0,
    )
    return Found([row])


def for_a_trace(scale: Scale) -> Found:
    """Queries for a trace, with and without batching."""
    zipf_only = [Trace("Zipf 0.9", scale.of(zipf(100_000, 10_000), zipf(2000, 300)))]
    recorded = scale.traces is not None or not scale.is_quick
    done = queries.measured((queries.small(scale.traces) if recorded else []) or zipf_only)
    rows = [
        Row(
            f"{each.trace}: {each.reads:,} reads, {each.way}",
            f"{'<' if is_batch else '<='} {each.distinct:,} queries, its keys",
            f"{each.queries:,} queries",
            f"{each.queries / each.distinct:.2f} a key",
            each.queries < each.distinct if is_batch else each.queries <= each.distinct,
        )
        for each, is_batch in ((each, "batch" in each.way) for each in done)
    ]
    return Found(rows, [Detail("Queries for a trace", queries.HEADS, [*map(queries.cells, done)])])


def by_size(scale: Scale) -> Found:
    """Hit ratios by the size of L1."""
    traces = [Trace("Zipf 0.9", scale.of(zipf(500_000, 50_000), zipf(5000, 1000)))]
    if scale.traces is not None or not scale.is_quick:
        traces += [named(path) for path in found(scale.traces)]
    done = [each for trace in traces for each in l1_sizes.measured(trace, SIZES)]
    rows = [
        Row(
            f"{each.trace}: hits of an L1 of {each.size:,} entries",
            "",
            f"{each.ratio:.1%}",
            f"{each.of_ideal:.3f} of what is possible",
        )
        for each in done
        if each.size == min(Config().l1_entries, max(other.size for other in done if other.trace == each.trace))
    ]
    return Found(rows, [Detail("Hit ratios by the size of memory", l1_sizes.HEADS, [*map(l1_sizes.cells, done)])])


def overtaken(scale: Scale) -> Found:
    """An invalidation that overtakes a load."""
    ours, *peers = race.played()
    others = [each for each in peers if each.version and not each.error]
    old = dict.fromkeys(each.package for each in others if not each.is_new)
    new = [f"{each.package} ({each.how})" for each in others if each.is_new]
    beside = [f"the old price: {', '.join(old)}"] if old else []
    beside += [f"the new price: {', '.join(new)}"] if new else []
    row = Row(
        "read after an invalidation that overtook a load",
        "the new price",
        ours.reported,
        "; ".join(beside),
        ours.is_new,
    )
    cells = [(f"{play.package} {play.version}".strip(), play.how, play.reported) for play in [ours, *peers]]
    heads = ("library", "its invalidation", "after it, a read returned")
    return Found([row], [Detail("An invalidation that overtakes a load", heads, cells)])


def access_reports(scale: Scale) -> Found:
    """What counting reads costs, and finds."""
    reads, distinct = scale.of(1_000_000, 20_000), scale.of(100_000, 1000)
    with Valkey() as valkey:
        cost = access_report_cost.costs(valkey.url, scale.of(access_report_cost.ROUNDS, 1))
        hottest = access_report_cost.find_the_hottest(valkey.url, reads, distinct, 1.0)
    rows = [
        Row(
            "counting a hit in memory",
            "<= 60 ns",
            f"{cost.more:.0f} ns",
            f"{cost.counting:.0f} ns with, {cost.without:.0f} ns without",
            cost.more <= 60,
        ),
        Row(
            f"of the true top 100 found, {reads:,} reads of {distinct:,} calls",
            ">= 95",
            f"{hottest.there[100]}",
            f"{hottest.there[500]} of the top 500",
            hottest.there[100] >= 95,
        ),
    ]
    return Found(rows, [Detail("Heat", ("what", "measured"), access_report_cost.rows_of(hottest))])


def watched(scale: Scale) -> Found:
    """What a watched transaction costs."""
    ways = {way.name: way for way in outbox.measured(scale.of(1000, 20))}
    committed, whole = ways["watched, until committed"], ways["watched"]
    rows = [
        Row(
            "a watched one-row transaction, until it is committed",
            "<= 1.25x a plain one",
            f"{1000 * committed.median:.2f} ms",
            f"{committed.of_plain:.2f}x a plain one",
            committed.of_plain <= 1.25,
        ),
        Row(
            "... until its tags are invalidated",
            "",
            f"{1000 * whole.median:.2f} ms",
            f"{whole.of_plain:.2f}x a plain one; {whole.of_both:.2f}x one invalidated by hand",
        ),
    ]
    return Found(rows)


def everything_dies(scale: Scale) -> Found:
    """A short soak."""
    report = soak.soak(scale.of(50_000, 200))
    late = f", at most {1000 * max(report.lag):.0f} ms" if report.lag else ""
    rows = [
        Row(
            f"old reads through the store, {report.reads.total():,} reads while everything dies",
            "0",
            f"{len(report.old)}",
            f"{report.writes:,} changes, {report.acts.total() + report.deaths.total()} deaths and faults; "
            f"from another process's memory {len(report.lag)}{late}",
            not report.old,
        ),
        Row(
            "... entries that differ from the database at the end",
            "0",
            f"{len(report.unequal)}",
            "",
            not report.unequal,
        ),
    ]
    return Found(rows)


def lags(found: Iterable[float]) -> str:
    """Return a median, a 99th percentile and a maximum, of milliseconds."""
    ordered = [*found]
    half, most, worst = (percentile(ordered, share) for share in (0.5, 0.99, 1.0))
    return f"p50 {half:.1f}, p99 {most:.1f}, most {worst:.1f} ms"


FIGURES: dict[str, Figure] = {
    "hits": Figure("Hits", "read_path", hits),
    "threads": Figure("Hits", "threads --threads 1 8 32 --seconds 0.5", in_threads),
    "http": Figure("Hits", "http --rounds 3 --seconds 1", over_http),
    "l1-sizes": Figure("Hits", f"l1_sizes --sizes {' '.join(map(str, SIZES))}", by_size),
    "misses": Figure("Misses", "misses", cold_misses),
    "stampede": Figure("Misses", "stampede", crowd),
    "stampede-peers": Figure("Misses", "stampede --peers --readers 2000", crowd_beside_peers),
    "queries": Figure("Misses", "queries", for_a_trace),
    "warm": Figure("Misses", "warm --keys 1000", warming),
    "visible": Figure("Changes", "visible --rate 100", commit_to_seen),
    "coherence": Figure("Changes", "coherence --changes 2000 --pace 2000", gone_from_memory),
    "coherence-cost": Figure("Changes", "coherence_cost --rate 1000 --seconds 1 --rounds 2", price_of_coherence),
    "race": Figure("Changes", "race", overtaken),
    "outbox": Figure("Changes", "outbox --transactions 1000", watched),
    "huge-tag": Figure("Changes", "huge_tag --members 1000000", large_tag),
    "soak": Figure("Changes", "soak --operations 50000", everything_dies),
    "access-reports": Figure("Upkeep", "access_report_cost --quick", access_reports),
    "gc": Figure("Upkeep", "garbage_collection --members 1000000", collected),
}
