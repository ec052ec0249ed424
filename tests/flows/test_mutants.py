"""Each part of the protocol removed: the race that it is there for must be caught by its test."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import test_memory as memory
import test_protocol as races
from mutation import Mutation, python, script

from cacheworkers import Cache
from cacheworkers.core import entry_state
from cacheworkers.flows import garbage_collection, local_load, write_loaded
from cacheworkers.flows import invalidate as invalidating
from cacheworkers.flows import read as reading
from cacheworkers.local.l1 import L1
from cacheworkers.runtime.loader_base import LoaderBase
from cacheworkers.store.commands.replies import DetachedSet, Registered
from cacheworkers.store.commands.store import Store


def never_conflicts(patch: pytest.MonkeyPatch) -> None:
    register = Store.register

    def blind(self: Store, *args: Any, **kwargs: Any) -> Any:
        step = register(self, *args, **kwargs)
        parse = step._parse
        step._parse = lambda replies: [Registered(0, found.now) for found in parse(replies)]
        return step

    patch.setattr(Store, "register", blind)


def drains_only_its_own(patch: pytest.MonkeyPatch) -> None:
    detach = Store.detach

    def own(self: Store, tags: Any, n: int) -> Any:
        step = detach(self, tags, n)
        parse = step._parse
        step._parse = lambda replies: [each for each in parse(replies) if f":{n}:" in each.name]
        return step

    patch.setattr(Store, "detach", own)


def removes_members_first(patch: pytest.MonkeyPatch) -> None:
    def drain(ports: Any, sets: list[DetachedSet], progress: Any) -> Generator[Any, Any, int]:
        entries = 0
        while sets:
            calls = [call for each in sets for call in each.calls]
            sets = yield ports.store.drained(sets)
            entries += yield ports.store.drop(calls)
        return entries

    patch.setattr(invalidating, "drain", drain)


def leaves_the_lease(patch: pytest.MonkeyPatch) -> None:
    drop = Store.drop

    def entries_only(self: Store, calls: Any) -> Any:
        step = drop(self, calls)
        step._requests = step._requests[1::2]
        step._parse = lambda replies: sum(map(int, replies))
        return step

    patch.setattr(Store, "drop", entries_only)


def drops_entries_first(patch: pytest.MonkeyPatch) -> None:
    drop = Store.drop

    def swapped(self: Store, calls: Any) -> Any:
        step = drop(self, calls)
        step._requests = step._requests[::-1]
        return step

    patch.setattr(Store, "drop", swapped)


def claims_without_version(patch: pytest.MonkeyPatch) -> None:
    script("CLAIM", "if version ~= seen then", "if false then")(patch)


def never_begins_again(patch: pytest.MonkeyPatch) -> None:
    script("BEGIN", "if version ~= seen then", "if true then")(patch)


def forgets_to_raise_seq(patch: pytest.MonkeyPatch) -> None:
    script("RAISE_SEQ", "if now < least then", "if false then")(patch)


MUTANTS: dict[str, tuple[Mutation, Callable[..., None]]] = {
    "no lease check at the write": (
        script("WRITE", "if holder ~= fence or not is_here then", "if false then"),
        races.test_invalidation_between_register_and_write_breaks_the_lease,
    ),
    "a write does not ask where its load began": (
        script("WRITE", 'held[2] == string.match(redis.call("INFO", "server"), "run_id:(%x+)")', "true"),
        races.test_load_that_began_on_another_server_registers_again,
    ),
    "a drop deletes entries first": (
        drops_entries_first,
        races.test_write_between_the_two_halves_of_a_drop_is_refused,
    ),
    "invalidator leaves the lease": (
        leaves_the_lease,
        races.test_invalidation_between_register_and_write_breaks_the_lease,
    ),
    "no v > s0 at registering": (
        never_conflicts,
        races.test_invalidation_between_load_and_register_is_seen_by_the_load,
    ),
    "drains only its own detached set": (
        drains_only_its_own,
        races.test_second_invalidation_drains_what_the_first_put_aside,
    ),
    "members leave before deletion": (
        removes_members_first,
        races.test_crashed_invalidator_leaves_work_that_the_next_one_finishes,
    ),
    "a repeated detach reuses its name": (
        script("DETACH", 'while redis.call("EXISTS", free) == 1 do', "while false do"),
        races.test_detach_sent_twice_puts_nothing_out_of_reach,
    ),
    "claim does not name the version": (
        claims_without_version,
        races.test_claim_names_the_version_that_was_seen,
    ),
    "a begun lease may be taken over": (
        script("CLAIM", "is_begun == 1 or is_taken_over == 1", "is_taken_over == 1"),
        races.test_lease_that_has_begun_is_never_taken_over,
    ),
    "a lease may be taken over twice": (
        script("CLAIM", "is_begun == 1 or is_taken_over == 1", "is_begun == 1"),
        races.test_lease_is_taken_over_once,
    ),
    "a warm lease is held before it begins": (
        script("CLAIM", "marks[3] and not warms or holder == expected", "holder == expected"),
        races.test_who_does_not_warm_takes_a_warm_lease_immediately,
    ),
    "who warms takes what another warms": (
        script("CLAIM", "marks[3] and not warms", "marks[3]"),
        races.test_who_warms_takes_nothing,
    ),
    "who warms takes any lease": (
        script("CLAIM", "marks[3] and not warms", "warms"),
        races.test_claims_of_warm_leases_may_be_sent_twice,
    ),
    "a warm lease that has begun is taken": (
        script("CLAIM", "is_begun == 1 or is_taken_over == 1", "(is_begun == 1 and not marks[3])"),
        races.test_a_warm_lease_that_has_begun_is_held_as_any_other,
    ),
    "what was taken stays warm": (
        script("CLAIM", 'redis.call("DEL", lease)', ""),
        races.test_who_warms_takes_nothing,
    ),
    "a warm lease is taken over without a mark": (
        script("CLAIM", "if holder and holder == expected then", "if false then"),
        races.test_a_warm_lease_that_is_taken_over_to_be_loaded_here_is_taken_over_once,
    ),
    "begin leaves when the lease is gone": (
        never_begins_again,
        races.test_begin_claims_again_when_an_invalidation_broke_the_lease,
    ),
    "soften does not look first": (
        script("SOFTEN", "return 0\nend\nlocal time", 'head = string.rep("\\0", at + 16)\nend\nlocal time'),
        races.test_soften_of_a_missing_entry_creates_nothing,
    ),
    "no raise of seq": (
        forgets_to_raise_seq,
        races.test_lost_sequence_does_not_stop_loads_from_being_written,
    ),
    "a shorter life shortens a membership": (
        script("REGISTER", '"GT", ', ""),
        races.test_a_short_life_does_not_end_the_membership_of_a_longer_one,
    ),
    "a membership has no margin": (
        python(Store, "register", "milliseconds(life + load_for + REGISTRATION_MARGIN)", "milliseconds(life)"),
        races.test_membership_outlasts_the_entry_by_more_than_a_load,
    ),
    "a garbage collection takes members that have not expired": (
        script("TRIM_TAG", 'string.format("(%.0f", now_ms)', '"+inf"'),
        races.test_a_member_whose_write_is_still_to_come_outlives_a_sweep,
    ),
    "a garbage collection takes every mark": (
        script("TRIM_TAG", "tonumber(mark) < now_ms - kept_for_ms", "true"),
        races.test_the_mark_of_an_invalidation_outlives_a_sweep,
    ),
    "a soft invalidation takes members out": (
        python(
            invalidating,
            "_soften_in_place",
            "progress(len(calls))",
            "calls and ports.store.link.client().zrem(ports.store.keys.tag_set(*walks[0][:2]), *calls)",
        ),
        races.test_soft_invalidation_leaves_the_entry_findable_by_a_hard_one,
    ),
    "a soft invalidation leaves what a hard one began": (
        python(invalidating, "_detach_or_soften", "detached = yield ports.store.detached_sets(chunk)", "detached = []"),
        races.test_soft_invalidation_finishes_a_hard_one_that_died,
    ),
    "a soft invalidation leaves no mark": (
        lambda patch: patch.setattr(Store, "mark_tags", lambda self, tags, n: self.tag_size(tags[0])),
        races.test_load_overtaken_by_a_soft_invalidation_is_not_stored_as_fresh,
    ),
    "a soft invalidation leaves the lease": (
        script("SOFTEN", 'redis.call("DEL", lease, failures)', 'redis.call("DEL", failures)'),
        races.test_load_that_has_registered_before_a_soft_invalidation_is_not_stored_as_fresh,
    ),
    "softened by no margin": (
        script("SOFTEN", "now_ms - margin_ms", "now_ms"),
        races.test_a_process_whose_clock_is_behind_does_not_find_fresh_what_was_softened,
    ),
    "a garbage collection leaves what an invalidation began": (
        python(
            garbage_collection,
            "_finish",
            "job.entries += yield from drain(job.ports, [DetachedSet(tag, shard, name)], is_over=job.is_over)",
            "pass",
        ),
        races.test_sweep_finishes_an_invalidation_whose_process_died,
    ),
    "a refused write is not tried again": (
        python(
            write_loaded,
            "write",
            "yield from _claim_again(ports, loader, pending, entry.call)",
            "del pending[entry.call]",
        ),
        races.test_invalidation_between_register_and_write_breaks_the_lease,
    ),
    "a fill has no guard": (
        python(L1, "_insert", "!= guard", "< 0"),
        races.test_racing_push_wins_over_a_fill,
    ),
    "the quick way is never early": (
        python(reading, "fresh_entry", "if now >= early_at:", "if False:"),
        memory.test_the_quick_way_leaves_an_early_revalidation_to_the_flow,
    ),
    "the quick way heeds no since": (
        python(entry_state, "entry_state", "entry.seq < since or ", ""),
        memory.test_since_by_the_quick_way,
    ),
    "the flow heeds no since": (
        python(entry_state, "entry_state", "entry.seq < since or ", ""),
        memory.test_since_by_the_flow,
    ),
    "a peek heeds no since": (
        python(entry_state, "entry_state", "entry.seq < since or ", ""),
        memory.test_since_of_a_peek,
    ),
    "memory heeds no since": (
        python(LoaderBase, "_slot", " and slot.entry.seq >= self._since", ""),
        memory.test_since_from_memory,
    ),
    "memory without a store heeds no since": (
        python(local_load, "kept", " or slot.entry.seq < since", ""),
        memory.test_since_of_what_memory_has_kept_while_the_store_is_away,
    ),
    "a ping refuses no fill that has begun": (
        python(L1, "bump_all", "self._epoch += 1", "pass"),
        memory.test_what_was_read_before_an_invalidation_here_is_not_kept_after_it,
    ),
    "a listener that comes back empties nothing": (
        python(L1, "clear", "gone = list(self.slots.values())", "gone = []"),
        memory.test_memory_is_emptied_when_the_listener_comes_back,
    ),
    "an invalidation does not wait for its pushes": (
        python(invalidating, "receive_own_push", "not (yield ports.listener.barrier(BARRIER_FOR))", "(yield from ())"),
        memory.test_an_invalidation_waits_until_its_own_process_has_received_it,
    ),
    "a silent listener is believed": (
        python(LoaderBase, "_slot", " and now - self._coherence.proven_at < self._l1_for", ""),
        memory.test_memory_does_not_answer_once_a_ping_is_overdue,
    ),
    "a plain INCR": (
        script("NEXT_SEQ", ", time[1] * 1000 + math.floor(time[2] / 1000))", ")"),
        races.test_number_of_an_invalidation_exceeds_any_snapshot_after_seq_is_lost,
    ),
}


@pytest.mark.parametrize("part", MUTANTS)
def test_removed_part_is_missed(part: str, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race's own test fails on a library without the part."""
    mutate, race = MUTANTS[part]
    shop = races.Shop(cache)
    mutate(monkeypatch)

    with pytest.raises((AssertionError, ValueError)):
        race(shop)


def test_a_mutation_that_no_longer_fits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a part would be taken for needed, though nothing was removed."""
    with pytest.raises(AssertionError, match="0 times"):
        python(reading, "fresh_hit", "what is not there", "")(monkeypatch)
    with pytest.raises(AssertionError, match="no longer has"):
        script("DETACH", "what is not there", "")(monkeypatch)


def test_snapshot_after_the_load_is_missed(cache: Cache) -> None:
    """Taken after the load, an old row would be stored as current."""
    shop = races.Shop(cache)
    load = shop.loader().until("load ")
    value = load._step.run()
    shop.price = 2
    shop.invalidator().finish()
    late = shop.ports.store.snapshot().run()

    assert value == {"product[1]": 1}
    assert late.seq > 0, "a snapshot taken now would hide the invalidation from this load"
    load._advance(lambda: load._flow.send(value))
    load.finish()

    assert shop.stored() == (2, "fresh")
