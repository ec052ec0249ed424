"""Benchmarks: what their numbers are made of."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path
from typing import Any

import pytest

from benchmarks import access_report_cost, garbage_collection, periods, report, simulation, traces, warming_bound
from benchmarks.history import Invalidate, Read
from benchmarks.snapshot_faults import Undone, check_with_undone
from cacheworkers.loader import Loader


def test_percentiles_are_values_that_were_seen() -> None:
    assert report.percentile(range(1, 101), 0.99) == 100
    assert report.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert report.percentile([], 0.99) == 0.0


def test_a_table_is_markdown_with_its_numbers_on_the_right() -> None:
    assert report.markdown(("what", "ns"), [("a hit", "95")]) == "| what | ns |\n|---|---:|\n| a hit | 95 |\n"


@pytest.mark.parametrize("members", [1000, 123_457, 1_000_000])
def test_the_swept_tags_have_the_members_that_were_asked_for(members: int) -> None:
    tags = dict(garbage_collection.tags_of(members))

    assert sum(tags.values()) == members
    assert tags["all"] == members // 2


def test_the_hit_without_counting_differs_by_that_line_alone() -> None:
    """The benchmark takes the library's own hit path apart, and fails when it no longer fits."""

    class Slot:
        reads = 0

    def hit(slot: Slot) -> int:
        slot.reads += 1
        return 7

    def counts_nothing(slot: Slot) -> int:
        return 7

    slot = Slot()

    assert access_report_cost.without_counting(hit)(slot) == 7
    assert slot.reads == 0
    assert access_report_cost.without_counting(Loader.get).__name__ == "get"
    with pytest.raises(ValueError, match="must have one line"):
        access_report_cost.without_counting(counts_nothing)


def scene(**options: Any) -> simulation.Scene:
    keys = traces.zipf(20_000, 200)
    return simulation.Scene(traces.Trace("small", keys), 60.0, 60.0, **{"lasts": 600.0, "hot": 20, **options})


def way(name: str) -> simulation.Way:
    return next(way for way in simulation.WAYS if way.name == name)


def test_simulated_readers_together_share_a_load() -> None:
    """A thousand readers of one key within a load's time: one load, and all but those after it wait."""
    crowd = simulation.Scene(traces.Trace("crowd", [7] * 1000), 60.0, 60.0, lasts=0.0005, writes=0.0, hot=1)

    alone = simulation.Replay(crowd, way("TTL, every reader loads")).play()
    shared = simulation.Replay(crowd, way("TTL, one load for all")).play()

    assert (alone.loads, alone.max_concurrent) == (1000, 1000)
    assert (shared.loads, shared.max_concurrent, shared.waits, shared.in_vain) == (1, 1, 100.0, 0)


def periods_of(entries: dict[str, tuple[float, float]]) -> periods.Periods:
    return periods.Periods(frozenset(["a"]), entries.get, lead=3.0)


@pytest.mark.parametrize(
    ("at", "lasted", "again"), [(150.0, 1.0, 0), (100.0, 1.0, 0), (98.0, 0.98, 0), (50.0, 0.5, 1)], ids=str
)
def test_a_period_ends_with_its_entry_or_counts_as_far_as_it_has_got(at: float, lasted: float, again: int) -> None:
    """A load that comes ahead, or twice, cuts the one before it short."""
    entries: dict[str, tuple[float, float]] = {}
    counted = periods_of(entries)
    counted.load("a", 0.0)
    entries["a"] = (0.0, 100.0)

    counted.load("a", at)
    counted.load("other", at)

    assert (counted.loads, counted.lasted, counted.again) == (2, lasted, again)


def test_an_invalidation_ends_a_period() -> None:
    entries = {"a": (0.0, 100.0)}
    counted = periods_of(entries)
    counted.load("a", 0.0)
    counted.invalidate("a")
    del entries["a"]

    counted.load("a", 10.0)

    assert (counted.loads_per_period, counted.again) == (2.0, 0)


def test_a_load_beside_another_one_is_in_mid_period() -> None:
    counted = periods_of({"a": (-100.0, 0.0)})
    counted.load("a", 0.0)

    counted.load("a", 0.01)

    assert (counted.loads, counted.lasted, counted.again) == (2, 0.0, 1)


def test_what_has_not_passed_at_the_end_counts_for_nothing() -> None:
    entries = {"a": (0.0, 100.0)}
    counted = periods_of(entries)
    counted.load("a", 0.0)

    counted.close(25.0)

    assert (counted.loads, counted.lasted, counted.again) == (0.25, 0.25, 0)


@pytest.mark.parametrize("name", ["TTL, one load for all", "SWR + early + warm"])
def test_no_hot_key_is_loaded_twice_in_a_period(name: str) -> None:
    """What warming has loaded no reader asks for early, and the other way round."""
    outcome = simulation.Replay(scene(writes=0.0), way(name)).play()

    assert outcome.again == 0
    assert outcome.loads_per_period < 1.05


def test_a_simulation_repeats_itself() -> None:
    first, second = (simulation.Replay(scene(), way("SWR + early + warm")).play() for _ in range(2))

    assert first == second


def test_simulated_warming_spares_hot_keys_their_stale_reads() -> None:
    """Without stale times nobody reads stale; with them, and warming, readers of hot keys hardly ever do."""
    plain, swr, warm = (
        simulation.Replay(scene(), way(name)).play() for name in ("TTL, one load for all", "SWR", "SWR + warm")
    )

    assert plain.stale == 0.0
    assert swr.stale_hot > 1.0 > 10 * warm.stale_hot
    assert swr.waits < plain.waits


def test_a_simulated_write_is_read_immediately() -> None:
    """An invalidation makes the next read wait for a load of its own, and drops what L1 holds."""
    unwritten = simulation.Replay(scene(writes=0.0), way("SWR + warm")).play()
    written = simulation.Replay(scene(writes=0.05), way("SWR + warm")).play()

    assert written.loads > unwritten.loads + 500
    assert written.waits > unwritten.waits


def test_workers_that_are_few_load_one_after_the_other() -> None:
    few = simulation.Replay(scene(workers=1), way("TTL, one load for all")).play()

    assert few.max_concurrent == 1


def test_a_recorded_trace_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "some.trace.xz").write_bytes(lzma.compress(struct.pack(">3i", 7, 1, 7)))
    (tmp_path / "some.longs.xz").write_bytes(lzma.compress(struct.pack(">2q", 1 << 40, 3)))

    assert traces.named(tmp_path / "some.trace.xz").counts == {7: 2, 1: 1}
    assert list(traces.named(tmp_path / "some.longs.xz").keys) == [1 << 40, 3]


@pytest.mark.parametrize(
    ("read", "is_stale"),
    [
        (Read("a", 1, 3.2, 3.3), True),
        (Read("a", 1, 3.9, 5.0), False),
        (Read("a", 1, 5.0, 5.1), False),
        (Read("a", 0, 5.0, 5.1), True),
        (Read("b", 1, 5.2, 5.3), True),
        (Read("a", 1, 6.1, 6.2), True),
        (Read("a", 1, 6.9, 6.9, "l1"), False),
        (Read("a", 1, 7.1, 7.1, "l1"), True),
    ],
    ids=[
        "before the death",
        "begun before, answered after",
        "before the replay",
        "older than the snapshot",
        "older than what the new server took",
        "after the replay",
        "from memory, soon after",
        "from memory, later",
    ],
)
def test_what_a_snapshot_undid_may_be_read_until_it_is_replayed(read: Read, is_stale: bool) -> None:
    undone = Undone(snapshot=2.0, killed=4.0, died=4.0, replayed=6.0)
    before, lost = Invalidate("a", 1.0, 1.1, 1), Invalidate("a", 3.0, 3.1, 2)

    found = check_with_undone([before, lost, Invalidate("b", 5.0, 5.1, 2), read], [undone], l1_for=1.0)

    assert [each.read for each in found] == [read] * is_stale


def test_a_rule_that_knows_more_leaves_no_more_stale_reads() -> None:
    """One key is read in each period, and a hundred are read twice: only their identity tells them apart at first."""
    times = {0: [60.0 * period for period in range(21)], **{key: [0.0, 60.0, 1200.0] for key in range(1, 101)}}

    found = warming_bound.bounds(times, frozenset([0]), 60.0)

    stale = [found[name].stale for name in warming_bound.KNOWLEDGE]
    assert stale[:2] == [0.0, 0.0]
    assert stale[2] > 0.0
    assert (
        found["the future"].loads
        == found["which keys are hot"].loads
        == 1.0
        < found["a count that halves in two periods"].loads
    )
