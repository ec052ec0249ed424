"""Invalidation by tags or calls: draw a number, mark, detach and drain the tag sets, wait for this process's own push.

Once `invalidate` has returned, no read through the store returns a value whose load began before it began.  Tags are
invalidated together: how many round trips it takes depends on the members of the largest set, not on how many tags
there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from cacheworkers.core.driver import Flow
from cacheworkers.core.signature import is_loader_name
from cacheworkers.errors import CallError, InvalidationIncomplete, StoreError
from cacheworkers.events import Invalidated
from cacheworkers.flows.ports import Ports
from cacheworkers.store.commands.replies import DetachedSet, ForeignType, legible

Mode = Literal["hard", "soft", "reload"]
#: Called with how many members an invalidation has gone through so far; must be quick, and must not raise.
Progress = Callable[[int], None]

#: How long to wait for this process's listener to receive the push of an invalidation before L1 is emptied, seconds.
BARRIER_FOR = 1.0
#: Tags of one exchange.  2,000 keep a server busy for some 20 ms, and others' commands are run in between.
TAGS_PER_EXCHANGE = 2000
#: Tags or calls that an error names.
_MAX_NAMED = 3
UNTIL_REPEATED = (
    "; what was committed before it stays, and readers may get the old value until this succeeds: call it again; "
    "what `cache.watch` or triggers have written is repeated by the drain"
)


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
        InvalidationIncomplete: the store failed on the way, or too few of its replicas have it.  It is not
            acknowledged: the next invalidation of the tag, or garbage collection, finishes what was begun, and this
            process's L1 is emptied.
    """

    def work() -> Flow[tuple[int, int]]:
        return (yield from _detach_or_soften(ports, tags, mode, _MemberCount(progress)))

    return (yield from _acknowledged(ports, f"invalidation of {named(tags)}", work(), mode, tuple(tags)))


def count_entries(ports: Ports, tags: Sequence[str]) -> Flow[Invalidation]:
    """Return how many members the tags' sets have, each tag by itself; nothing is invalidated, and the number is 0."""
    yield ports.store.learn_shards()
    entries = 0
    for tag in tags:
        entries += yield ports.store.tag_size(tag)
    return Invalidation(0, entries)


def invalidate_calls(ports: Ports, calls: Sequence[str], mode: Mode) -> Flow[Invalidation]:
    """Invalidate single calls.

    Raises:
        InvalidationIncomplete: the store failed on the way, or too few of its replicas have it.  It is not
            acknowledged, and this process's L1 is emptied.
    """

    def work() -> Flow[tuple[int, int]]:
        n = yield ports.store.next_seq()
        return n, (yield ports.store.drop(calls) if mode == "hard" else ports.store.soften(calls))

    return (yield from _acknowledged(ports, f"invalidation of {named(calls)}", work(), mode))


def invalidate_loader(ports: Ports, loader: str) -> Flow[Invalidation]:
    """Drop all entries and failures of a loader by walking through the keys; what is being loaded is not stored either.

    Leases first: a load that ends between two walks has stored its entry, or its failure, before the next one begins.

    Raises:
        CallError: it is not a loader's name.
        InvalidationIncomplete: the store failed on the way; nothing is acknowledged.
    """
    if not is_loader_name(loader):
        raise CallError(f"a loader's name must match [a-z_][a-z0-9_.]*, got {loader!r}")

    def work() -> Flow[tuple[int, int]]:
        keys, entries = ports.store.keys, 0
        n = yield ports.store.next_seq()
        for pattern in keys.patterns_of(loader):
            cursor = 0
            while True:
                cursor, found = yield ports.store.scan(cursor, pattern)
                entries += yield ports.store.drop([keys.call_in(key) for key in found])
                if cursor == 0:
                    break
        return n, entries

    return (yield from _acknowledged(ports, f"dropping all of {loader}", work(), "hard"))


def members_of(ports: Ports, tag: str, most: int) -> Flow[list[str]]:
    """Return the calls in a tag's sets whose entries exist, at most `most` of them."""
    yield ports.store.learn_shards()
    found: dict[str, None] = {}
    for shard in range(ports.store.keys.shards(tag)):
        cursor = 0
        while len(found) < most:
            [(cursor, members)] = yield ports.store.walk_tags([(tag, shard, cursor)])
            calls = legible(members)
            raws = yield ports.store.get_many(calls)
            found.update((call, None) for call, raw in zip(calls, raws, strict=True) if raw is not None)
            if cursor == 0:
                break
    return list(found)[:most]


def drain(
    ports: Ports,
    detached: Iterable[DetachedSet | ForeignType],
    progress: Progress = lambda members: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Flow[int]:
    """Delete the entries of detached sets, a chunk of each at a time; any number of drainers may share a set.

    Where a drainer dies, the next invalidation of the tag or garbage collection continues.

    Args:
        progress: called with the size of each chunk that is done.
        is_over: whether to leave the rest, asked after each chunk.

    Raises:
        ForeignType: one of the sets is of another type; the others have been drained.
    """
    entries = 0
    foreign: list[ForeignType] = []
    sets = _drainable(detached, foreign)
    while sets:
        calls = list(dict.fromkeys(call for each in sets for call in each.calls))
        left: list[DetachedSet | ForeignType]
        together = ports.store.drop_drained(sets)
        if together is not None:
            dropped, left = yield together
        else:
            dropped = (yield ports.store.drop(calls)) if calls else 0
            # Only now do the members leave.  Taken out first, a crash in between would leave entries that nobody finds.
            left = yield ports.store.drained(sets)
        entries += dropped
        sets = _drainable(left, foreign)
        if calls:
            progress(len(calls))
            if is_over():
                break
    if foreign:
        raise foreign[0]
    return entries


def _acknowledged(
    ports: Ports, what: str, work: Flow[tuple[int, int]], mode: Mode, tags: tuple[str, ...] = ()
) -> Flow[Invalidation]:
    """Return the acknowledgement of work, which returns its number and how many entries it has invalidated.

    Raises:
        InvalidationIncomplete: the store failed on the way, or too few of its replicas have it.
    """
    started = ports.clock.monotonic()
    try:
        n, entries = yield from work
        yield from replicated(ports)
    except BaseException as error:
        # This process knows that what it has is old, whatever the store has taken.
        ports.l1.clear()
        if isinstance(error, StoreError):
            remedy = "" if isinstance(error, ForeignType) else UNTIL_REPEATED
            raise InvalidationIncomplete(f"{what} is not acknowledged: {error}{remedy}") from error
        raise
    yield from receive_own_push(ports)
    ports.emit(Invalidated(tags, mode, entries, ports.clock.monotonic() - started))
    return Invalidation(n, entries)


def _detach_or_soften(ports: Ports, tags: Sequence[str], mode: Mode, count: Progress) -> Flow[tuple[int, int]]:
    """Invalidate tags; return the invalidation's number, and how many entries there were.

    Raises:
        ForeignType: a set is of another type; the others are done.
    """
    together = ports.store.next_seq_and_detach(tags) if mode == "hard" else None
    found: tuple[int, list[DetachedSet | ForeignType]] | None = None if together is None else (yield together)
    n, first = ((yield ports.store.next_seq()), None) if found is None else found
    entries = 0
    foreign: ForeignType | None = None
    for at in range(0, len(tags), TAGS_PER_EXCHANGE):
        chunk = tags[at : at + TAGS_PER_EXCHANGE]
        if mode == "hard":
            detached, first = (yield ports.store.detach(chunk, n)) if first is None else first, None
        else:
            yield ports.store.mark_tags(chunk, n)
            entries += yield from _soften_in_place(ports, chunk, count)
            # The walk does not find what a hard invalidation that died half-way has detached.
            detached = yield ports.store.detached_sets(chunk)
        try:
            entries += yield from drain(ports, detached, count)
        except ForeignType as error:
            foreign = error
    if foreign is not None:
        raise foreign
    return n, entries


def replicated(ports: Ports) -> Flow[None]:
    """Return when `Config.replicas` replicas have all that was written so far.

    Raises:
        StoreError: fewer have it in time.
    """
    if ports.config.replicas:
        yield ports.store.replicate(ports.config.replicas, ports.config.store_timeout)


def receive_own_push(ports: Ports) -> Flow[None]:
    """Return when this process's L1 holds nothing that was deleted before, whoever deleted it."""
    if not (yield ports.listener.barrier(BARRIER_FOR)):
        ports.l1.clear()


class _MemberCount:
    """Adds up the members that one invalidation has gone through."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._members = 0

    def __call__(self, members: int) -> None:
        self._members += members
        if self._progress is not None:
            self._progress(self._members)


def named(what: Sequence[str]) -> str:
    """Return the first tags or calls, for an error."""
    rest = len(what) - _MAX_NAMED
    return ", ".join(what[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _drainable(found: Iterable[DetachedSet | ForeignType], foreign: list[ForeignType]) -> list[DetachedSet]:
    """Return the sets among what was found; the errors go to `foreign`."""
    all_of_them = list(found)
    foreign += [each for each in all_of_them if isinstance(each, ForeignType)]
    return [each for each in all_of_them if isinstance(each, DetachedSet)]


def _soften_in_place(ports: Ports, tags: Sequence[str], progress: Progress) -> Flow[int]:
    """Make stale what the sets of tags name.  Soft takes nothing out: a live entry must always be findable."""
    entries = 0
    walks = [(tag, shard, 0) for tag in tags for shard in range(ports.store.keys.shards(tag))]
    while walks:
        found = yield ports.store.walk_tags(walks)
        calls = list(dict.fromkeys(call for _, members in found for call in members))
        entries += yield ports.store.soften(calls)
        progress(len(calls))
        walks = [(tag, shard, cursor) for (tag, shard, _), (cursor, _) in zip(walks, found, strict=True) if cursor != 0]
    return entries
