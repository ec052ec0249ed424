"""Two releases or two settings side by side, as states: what a process loads for itself, and tags in more shards.

As in `protocol.py` each step is one script or one statement; a mutant is the protocol with one part left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec.structs import replace

T = TypeVar("T")

# -- own loads: the store has an entry of another release, and this process keeps its own value beside it


@dataclass(frozen=True)
class Own:
    """Which parts own loads have."""

    snapshot_before_load: bool = True
    registers: bool = True
    compares_after_register: bool = True
    keeps_beside_what_was_found: bool = True
    is_bound_to_the_version: bool = True


class OwnState(msgspec.Struct, frozen=True, cache_hash=True):
    """One call.  Both releases' values have the tag `all`, this release's has `own` besides.

    Attributes:
        rows: version of what is read under each tag.
        marks, are_members: of each tag: number of its last invalidation; whether the call is in its set.
        lease: fence of the other release's load; 0 for none.
        entry: what the other release's entry has read under `all`, and its version; None for no entry.
        own: what this process has read under each tag, and the version that it keeps it beside.
        at, found, snapshot, read: of this process's load.
        their_load: step, fence, snapshot and what was read, of the other release's.
        left: invalidations to come, each of a tag; the one under way: tag, step, what was committed, its number.
        acknowledged: of each tag, the version that no read may be older than.
    """

    rows: tuple[int, int] = (0, 0)
    seq: int = 0
    marks: tuple[int, int] = (0, 0)
    are_members: tuple[bool, bool] = (True, False)
    lease: int = 0
    entry: tuple[int, int] | None = (0, 1)
    versions: int = 1
    own: tuple[tuple[int, int], int] | None = None
    at: str = "look"
    found: int = 0
    snapshot: int = 0
    read: tuple[int, int] = (0, 0)
    own_loads: int = 2
    their_load: tuple[str, int, int, int] = ("claim", 0, 0, 0)
    left: tuple[int, ...] = (0, 1)
    under_way: tuple[int, str, int, int] | None = None
    acknowledged: tuple[int, int] = (0, 0)


ALL, OWN = 0, 1


def serves_old(state: OwnState) -> bool:
    """Return whether a read of either release would be older than an acknowledged invalidation."""
    if state.entry is None:
        return False
    value, version = state.entry
    own, beside = state.own or (state.rows, version)
    is_old = own[ALL] < state.acknowledged[ALL] or own[OWN] < state.acknowledged[OWN]
    return value < state.acknowledged[ALL] or (beside in (version, ANY) and is_old)


#: A version that fits every entry.
ANY = -1


def own_steps(protocol: Own, state: OwnState) -> Iterator[tuple[str, OwnState]]:
    """Yield what may happen next, and the state after it."""
    yield from _own_load(protocol, state)
    yield from _their_load(state)
    yield from _invalidation(state)


def _own_load(protocol: Own, state: OwnState) -> Iterator[tuple[str, OwnState]]:
    first, second = ("snapshot", "load") if protocol.snapshot_before_load else ("load", "snapshot")
    match state.at:
        case "look" if state.entry is not None and state.own_loads:
            yield "own: look", replace(state, at=first, found=state.entry[1], own_loads=state.own_loads - 1)
        case "snapshot":
            following = second if first == "snapshot" else "register"
            yield "own: snapshot", replace(state, at=following, snapshot=state.seq)
        case "load":
            following = second if first == "load" else "register"
            yield "own: load", replace(state, at=following, read=state.rows)
        case "register":
            is_overtaken = protocol.compares_after_register and max(state.marks) > state.snapshot
            members = (True, True) if protocol.registers else state.are_members
            yield "own: register", replace(state, are_members=members, at="look" if is_overtaken else "keep")
        case "keep":
            beside = state.found if protocol.keeps_beside_what_was_found else (state.entry or (0, 0))[1]
            beside = beside if protocol.is_bound_to_the_version else ANY
            yield "own: keep", replace(state, own=(state.read, beside), at="look")


def _their_load(state: OwnState) -> Iterator[tuple[str, OwnState]]:
    at, fence, snapshot, read = state.their_load
    match at:
        case "claim" if state.entry is None and not state.lease:
            fence = state.versions + 1
            yield "theirs: claim", replace(state, lease=fence, versions=fence, their_load=("snapshot", fence, 0, 0))
        case "snapshot":
            yield "theirs: snapshot", replace(state, their_load=("load", fence, state.seq, 0))
        case "load":
            yield "theirs: load", replace(state, their_load=("register", fence, snapshot, state.rows[ALL]))
        case "register":
            members = (True, state.are_members[OWN])
            following = "snapshot" if state.marks[ALL] > snapshot else "write"
            yield "theirs: register", replace(state, are_members=members, their_load=(following, fence, snapshot, read))
        case "write":
            after = replace(state, their_load=("claim", 0, 0, 0))
            yield "theirs: write", replace(after, entry=(read, fence), lease=0) if state.lease == fence else after


def _invalidation(state: OwnState) -> Iterator[tuple[str, OwnState]]:
    if state.under_way is None:
        for tag in state.left:
            committed = state.rows[tag] + 1
            left = tuple(each for each in state.left if each != tag)
            after = replace(state, rows=_put(state.rows, tag, committed), left=left)
            yield f"commit {tag}", replace(after, under_way=(tag, "number", committed, 0))
        return
    tag, at, committed, number = state.under_way
    match at:
        case "number":
            yield "number", replace(state, seq=state.seq + 1, under_way=(tag, "detach", committed, state.seq + 1))
        case "detach":
            following = "drop the lease" if state.are_members[tag] else "acknowledge"
            after = replace(
                state, marks=_put(state.marks, tag, number), are_members=_put(state.are_members, tag, False)
            )
            yield "detach", replace(after, under_way=(tag, following, committed, number))
        case "drop the lease":
            yield "drop the lease", replace(state, lease=0, under_way=(tag, "drop the entry", committed, number))
        case "drop the entry":
            yield "drop the entry", replace(state, entry=None, under_way=(tag, "acknowledge", committed, number))
        case "acknowledge":
            yield "acknowledge", replace(state, acknowledged=_put(state.acknowledged, tag, committed), under_way=None)


# -- shards: a process keeps a tag in two shards, an invalidating one knows of one, and a third has one


@dataclass(frozen=True)
class Shards:
    """Which parts there are."""

    declares: bool = True
    declares_before_snapshot: bool = True
    is_never_lowered: bool = True
    learns: bool = True
    learns_after_commit: bool = True


class ShardsState(msgspec.Struct, frozen=True, cache_hash=True):
    """One call, in the second of its tag's two shards.

    Attributes:
        declared: number of shards that the store knows of.
        marks, are_members: of each shard.
        load: step, fence, snapshot and what was read.
        others: how often a process with one shard may still declare that.
        invalidation: step, number of shards it knows, its number, shards to drop from.
    """

    row: int = 0
    seq: int = 0
    declared: int = 1
    marks: tuple[int, int] = (0, 0)
    are_members: tuple[bool, bool] = (False, False)
    lease: int = 0
    fences: int = 0
    entry: int | None = None
    load: tuple[str, int, int, int] = ("claim", 0, 0, 0)
    loads: int = 2
    others: int = 1
    invalidation: tuple[str, int, int] = ("commit", 1, 0)
    acknowledged: int = 0


SHARD = 1


def is_old(state: ShardsState) -> bool:
    """Return whether a read would be older than the acknowledged invalidation."""
    return state.entry is not None and state.entry < state.acknowledged


def shards_steps(protocol: Shards, state: ShardsState) -> Iterator[tuple[str, ShardsState]]:
    """Yield what may happen next, and the state after it."""
    yield from _sharded_load(protocol, state)
    if state.others:
        declared = state.declared if protocol.is_never_lowered else 1
        yield "another process declares 1", replace(state, declared=declared, others=state.others - 1)
    yield from _sharded_invalidation(protocol, state)


def _sharded_load(protocol: Shards, state: ShardsState) -> Iterator[tuple[str, ShardsState]]:
    order = ["claim", "declare", "snapshot", "load", "register", "write"]
    if not protocol.declares_before_snapshot:
        order = ["claim", "snapshot", "load", "declare", "register", "write"]
    at, fence, snapshot, read = state.load
    following = dict(itertools.pairwise(order)).get(at, "")
    match at:
        case "claim" if not state.lease and state.loads:
            fence = state.fences + 1
            claimed = replace(state, lease=fence, fences=fence, loads=state.loads - 1)
            yield "claim", replace(claimed, load=(following, fence, 0, 0))
        case "declare":
            declared = 2 if protocol.declares else state.declared
            yield "declare 2", replace(state, declared=declared, load=(following, fence, snapshot, read))
        case "snapshot":
            yield "snapshot", replace(state, load=(following, fence, state.seq, read))
        case "load":
            yield "load", replace(state, load=(following, fence, snapshot, state.row))
        case "register":
            members = _put(state.are_members, SHARD, True)
            is_overtaken = state.marks[SHARD] > snapshot
            yield (
                "register",
                replace(
                    state, are_members=members, load=(order[1] if is_overtaken else following, fence, snapshot, read)
                ),
            )
        case "write":
            after = replace(state, load=("claim", 0, 0, 0))
            yield "write", replace(after, entry=read, lease=0) if state.lease == fence else after


def _sharded_invalidation(protocol: Shards, state: ShardsState) -> Iterator[tuple[str, ShardsState]]:
    at, known, number = state.invalidation
    learnt = state.declared if protocol.learns else 1
    match at:
        case "commit":
            yield "commit", replace(state, row=1, invalidation=("number", 1, 0))
            if not protocol.learns_after_commit:
                yield "learn, commit", replace(state, row=1, invalidation=("number", learnt, 0))
        case "number":
            following = "learn" if protocol.learns_after_commit else "detach 0"
            yield "number", replace(state, seq=state.seq + 1, invalidation=(following, known, state.seq + 1))
        case "learn":
            yield "learn", replace(state, invalidation=("detach 0", learnt, number))
        case "detach 0" | "detach 1":
            shard = int(at[-1])
            following = "drop" if state.are_members[shard] else "detach 1" if shard + 1 < known else "acknowledge"
            after = replace(
                state, marks=_put(state.marks, shard, number), are_members=_put(state.are_members, shard, False)
            )
            yield (
                at,
                replace(
                    after, invalidation=(f"{following} {shard}" if following == "drop" else following, known, number)
                ),
            )
        case "drop 0" | "drop 1":
            shard = int(at[-1])
            dropped = replace(state, lease=0, entry=None)
            yield at, replace(dropped, invalidation=("detach 1" if shard + 1 < known else "acknowledge", known, number))
        case "acknowledge":
            yield "acknowledge", replace(state, acknowledged=1, invalidation=("", known, number))


def _put(pair: tuple[T, T], at: int, value: T) -> tuple[T, T]:
    return (value, pair[1]) if at == 0 else (pair[0], value)
