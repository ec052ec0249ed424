"""Invalidate: number, mark, drain or soften, and wait until this process has heard of it.

Once `invalidate` has returned, no read through the store returns a value whose load began before it began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from cacheworkers.core.driver import Flow
from cacheworkers.errors import InvalidationIncomplete, StoreError
from cacheworkers.events import Invalidated
from cacheworkers.flows.ports import Ports
from cacheworkers.store.commands.replies import Doomed

Mode = Literal["hard", "soft", "reload"]
#: Called with how many members an invalidation has gone through so far; must be quick, and must not raise.
Progress = Callable[[int], None]

#: How long to wait for this process's listener to hear of an invalidation before L1 is emptied instead, seconds.
BARRIER_FOR = 1.0


class Invalidation(msgspec.Struct, frozen=True):
    """An acknowledged invalidation.

    Attributes:
        seq: its number; `loader.since(done)` takes nothing loaded before it.
        entries: how many entries it deleted or made stale.
    """

    seq: int
    entries: int


def invalidate_tags(
    ports: Ports, tags: Sequence[str], mode: Mode, progress: Progress | None = None
) -> Flow[Invalidation]:
    """Invalidate everything that has any of the tags.

    Args:
        progress: called after each chunk of some hundred members.

    Raises:
        InvalidationIncomplete: the store failed on the way, or too few of its replicas have it; nothing is
            acknowledged, and what was begun is finished by the next invalidation of the tag, or by garbage
            collection.
    """
    started = ports.clock.monotonic()
    told = _ReceiveOwnPush(progress)
    try:
        n = yield ports.store.next_seq()
        entries = 0
        for tag in tags:
            if mode == "hard":
                detached = yield ports.store.detach(tag, n)
            else:
                yield ports.store.mark_tag(tag, n)
                entries += yield from _soften_in_place(ports, tag, told)
                # A hard invalidation may have died half-way: what it put aside is hidden from the walk.
                detached = yield ports.store.detached_sets(tag)
            for each in detached:
                entries += yield from drain(ports, tag, each, told)
        yield from replicated(ports)
    except StoreError as error:
        raise InvalidationIncomplete(f"invalidation of {', '.join(tags)} is not acknowledged: {error}") from error
    yield from receive_own_push(ports)
    ports.emit(Invalidated(tuple(tags), mode, entries, ports.clock.monotonic() - started))
    return Invalidation(n, entries)


def invalidate_calls(ports: Ports, calls: Sequence[str], mode: Mode) -> Flow[Invalidation]:
    """Invalidate single calls.

    Raises:
        InvalidationIncomplete: the store failed on the way, or too few of its replicas have it; nothing is
            acknowledged.
    """
    started = ports.clock.monotonic()
    try:
        n = yield ports.store.next_seq()
        entries = yield ports.store.drop(calls) if mode == "hard" else ports.store.soften(calls)
        yield from replicated(ports)
    except StoreError as error:
        raise InvalidationIncomplete(f"invalidation of {', '.join(calls[:3])} is not acknowledged: {error}") from error
    yield from receive_own_push(ports)
    ports.emit(Invalidated((), mode, entries, ports.clock.monotonic() - started))
    return Invalidation(n, entries)


def members_of(ports: Ports, tag: str, most: int) -> Flow[list[str]]:
    """Return the calls in a tag's sets whose entries are there, at most so many."""
    found: dict[str, None] = {}
    for shard in range(ports.store.keys.shards(tag)):
        cursor = 0
        while len(found) < most:
            cursor, calls = yield ports.store.walk_tag(tag, shard, cursor)
            there = yield ports.store.get_many(calls)
            found.update((call, None) for call, raw in zip(calls, there, strict=True) if raw is not None)
            if cursor == 0:
                break
    return list(found)[:most]


class _ReceiveOwnPush:
    """Adds up what one invalidation has gone through."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._members = 0

    def __call__(self, members: int) -> None:
        self._members += members
        if self._progress is not None:
            self._progress(self._members)


def drain(
    ports: Ports,
    tag: str,
    detached: Doomed,
    told: Progress = lambda members: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Flow[int]:
    """Delete the entries of a detached set, in chunks; any number of drainers may share one.

    Whoever comes next goes on where a drainer died: the next invalidation of the tag, or a garbage collection.

    Args:
        told: called with the size of each chunk that is done.
        is_over: says after a chunk whether to leave the rest to whoever comes next.
    """
    entries: int = 0
    calls: Sequence[str] = detached.calls
    while calls or (calls := (yield ports.store.detached_chunk(detached.name))):
        entries += yield ports.store.drop(calls)
        # Only now do the members leave.  Taken out first, a crash in between would leave entries that nobody finds.
        left: int = yield ports.store.drained(tag, detached.shard, detached.name, calls)
        told(len(calls))
        if not left or is_over():
            return entries
        calls = ()
    yield ports.store.drained(tag, detached.shard, detached.name, ())
    return entries


def replicated(ports: Ports) -> Flow[None]:
    """Return when as many replicas as `Config.replicas` says have all that was written so far.

    Raises:
        StoreError: fewer have it in time.
    """
    if ports.config.replicas:
        yield ports.store.replicate(ports.config.replicas, ports.config.store_timeout)


def receive_own_push(ports: Ports) -> Flow[None]:
    """Return when this process's L1 holds nothing that was deleted before, whoever deleted it."""
    if not (yield ports.listener.barrier(BARRIER_FOR)):
        ports.l1.clear()


def _soften_in_place(ports: Ports, tag: str, told: Progress) -> Flow[int]:
    """Make stale what a tag's sets name.  Soft takes nothing out: a live entry must always be findable."""
    entries = 0
    for shard in range(ports.store.keys.shards(tag)):
        cursor = 0
        while True:
            cursor, calls = yield ports.store.walk_tag(tag, shard, cursor)
            entries += yield ports.store.soften(calls)
            told(len(calls))
            if cursor == 0:
                break
    return entries
