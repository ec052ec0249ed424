"""L1: bounded by entries and by bytes, whoever fills and drops it; what is read stays, what changed goes."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from forked import in_child

from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.local.coherence import NEVER, Coherence
from cacheworkers.local.l1 import L1, MISSING, Slot

FOREVER = float("inf")
_numbers = itertools.count()


def entry(call: str, payload: bytes = b"1") -> Entry:
    return Entry(call, (), payload, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0, b"v" * 8, b"d" * 8)


def keep(l1: L1, call: str, payload: bytes = b"1", *, value: Any = MISSING, **options: Any) -> Slot | None:
    guard = options.pop("guard", l1.guard(call))
    return l1.fill(call, entry=entry(call, payload), value=value, until=FOREVER, guard=guard, **options)


def assert_consistent(l1: L1) -> None:
    """Every slot is in one queue, and all are counted."""
    assert l1._new.keys() | l1._main.keys() == l1.slots.keys()
    assert not l1._new.keys() & l1._main.keys()
    assert l1.bytes == sum(slot.size for slot in l1.slots.values())


@pytest.mark.parametrize("queue", ["slots", "_new"])
def test_a_fill_that_a_signal_s_handler_interrupts_does_not_break_its_call(queue: str) -> None:
    """Between the two places that a slot is put in, by Celery's soft time limit say: it is kept and dropped again."""
    l1 = L1(10, 1 << 20)
    keep(l1, "n[1]")
    del getattr(l1, queue)["n[1]"]

    keep(l1, "n[1]")
    l1.drop("n[1]")

    assert "n[1]" not in l1.slots


# -- bounds


def test_it_holds_so_many_entries_and_no_more() -> None:
    l1 = L1(3, 1 << 20)

    for n in range(10):
        keep(l1, f"n[{n}]")

    assert len(l1) == 3
    assert l1.evictions == 7
    assert_consistent(l1)


def test_it_holds_so_many_bytes_and_no_more() -> None:
    l1 = L1(1000, 20_000)

    for n in range(50):
        keep(l1, f"n[{n}]", b"x" * random.Random(n).randrange(1000))
        assert l1.bytes <= 20_000

    assert 5 < len(l1) < 20
    assert_consistent(l1)


@pytest.mark.parametrize("room", [(0, 1 << 20), (10, 0), (10, 8 * 1000)], ids=["no entries", "no bytes", "an eighth"])
def test_what_has_no_room_is_not_kept(room: tuple[int, int]) -> None:
    l1 = L1(*room)

    assert keep(l1, "n[1]") is None
    assert len(l1) == 0


def test_a_decoded_value_counts_beside_its_payload() -> None:
    """It is what takes the room: a tuple of numbers is six times as large as its JSON."""
    l1 = L1(10, 1 << 20)
    text, numbers = "x" * 1000, tuple(range(1000, 1200))
    payload = repr(list(numbers)).encode()

    sizes = [
        slot.size
        for slot in (
            keep(l1, "n[1]", payload),
            keep(l1, "n[1]", payload, value=text),
            keep(l1, "n[1]", payload, value=numbers),
        )
        if slot is not None
    ]

    assert sizes[1] - sizes[0] == sys.getsizeof(text)
    assert sizes[2] - sizes[0] == 6 * len(payload)


@pytest.mark.parametrize(("count", "length"), [(0, 0), (2, 20), (50, 40), (200, 200)])
def test_what_it_counts_is_no_less_than_what_it_takes(count: int, length: int) -> None:
    """By Python's own count; entries as they come from the store, with tags of their own."""
    l1 = L1(100_000, 1 << 20)
    tracemalloc.start()
    try:
        for n in itertools.count():
            tags = tuple(f"product:{n}:{at}".ljust(length, "x") for at in range(count))
            kept = msgspec.structs.replace(entry(f"n[{n}]", b"x" * 300), tags=tags)
            kept = envelope.unpack(envelope.pack(kept))
            l1.fill(kept.call, entry=kept, value=MISSING, until=FOREVER, guard=l1.guard(kept.call))
            if l1.evictions:
                break
        del kept, tags
        taken = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, each) for each in ("*/local/l1.py", "*/core/envelope.py", "*/core/entry.py")]
        )
    finally:
        tracemalloc.stop()

    assert 0 < sum(each.size for each in taken.statistics("filename")) <= l1.bytes <= 1 << 20


def test_a_value_that_is_decoded_later_counts_too() -> None:
    l1 = L1(10, 1 << 20)
    before, with_value = keep(l1, "n[1]", b"[1,2]"), keep(l1, "n[2]", b"[1,2]", value=(1, 2))
    assert before is not None and with_value is not None

    l1.keep_value(before, (1, 2))
    l1.keep_value(before, (1, 2))  # of another thread, which has decoded it as well

    assert before.value == (1, 2)
    assert before.size == with_value.size
    assert_consistent(l1)


def test_what_is_decoded_later_makes_room_for_itself() -> None:
    l1 = L1(1000, 20_000)
    for n in range(50):
        keep(l1, f"n[{n}]", b"x" * 100)

    for slot in list(l1.slots.values()):
        slot.reads += 1
        l1.keep_value(slot, "x" * 1000)

    assert {slot.until for slot in l1.slots.values()} == {FOREVER}
    assert {len(slot.value) for slot in l1.slots.values()} == {1000}
    assert l1.bytes <= 20_000
    assert_consistent(l1)


def test_a_value_that_has_no_room_is_not_shared() -> None:
    l1 = L1(10, 16_000)
    slot = keep(l1, "n[1]")
    assert slot is not None

    l1.keep_value(slot, "x" * 2000)

    assert slot.value is MISSING
    assert_consistent(l1)


def test_a_value_of_what_has_gone_is_not_counted() -> None:
    l1 = L1(10, 1 << 20)
    gone = keep(l1, "n[1]")
    assert gone is not None
    l1.drop("n[1]")

    l1.keep_value(gone, "x")

    assert l1.bytes == 0


def test_many_are_kept_but_for_those_that_a_push_has_overtaken() -> None:
    l1, index = L1(300, 1 << 20), dict[Any, Slot]()
    calls = [f"n[{n}]" for n in range(250)]
    guards = [l1.guard(call) for call in calls]
    l1.drop("n[7]")
    l1.drop("n[242]")

    kept = l1.fill_each([Slot(call, entry(call), 1, FOREVER, (call,)) for call in calls], guards, index)

    left = {call for call in calls if l1.guard(call) == guards[calls.index(call)]}
    assert calls[7] not in left and calls[242] not in left  # a call may share another's bucket
    assert kept == len(left) and set(l1.slots) == left
    assert {call for (call,) in index} == left
    assert_consistent(l1)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32])
def test_bounds_hold_whoever_fills_and_drops_it(count: int) -> None:
    """Threads fill, read, drop, clear, evict; at no time is there more than may be, and at the end nothing is lost."""
    most_entries, most_bytes, calls = 40, 60_000, [f"n[{n}]" for n in range(200)]
    l1, index, gone = L1(most_entries, most_bytes), dict[Any, Slot](), list[Slot]()
    l1.on_gone = gone.append
    over: list[tuple[int, int]] = []
    filled = [0] * count
    rounds = 20_000 // count

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(rounds):
            call = chance.choice(calls)
            act = chance.random()
            if act < 0.1:
                slots = [Slot(each, entry(each), MISSING, FOREVER, (each,)) for each in chance.sample(calls, 5)]
                filled[number] += l1.fill_each(slots, [l1.guard(slot.call) for slot in slots], index)
            elif act < 0.2:
                decoded = l1.get(call)
                if decoded is not None:
                    l1.keep_value(decoded, "x" * chance.randrange(3000))
            elif act < 0.7:
                payload = b"x" * chance.randrange(3000)
                filled[number] += keep(l1, call, payload, index=index, arguments=(call,)) is not None
            elif act < 0.9:
                slot = index.get((call,))
                if slot is not None and slot.until > 0:
                    slot.reads += 1
            elif act < 0.999:
                l1.drop(call)
            else:
                l1.clear()
            if len(l1) > most_entries or l1.bytes > most_bytes:
                over.append((len(l1), l1.bytes))

    together(count, work)

    assert over == []
    assert_consistent(l1)
    assert sum(filled) == len(l1) + len(gone)
    assert len(set(map(id, gone))) == len(gone)
    assert {slot for slot in index.values()} == set(l1.slots.values())
    assert {slot.until for slot in gone} == {NEVER}


# -- who stays


def test_what_is_read_stays_and_what_is_read_once_goes() -> None:
    l1 = L1(10, 1 << 20)
    hot = keep(l1, "hot[1]")
    assert hot is not None

    for n in range(100):
        hot.reads += 1
        keep(l1, f"scan[{n}]")

    assert l1.get("hot[1]") is hot


def scan(l1: L1) -> None:
    """Keep so much that is never read that nothing unread of before is left."""
    for _ in range(30):
        keep(l1, f"scan[{next(_numbers)}]")


def test_what_comes_back_soon_after_it_went_unread_outlives_what_is_new() -> None:
    l1 = L1(10, 1 << 20)
    keep(l1, "back[1]")
    for n in range(10):
        keep(l1, f"n[{n}]")
    assert l1.get("back[1]") is None

    keep(l1, "back[1]")
    scan(l1)

    assert l1.get("back[1]") is not None


def test_what_is_dropped_by_a_push_and_loaded_again_is_no_newcomer() -> None:
    l1 = L1(10, 1 << 20)
    slot = keep(l1, "hot[1]")
    assert slot is not None
    slot.reads += 2
    l1.drop("hot[1]")

    keep(l1, "hot[1]")
    scan(l1)

    assert l1.get("hot[1]") is not None


def test_a_newer_version_keeps_what_its_reads_have_earned() -> None:
    l1 = L1(10, 1 << 20)
    slot = keep(l1, "hot[1]")
    assert slot is not None
    slot.reads += 2

    keep(l1, "hot[1]")
    scan(l1)

    assert l1.get("hot[1]") is not None


# -- what changed


def test_a_push_refuses_the_fill_that_it_overtakes() -> None:
    l1 = L1(10, 1 << 20)
    guard = l1.guard("n[1]")
    l1.drop("n[1]")

    assert keep(l1, "n[1]", guard=guard) is None
    assert keep(l1, "n[1]") is not None


@pytest.mark.parametrize("refuse", [L1.clear, L1.bump_all, L1.reset])
def test_a_loss_a_return_and_a_fork_refuse_every_fill_that_has_begun(refuse: Callable[[L1], None]) -> None:
    l1 = L1(10, 1 << 20)
    guard = l1.guard("n[1]")
    refuse(l1)

    assert keep(l1, "n[1]", guard=guard) is None


@pytest.mark.parametrize(
    "lose",
    [
        lambda l1: l1.drop("n[1]"),
        lambda l1: l1.clear(),
        lambda l1: l1.reset(),
        lambda l1: keep(l1, "n[1]", b"2"),
        lambda l1: [keep(l1, f"other[{n}]") for n in range(3)],
    ],
    ids=["push", "gap", "fork", "newer", "eviction"],
)
def test_a_slot_that_is_gone_answers_nobody_who_still_holds_it(lose: Callable[[L1], Any]) -> None:
    """A reader may hold it, and the loader's fast path leads to it."""
    l1, index = L1(2, 1 << 20), dict[Any, Slot]()
    slot = keep(l1, "n[1]", index=index, arguments=(1,))
    assert slot is not None and index == {(1,): slot}

    lose(l1)

    assert slot.until == NEVER
    assert index == {}


def test_who_is_reported_what_went_may_use_it_again() -> None:
    """It is reported outside the lock."""
    l1 = L1(1, 1 << 20)
    l1.on_gone = lambda slot: l1.drop("another[1]")

    keep(l1, "n[1]")
    keep(l1, "n[2]")
    l1.drop("n[2]")
    keep(l1, "n[3]")
    l1.clear()

    assert len(l1) == 0


# -- forks


def test_a_child_forgets_even_what_its_parent_was_in_the_middle_of() -> None:
    l1 = L1(10, 1 << 20)
    keep(l1, "n[1]")
    with l1._lock:
        code = in_child(lambda: _begins_again(l1))

    assert code == 0
    assert len(l1) == 1


def _begins_again(l1: L1) -> None:
    l1.reset()
    assert len(l1) == l1.bytes == 0
    assert keep(l1, "n[2]") is not None
    assert_consistent(l1)


def test_a_child_of_a_fork_answers_only_after_proof_of_its_own() -> None:
    coherence = Coherence()
    coherence.bypass()
    coherence.prove(1.0)
    coherence.reset()

    assert (coherence.usable_at, coherence.lost_at, coherence.is_coherent) == (NEVER, NEVER, False)
    coherence.prove(2.0)
    assert coherence.usable_at == 2.0


# -- the gate


def test_the_gate_is_open_only_while_nobody_bypasses_it() -> None:
    """Two loads together: the first to end leaves it closed; what was received meanwhile counts after the second."""
    coherence = Coherence()
    coherence.prove(1.0)
    coherence.bypass()
    coherence.bypass()
    coherence.unbypass()
    coherence.prove(2.0)
    closed = coherence.usable_at
    coherence.unbypass()

    assert (closed, coherence.usable_at) == (NEVER, 2.0)


def test_a_loss_while_bypassed_leaves_the_gate_closed() -> None:
    coherence = Coherence()
    coherence.prove(1.0)
    coherence.bypass()
    coherence.lost(3.0)
    coherence.unbypass()

    assert (coherence.usable_at, coherence.lost_at) == (NEVER, 3.0)


def test_only_a_link_that_was_up_is_lost() -> None:
    """What is kept after a loss is served for a time that counts from there, however often connecting fails."""
    coherence = Coherence()
    coherence.lost(1.0)
    assert coherence.lost_at == NEVER
    coherence.prove(2.0)
    coherence.lost(3.0)
    coherence.lost(4.0)

    assert coherence.lost_at == 3.0


# -- threads and children


def together(count: int, work: Callable[[int], None]) -> None:
    """Run work in a number of threads that begin together."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait(60)
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
