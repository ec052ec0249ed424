"""The names of keys in Redis.  Braces are Redis Cluster hash tags: whatever one script touches lives in one slot."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from urllib.parse import quote, unquote

_TAG_KEY = re.compile(r"[^:]+:[tvd]:\{([^}]*)\}")
_SAFE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) not in "{}#%")


class Keyspace:
    """Builds the keys of one namespace.

    Attributes:
        seq: the invalidation sequence.
        entries_prefix, failures_prefix: what the listener listens to.
        tag_sets_pattern, last_invalidations_pattern, doomed_indexes_pattern: for SCAN.
    """

    def __init__(self, namespace: str, tag_shards: Mapping[str, int] | None = None) -> None:
        self.namespace = namespace
        self._shards = dict(tag_shards or {})
        self.seq = f"{namespace}:seq"
        self.entries_prefix = f"{namespace}:e:"
        self.failures_prefix = f"{namespace}:f:"
        self.tag_sets_pattern = f"{namespace}:t:{{*}}"
        self.last_invalidations_pattern = f"{namespace}:v:{{*}}"
        self.doomed_indexes_pattern = f"{namespace}:d:{{*}}"
        self._entry = f"{namespace}:e:{{"

    def entry(self, call: str) -> str:
        """Return the key of a call's entry."""
        return f"{self._entry}{call}}}"

    def lease(self, call: str) -> str:
        """Return the key of a call's lease."""
        return f"{self.namespace}:l:{{{call}}}"

    def failures(self, call: str) -> str:
        """Return the key of a call's last failure."""
        return f"{self.namespace}:f:{{{call}}}"

    def attempts(self, call: str) -> str:
        """Return the key that counts a call's begun loads; not tracked, so that counting wakes nobody."""
        return f"{self.namespace}:a:{{{call}}}"

    def call_of(self, key: bytes) -> str | None:
        """Return the call of an entry's or failure's key; None for any other key."""
        for prefix in (self.entries_prefix, self.failures_prefix):
            start = prefix.encode() + b"{"
            if key.startswith(start) and key.endswith(b"}"):
                return key[len(start) : -1].decode(errors="replace")
        return None

    def shards(self, tag: str) -> int:
        """Return in how many shards a tag's set is kept: its own number, or that of the prefix before `:`."""
        if not self._shards:
            return 1
        return self._shards.get(tag) or self._shards.get(tag.partition(":")[0]) or 1

    def shard_of(self, tag: str, call: str) -> int:
        """Return the shard of a tag's set that a call belongs to."""
        shards = self.shards(tag)
        return zlib.crc32(call.encode()) % shards if shards > 1 else 0

    def tag_set(self, tag: str, shard: int = 0) -> str:
        """Return the key of a tag's set."""
        return f"{self.namespace}:t:{self._slot(tag, shard)}"

    def last_invalidation(self, tag: str, shard: int = 0) -> str:
        """Return the key of the number of a tag's last invalidation."""
        return f"{self.namespace}:v:{self._slot(tag, shard)}"

    def doomed_index(self, tag: str, shard: int = 0) -> str:
        """Return the key of the index of a tag's doomed sets."""
        return f"{self.namespace}:d:{self._slot(tag, shard)}"

    def doomed(self, tag: str, shard: int, n: int, random: str) -> str:
        """Return a name for a doomed set that nobody else uses."""
        return f"{self.doomed_index(tag, shard)}:{n}:{random}"

    def tag_of(self, key: str) -> tuple[str, int] | None:
        """Return the tag and shard of a tag set's, mark's or index's key; None for any other, doomed sets too."""
        match = _TAG_KEY.fullmatch(key)
        if match is None:
            return None
        name, _, shard = match[1].partition("#")
        return unquote(name), int(shard or 0)

    def _slot(self, tag: str, shard: int) -> str:
        name = quote(tag, safe=_SAFE)
        return f"{{{name}#{shard}}}" if shard else f"{{{name}}}"
