"""Each part of the protocol removed: the race that it is there for must be caught by its test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from typing import Any

import pytest
import test_protocol as races

from cacheworkers import Cache
from cacheworkers.flows import invalidate as invalidating
from cacheworkers.store import scripts
from cacheworkers.store.scripts import Script
from cacheworkers.store.shapes import Registered
from cacheworkers.store.store import Store


def edited(name: str, old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A script with one part changed."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        script: Script = getattr(scripts, name)
        assert old.encode() in script.source, f"{name} no longer has {old!r}"
        source = script.source.replace(old.encode(), new.encode())
        digest = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        patch.setattr(scripts, name, Script(script.name, source, digest))

    return mutate


def never_conflicts(patch: pytest.MonkeyPatch) -> None:
    register = Store.register

    def blind(self: Store, *args: Any, **kwargs: Any) -> Any:
        step = register(self, *args, **kwargs)
        shape = step._shape
        step._shape = lambda replies: [Registered(0, found.now) for found in shape(replies)]
        return step

    patch.setattr(Store, "register", blind)


def drains_only_its_own(patch: pytest.MonkeyPatch) -> None:
    doom = Store.doom

    def own(self: Store, tag: str, n: int) -> Any:
        step = doom(self, tag, n)
        shape = step._shape
        step._shape = lambda replies: [(shard, name) for shard, name in shape(replies) if f":{n}:" in name]
        return step

    patch.setattr(Store, "doom", own)


def removes_members_first(patch: pytest.MonkeyPatch) -> None:
    def drain(ports: Any, tag: str, shard: int, doomed: str, told: Any) -> Generator[Any, Any, int]:
        entries = 0
        while calls := (yield ports.store.doomed_chunk(doomed)):
            yield ports.store.drained(tag, shard, doomed, calls)
            entries += yield ports.store.drop(calls)
        return entries

    patch.setattr(invalidating, "drain", drain)


def leaves_the_lease(patch: pytest.MonkeyPatch) -> None:
    drop = Store.drop

    def entries_only(self: Store, calls: Any) -> Any:
        step = drop(self, calls)
        step._requests = step._requests[::2]
        step._shape = lambda replies: sum(map(int, replies))
        return step

    patch.setattr(Store, "drop", entries_only)


def claims_without_version(patch: pytest.MonkeyPatch) -> None:
    edited("CLAIM", "if version ~= seen then", "if false then")(patch)


def never_begins_again(patch: pytest.MonkeyPatch) -> None:
    edited("BEGIN", "if version ~= seen then", "if true then")(patch)


def forgets_to_raise_seq(patch: pytest.MonkeyPatch) -> None:
    edited("RAISE_SEQ", "if now < least then", "if false then")(patch)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[..., None]]] = {
    "no lease check at the write": (
        edited("WRITE", "if held[1] ~= fence or not is_here then", "if false then"),
        races.test_invalidation_between_register_and_write_breaks_the_lease,
    ),
    "a write does not ask where its load began": (
        edited("WRITE", 'held[2] == string.match(redis.call("INFO", "server"), "run_id:(%x+)")', "true"),
        races.test_load_that_began_on_another_server_registers_anew,
    ),
    "invalidator leaves the lease": (
        leaves_the_lease,
        races.test_invalidation_between_register_and_write_breaks_the_lease,
    ),
    "no v > s0 at registering": (
        never_conflicts,
        races.test_invalidation_between_load_and_register_is_seen_by_the_load,
    ),
    "drains only its own doomed set": (
        drains_only_its_own,
        races.test_second_invalidation_drains_what_the_first_put_aside,
    ),
    "members leave before deletion": (
        removes_members_first,
        races.test_crashed_invalidator_leaves_work_that_the_next_one_finishes,
    ),
    "a repeated doom reuses its name": (
        edited("DOOM", 'while redis.call("EXISTS", name) == 1 do', "while false do"),
        races.test_doom_sent_twice_puts_nothing_out_of_reach,
    ),
    "claim does not name the version": (
        claims_without_version,
        races.test_claim_names_the_version_that_was_seen,
    ),
    "a begun lease may be taken over": (
        edited("CLAIM", "is_begun == 1 or is_taken_over == 1", "is_taken_over == 1"),
        races.test_lease_that_has_begun_is_never_taken_over,
    ),
    "a lease may be taken over twice": (
        edited("CLAIM", "is_begun == 1 or is_taken_over == 1", "is_begun == 1"),
        races.test_lease_is_taken_over_once,
    ),
    "begin leaves when the lease is gone": (
        never_begins_again,
        races.test_begin_claims_again_when_an_invalidation_broke_the_lease,
    ),
    "soften does not look first": (
        edited("SOFTEN", "return 0\nend\nlocal time", 'head = string.rep("\\0", at + 16)\nend\nlocal time'),
        races.test_soften_of_a_missing_entry_creates_nothing,
    ),
    "no raise of seq": (
        forgets_to_raise_seq,
        races.test_lost_sequence_does_not_stop_loads_from_being_written,
    ),
    "a plain INCR": (
        edited("NEXT_SEQ", ", time[1] * 1000 + math.floor(time[2] / 1000))", ")"),
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
