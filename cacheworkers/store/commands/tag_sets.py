"""Tag sets and the invalidation sequence: detach, drain, soften and walk through them, each command as a step."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cacheworkers.core import envelope
from cacheworkers.core.entry import CLOCK_MARGIN
from cacheworkers.store.commands import replies as parse
from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.replies import DetachedSet, ForeignType
from cacheworkers.store.commands.steps import Exchange, StoreCommands, milliseconds
from cacheworkers.store.connections.request import Request

#: Members of a tag set, and keys of one command, that are gone through at a time.
CHUNK = 500
#: Members of each of many tag sets that are gone through at a time.
MIN_SHARE = 4
#: Most sets that one script detaches, where one server has all keys, and most members whose keys are deleted as they
#: are removed: nothing else is served meanwhile.
MAX_TOGETHER = 50


class TagSets(StoreCommands):
    """What invalidations do, and what garbage collection finishes."""

    def next_seq(self) -> Exchange[int]:
        """The number of a new invalidation; learns, too, how many shards any process keeps tags in."""

        def parsed(replies: list[Any]) -> int:
            self._learn_shards(replies[1])
            return int(replies[0])

        return self._ask(
            [Request.call(scripts.NEXT_SEQ, (self.keys.seq,), ()), Request(("HGETALL", self.keys.tag_shards))], parsed
        )

    def learn_shards(self) -> Exchange[None]:
        """Learn how many shards any process keeps tags in, before tag sets are walked through."""
        return self._ask_one(Request(("HGETALL", self.keys.tag_shards)), self._learn_shards)

    def _learn_shards(self, reply: Any) -> None:
        self.keys.learn_shards({prefix: int(shards) for prefix, shards in parse.fields(parse.ours(reply)).items()})

    def raise_seq(self, least: int) -> Exchange[int]:
        """The sequence, lifted to `least` if a failover had set it back."""
        return self._ask_one(Request.call(scripts.RAISE_SEQ, (self.keys.seq,), (least,)), int)

    def detach(self, tags: Sequence[str], n: int) -> Exchange[list[DetachedSet | ForeignType]]:
        """Mark tags and detach their sets, in one round trip; all detached sets of the tags, these and older ones."""
        shards, keys, most = self._detaching(tags, n)
        requests = [Request.call(scripts.DETACH, each, (n, most)) for each in keys]

        def parsed(replies: list[Any]) -> list[DetachedSet | ForeignType]:
            found = (reply if isinstance(reply, Exception) else reply[1] for reply in replies)
            return _detached(shards, keys, found)

        return self._ask(requests, parsed)

    def next_seq_and_detach(
        self, tags: Sequence[str]
    ) -> Exchange[tuple[int, list[DetachedSet | ForeignType]] | None] | None:
        """Do what `next_seq` and `detach` do, in one step.

        None where they have to be two: see MAX_TOGETHER; or one has more shards than this process knew, or a key holds
        what something else has written there.
        """
        shards, keys, most = self._detaching(tags, 0)
        if not self.has_one_slot or len(shards) > MAX_TOGETHER:
            return None
        words = [*itertools.chain.from_iterable(keys), self.keys.seq]
        requests = [Request.call(scripts.DETACH, words, ("", most)), Request(("HGETALL", self.keys.tag_shards))]

        def parsed(replies: list[Any]) -> tuple[int, list[DetachedSet | ForeignType]] | None:
            self._learn_shards(replies[1])
            if isinstance(replies[0], Exception) or len(shards) != sum(map(self.keys.shards, tags)):
                return None
            n, *found = replies[0]
            return int(n), _detached(shards, keys, found)

        return self._ask(requests, parsed)

    def _detaching(self, tags: Sequence[str], n: int) -> tuple[list[tuple[str, int]], list[tuple[str, ...]], int]:
        """Return the shards of tags, the keys to detach each, and how many of its members to return."""
        shards = [(tag, shard) for tag in tags for shard in range(self.keys.shards(tag))]
        nonce = secrets.token_hex(6)
        return shards, [self.keys.detaching(tag, shard, n, nonce) for tag, shard in shards], _share(len(shards))

    def mark_tags(self, tags: Sequence[str], n: int) -> Exchange[None]:
        """Mark tags softly invalidated; their sets stay where they are."""
        marks = [self.keys.last_invalidation(tag, shard) for tag in tags for shard in range(self.keys.shards(tag))]

        def parsed(replies: list[Any]) -> None:
            for reply in replies:
                parse.ours(reply)

        return self._ask([Request.call(scripts.MARK_SOFT, (mark,), (n,)) for mark in marks], parsed)

    def detached_sets(self, tags: Sequence[str]) -> Exchange[list[DetachedSet | ForeignType]]:
        """All detached sets of some tags."""
        shards = [(tag, shard) for tag in tags for shard in range(self.keys.shards(tag))]
        keys = [self.keys.detached_index(tag, shard) for tag, shard in shards]
        requests = [Request(("SMEMBERS", key)) for key in keys]

        def parsed(replies: list[Any]) -> list[DetachedSet | ForeignType]:
            each = zip(shards, replies, keys, strict=True)
            return [found for (tag, shard), reply, key in each for found in parse.detached(tag, shard, reply, key)]

        return self._ask(requests, parsed)

    def detached_of(self, tag: str, shard: int) -> Exchange[list[str]]:
        """The detached sets of one shard of a tag."""
        request = Request(("SMEMBERS", self.keys.detached_index(tag, shard)))
        return self._ask_one(request, lambda reply: [parse.text(name) for name in parse.ours(reply)])

    def drained(self, sets: Sequence[DetachedSet]) -> Exchange[list[DetachedSet | ForeignType]]:
        """Remove the known members of detached sets, whose entries are deleted; the sets that have more, with some."""
        return self._ask(self._drained(sets, ()), lambda replies: _left(sets, replies)[1])

    def drop_drained(self, sets: Sequence[DetachedSet]) -> Exchange[tuple[int, list[DetachedSet | ForeignType]]] | None:
        """Do what `drop` and `drained` do, each set in one step; None where they have to be two: see MAX_TOGETHER."""
        if not self.has_one_slot or sum(len(each.calls) for each in sets) > MAX_TOGETHER:
            return None
        kinds = (self.keys.lease, self.keys.failures, self.keys.entry)
        return self._ask(self._drained(sets, kinds), lambda replies: _left(sets, replies))

    def _drained(self, sets: Sequence[DetachedSet], kinds: Sequence[Callable[[str], str]]) -> list[Request]:
        """Return the requests that take the known members out of sets, and delete their keys of these kinds."""
        most = _share(len(sets))
        requests = []
        for each in sets:
            calls = parse.legible(each.calls)
            dropped = [key(call) for key in kinds for call in calls]
            keys = (each.name, self.keys.detached_index(each.tag, each.shard), *dropped)
            members = map(parse.bytes_of, each.calls)
            requests.append(Request.call(scripts.REMOVE_DRAINED, keys, (most, 2 * len(calls), *members)))
        return requests

    def drop(self, calls: Sequence[str]) -> Exchange[int]:
        """Delete leases, failures and entries of calls; how many entries there were.

        Leases first: a load that writes between the two is refused.  The other way round its entry would stay, and it
        would be in no tag set, since its member leaves the detached set next.
        """
        calls = parse.legible(calls)
        if not calls:
            return self._ask([], lambda replies: 0)
        entries, leases = [self.keys.entry(call) for call in calls], [self.keys.lease(call) for call in calls]
        failures = [self.keys.failures(call) for call in calls]
        if not self.link.is_cluster:  # one command for many keys; on a Cluster they live in many slots
            requests = []
            for at in range(0, len(calls), CHUNK):
                part = slice(at, at + CHUNK)
                for keys in (leases[part] + failures[part], entries[part]):
                    requests.append(Request(("UNLINK", *keys)))
            return self._ask(requests, lambda replies: sum(map(int, replies[1::2])))
        # Together: one of them alone might be sent after its slot, and come late.
        requests = []
        for lease, failure, entry in zip(leases, failures, entries, strict=True):
            requests += [Request(("EXISTS", entry)), Request(("UNLINK", lease, failure, entry))]
        return self._ask(requests, lambda replies: sum(int(reply) for reply in replies[::2]))

    def soften(self, calls: Sequence[str]) -> Exchange[int]:
        """Make the entries of calls stale, break their leases and end their failures; how many were fresh."""
        calls = parse.legible(calls)
        requests = [
            Request.call(
                scripts.SOFTEN,
                (self.keys.entry(call), self.keys.lease(call), self.keys.failures(call)),
                (envelope.MAGIC, envelope.FRESH_UNTIL_AT, milliseconds(CLOCK_MARGIN)),
            )
            for call in calls
        ]
        return self._ask(requests, lambda replies: sum(int(reply) for reply in replies))

    def members(self, tag: str, calls: Sequence[str]) -> Exchange[list[str]]:
        """Those of some calls that are in a tag's sets."""
        keys = [self.keys.tag_set(tag, self.keys.shard_of(tag, call)) for call in calls]
        requests = [Request(("ZSCORE", key, call)) for key, call in zip(keys, calls, strict=True)]
        return self._ask(
            requests, lambda replies: [c for c, score in zip(calls, replies, strict=True) if score is not None]
        )

    def tag_size(self, tag: str) -> Exchange[int]:
        """How many members a tag's sets have; some of them may have expired."""
        requests = [Request(("ZCARD", self.keys.tag_set(tag, shard))) for shard in range(self.keys.shards(tag))]
        return self._ask(requests, lambda replies: sum(int(reply) for reply in replies))

    def walk_tags(self, walks: Sequence[tuple[str, int, int]]) -> Exchange[list[tuple[int, list[str]]]]:
        """One step of walks through tag sets in place, each `(tag, shard, cursor)`.

        Of each `(next cursor, calls)`; a walk ends at cursor 0.
        """
        most = _share(len(walks))
        requests = [
            Request(("ZSCAN", self.keys.tag_set(tag, shard), cursor, "COUNT", most)) for tag, shard, cursor in walks
        ]
        return self._ask(requests, lambda replies: [parse.walked(parse.ours(reply)) for reply in replies])

    def last_invalidations(self, tags: Sequence[str], call: str) -> Exchange[list[int]]:
        """The number of each tag's last invalidation, as loads of a call see it; 0 for none that is remembered."""
        keys = [self.keys.last_invalidation(tag, self.keys.shard_of(tag, call)) for tag in tags]
        return self._ask(
            [Request(("GET", key)) for key in keys], lambda replies: [int(reply or 0) for reply in replies]
        )


def _share(sets: int) -> int:
    """Return how many members of each of some sets one exchange takes up."""
    return max(MIN_SHARE, CHUNK // max(1, sets))


def _detached(
    shards: Sequence[tuple[str, int]], keys: Sequence[tuple[str, ...]], replies: Iterable[Any]
) -> list[DetachedSet | ForeignType]:
    """Return all detached sets of some shards of tags, this invalidation's and older ones."""
    each = zip(shards, replies, keys, strict=True)
    return [
        found
        for (tag, shard), reply, (*touched, name) in each
        for found in parse.detached(tag, shard, reply, *touched, name=name)
    ]


def _left(sets: Sequence[DetachedSet], replies: list[Any]) -> tuple[int, list[DetachedSet | ForeignType]]:
    """Return how many entries were deleted with members of sets, and the sets that have more."""
    entries = 0
    left: list[DetachedSet | ForeignType] = []
    for each, reply in zip(sets, replies, strict=True):
        if isinstance(reply, Exception):
            left.append(parse.foreign(reply, each.name))
            continue
        entries += int(reply[0])
        if reply[1]:
            left.append(DetachedSet(each.tag, each.shard, each.name, [parse.text(member) for member in reply[1]]))
    return entries, left
