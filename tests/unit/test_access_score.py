"""AccessCounter: counts that find what is hot, in bounded memory."""

from __future__ import annotations

import collections
import random

from cacheworkers.core.entry import Entry
from cacheworkers.local.access_counter import AccessCounter
from cacheworkers.local.l1 import L1


def entry(call: str) -> Entry:
    return Entry(call, (), b"1", 0.0, 1e12, 1e12, 1e12, 0.0, 0.0, 0, b"12345678", b"")


def kept(l1: L1, call: str, reads: int) -> None:
    slot = l1.fill(call, entry=entry(call), value=1, until=1e12, guard=l1.guard(call))
    assert slot is not None
    slot.reads += reads


def test_reads_of_l1_and_of_the_store_are_added() -> None:
    heat, l1 = AccessCounter(), L1(10, 1 << 20)
    heat.count("a")
    heat.count("b", 2)
    kept(l1, "a", 5)

    assert heat.taken(l1.slots.values(), 10) == {"a": 6, "b": 2}
    assert heat.taken(l1.slots.values(), 10) == {}
    l1.slots["a"].reads += 1
    assert heat.taken(l1.slots.values(), 10) == {"a": 1}


def test_reads_of_a_slot_that_goes_are_not_lost() -> None:
    heat, l1 = AccessCounter(), L1(10, 1 << 20)
    l1.on_gone = heat.note_gone
    kept(l1, "a", 5)
    heat.taken(l1.slots.values(), 10)
    l1.slots["a"].reads += 3

    l1.drop("a")

    assert heat.taken(l1.slots.values(), 10) == {"a": 3}


def test_only_the_hottest_are_reported() -> None:
    heat = AccessCounter()
    for call, reads in (("a", 1), ("b", 3), ("c", 2)):
        heat.count(call, reads)

    assert heat.taken((), 2) == {"b": 3, "c": 2}


def test_memory_is_bounded_and_the_hottest_are_found() -> None:
    """A million reads of a Zipf stream over 200,000 calls, in room for 2,000: 95 of the true first 100."""
    chance = random.Random(1)
    weights = list(map(float, [1 / rank for rank in range(1, 200_001)]))
    calls = chance.choices(range(200_000), weights=weights, k=1_000_000)
    heat = AccessCounter(2000)
    most = 0
    for call in calls:
        heat.count(str(call))
        most = max(most, len(heat))

    hottest = {int(call) for call in heat.taken((), 100)}
    truth = {call for call, _ in collections.Counter(calls).most_common(100)}
    assert most <= 2001
    assert len(hottest & truth) >= 95


def test_reads_that_are_noted_are_counted_once() -> None:
    heat = AccessCounter()
    heat.reads += ["a", "b", "a"]
    heat.count_noted()
    heat.reads.append("a")

    assert heat.taken((), 10) == {"a": 3, "b": 1}
    assert not heat


def test_a_child_reports_only_its_own_reads() -> None:
    heat = AccessCounter()
    heat.count("a")
    heat.reads.append("b")

    heat.reset()

    assert heat.taken((), 10) == {}


def test_hits_of_l1_are_reported_once_by_loader_even_of_slots_that_have_gone() -> None:
    heat, l1 = AccessCounter(), L1(10, 1 << 20)
    l1.on_gone = heat.note_gone
    kept(l1, "product[1]", 5)
    kept(l1, "product[2]", 2)
    kept(l1, "search[1]", 1)
    heat.count("product[1]", 100)  # reads of the store are no hits of L1
    l1.drop("product[2]")

    heat.taken(l1.slots.values(), 10)

    assert heat.hits() == {"product": 7, "search": 1}
    assert heat.hits() == {}
