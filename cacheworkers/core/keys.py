"""The names of keys in Redis.  Braces are Redis Cluster hash tags: whatever one script touches lives in one slot.

A tag's own braces, `#` and `%` are escaped, so that the first pair of braces holds the whole tag, and `#3` can only
be a shard.  A call's text needs no escape: all its keys have the same first pair of braces, whatever is in it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

_ESCAPES = str.maketrans({character: f"%{ord(character):02X}" for character in "{}#%"})
_ESCAPED = re.compile(r"[{}#%]")


class Keyspace:
    """Builds the keys of one namespace.

    Attributes:
        namespace: first part of every key.
        seq: the invalidation sequence.
        own_tag_shards: in how many shards this process keeps tags.
        tag_shards: in how many shards any process keeps them.
        marks, unstored: what this namespace's processes are, and which loaders' values have no place here; for doctor.
        run_id: the run id of the server that was last replayed to.
        touched: written for the sake of being written; what follows it makes it a key of a certain master.
        entry_prefix: what the key of a call's entry has before the call; after it comes a brace.
        entries_prefix, failures_prefix, leases_prefix: what keys begin with whose changes are reported.
        tag_sets_prefix: what all tag sets begin with.
        tag_sets_pattern, last_invalidations_pattern, detached_indexes_pattern: for SCAN; all shards, no detached sets.
    """

    def __init__(self, namespace: str, tag_shards: Mapping[str, int] | None = None) -> None:
        """
        Args:
            tag_shards: tag, or what of a tag is before its first `:`, -> number of shards; one where it is not named.
        """
        self.namespace = namespace
        self.own_tag_shards = dict(tag_shards or {})
        self._known_shards: dict[str, int] = {}
        self.tag_shards = f"{namespace}:shards"
        self.marks = f"{namespace}:marks"
        self.unstored = f"{namespace}:unstored"
        self.seq = f"{namespace}:seq"
        self.run_id = f"{namespace}:run"
        self.touched = f"{namespace}:w"
        self.entries_prefix = f"{namespace}:e:"
        self.failures_prefix = f"{namespace}:f:"
        self.leases_prefix = f"{namespace}:l:"
        self.tag_sets_prefix = f"{namespace}:t:"
        self.tag_sets_pattern = f"{namespace}:t:{{*}}"
        self.last_invalidations_pattern = f"{namespace}:v:{{*}}"
        # A detached set has its number after the brace: only the index ends in it.
        self.detached_indexes_pattern = f"{namespace}:d:{{*}}"
        self.entry_prefix = self.entries_prefix + "{"
        self._failures = self.failures_prefix + "{"
        self._lease = self.leases_prefix + "{"
        self._attempts = f"{namespace}:a:{{"
        self._overtaken = f"{namespace}:o:{{"
        self._of_calls = (self.entry_prefix.encode(), self._failures.encode())
        self._of_tag = re.compile(rf"{re.escape(namespace)}:[tvd]:\{{([^{{}}#]+)(?:#([1-9][0-9]*))?\}}")

    # -- of a call

    def entry(self, call: str) -> str:
        """Return the key of a call's entry."""
        return f"{self.entry_prefix}{call}}}"

    def entries(self, calls: Iterable[str]) -> list[str]:
        """Return the keys of many calls' entries."""
        prefix = self.entry_prefix
        return [f"{prefix}{call}}}" for call in calls]

    def lease(self, call: str) -> str:
        """Return the key of a call's lease."""
        return f"{self._lease}{call}}}"

    def failures(self, call: str) -> str:
        """Return the key of a call's last failure."""
        return f"{self._failures}{call}}}"

    def attempts(self, call: str) -> str:
        """Return the key that counts a call's begun loads; not tracked, so that counting wakes nobody."""
        return f"{self._attempts}{call}}}"

    def overtaken(self, call: str) -> str:
        """Return the key of a call's last value that an invalidation has overtaken."""
        return f"{self._overtaken}{call}}}"

    def call_of(self, key: bytes) -> str | None:
        """Return the call of an entry's or failure's key; None for any other key."""
        if not key.startswith(self._of_calls) or not key.endswith(b"}"):
            return None
        try:
            return key[len(self._of_calls[0]) : -1].decode()  # both prefixes are of one length
        except UnicodeDecodeError:
            return None

    # -- of a loader

    def patterns_of(self, loader: str) -> tuple[str, ...]:
        """Return the patterns, for SCAN, of leases, failures and entries of a loader's calls, of whatever version."""
        return tuple(f"{prefix}{loader}[[@]*" for prefix in (self._lease, self._failures, self.entry_prefix))

    def call_in(self, key: str) -> str:
        """Return the call of a key that one of these patterns has found."""
        return key[len(self.entry_prefix) : -1]  # all prefixes are of one length

    def accesses(self, loader: str) -> str:
        """Return the key of a loader's access scores."""
        return f"{self.namespace}:h:{{{loader}}}"

    def forecasts(self, loader: str) -> str:
        """Return the key of what forecasts of a loader's reads have come to."""
        return f"{self.namespace}:k:{{{loader}}}"

    def turns(self, loader: str) -> str:
        """Return the key of a loader's rate limit."""
        return f"{self.namespace}:r:{{{loader}}}"

    # -- of upkeep

    @property
    def gc_position(self) -> str:
        """The key that says where a garbage collection that ran out of time stopped."""
        return f"{self.namespace}:gc"

    def tick(self, task: str) -> str:
        """Return the key that is there while an upkeep task has been begun in this period."""
        return f"{self.namespace}:tick:{task}"

    def beat(self, task: str) -> str:
        """Return the key that is there while an upkeep task runs as it should."""
        return f"{self.namespace}:beat:{task}"

    # -- of workers

    def taken(self, queue: str) -> str:
        """Return the key that says when a worker last took a message from a queue."""
        return f"{self.namespace}:taken:{queue}"

    def worker(self, name: str) -> str:
        """Return the key that is there while a worker of this store runs."""
        return f"{self.namespace}:worker:{name}"

    # -- of a tag

    def shards(self, tag: str) -> int:
        """Return in how many shards a tag's set may be kept, by this process or by others that are set otherwise."""
        own = _shards_in(self.own_tag_shards, tag)
        return max(own, _shards_in(self._known_shards, tag)) if self._known_shards else own

    def learn_shards(self, known: dict[str, int]) -> None:
        """Note in how many shards any process keeps tags."""
        self._known_shards = known

    def shard_of(self, tag: str, call: str) -> int:
        """Return the shard of a tag's set that this process puts a call into."""
        shards = _shards_in(self.own_tag_shards, tag)
        return zlib.crc32(call.encode()) % shards if shards > 1 else 0

    def detaching(self, tag: str, shard: int, n: int, nonce: str) -> tuple[str, str, str, str]:
        """Return tag set, last invalidation, index of detached sets, and a new detached set's name, of a tag's shard.

        Args:
            n, nonce: the invalidation's number, and what makes the name nobody else's.
        """
        space, braced = self.namespace, _braced(tag, shard)
        return f"{space}:t:{braced}", f"{space}:v:{braced}", f"{space}:d:{braced}", f"{space}:d:{braced}:{n}:{nonce}"

    def tag_set(self, tag: str, shard: int = 0) -> str:
        """Return the key of a tag's set."""
        return f"{self.tag_sets_prefix}{_braced(tag, shard)}"

    def last_invalidation(self, tag: str, shard: int = 0) -> str:
        """Return the key of the number of a tag's last invalidation."""
        return f"{self.namespace}:v:{_braced(tag, shard)}"

    def detached_index(self, tag: str, shard: int = 0) -> str:
        """Return the key of the index of a tag's detached sets."""
        return f"{self.namespace}:d:{_braced(tag, shard)}"

    def tag_of(self, key: str) -> tuple[str, int] | None:
        """Return the tag and shard of a tag set's, last invalidation's or detached index's key; None for any other."""
        match = self._of_tag.fullmatch(key)
        return None if match is None else (unquote(match[1]), int(match[2] or 0))


def _shards_in(shards: Mapping[str, int], tag: str) -> int:
    """Return a tag's own number, or that of the prefix before `:`."""
    return (shards.get(tag) or shards.get(tag.partition(":")[0]) or 1) if shards else 1


def _braced(tag: str, shard: int) -> str:
    name = tag if _ESCAPED.search(tag) is None else tag.translate(_ESCAPES)
    return f"{{{name}#{shard}}}" if shard else f"{{{name}}}"


def patterns_to_clear(namespace: str) -> tuple[str, ...]:
    """Return the patterns of what `clear` deletes, in its order: leases, then all else of calls, tags and loaders."""
    return tuple(f"{namespace}:{kind}:*" for kind in ("l", "e", "f", "a", "t", "d", "v", "h"))
