"""Garbage: what the garbage collection asks of the store: walk through keys, trim tag sets, delete; each as a step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from cacheworkers.store.commands import replies as parse
from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.replies import Trimmed
from cacheworkers.store.commands.steps import Exchange, Scan, StoreCommands, milliseconds
from cacheworkers.store.connections.request import Request


class GarbageCommands(StoreCommands):
    """A walk through the keys of the namespace, and what is done on the way."""

    def scan(self, cursor: int, pattern: str) -> Scan:
        """One step of a walk through the keys that match a pattern, on all masters; it ends at cursor 0."""
        return Scan(self.link, cursor, pattern)

    def trim_tag(self, key: str, last: str, *, most: int, mark_kept_for: float) -> Exchange[Trimmed]:
        """Drop expired members of one tag set, and the tag's mark when it is old enough."""
        request = Request.call(scripts.TRIM_TAG, (key, last), (most, milliseconds(mark_kept_for)))

        def parsed(reply: Any) -> Trimmed:
            dropped, _, *are_foreign = reply
            return Trimmed(int(dropped), tuple(itertools.compress((key, last), are_foreign)))

        return self._ask_one(request, parsed)

    def unlink(self, names: Sequence[str]) -> Exchange[int]:
        """Delete keys; how many there were."""
        return self._ask([Request(("UNLINK", name)) for name in names], lambda replies: sum(map(int, replies)))

    def gc_position(self) -> Exchange[tuple[int, int]]:
        """Where the last garbage collection stopped: its phase and its cursor there; the beginning, if it was whole."""
        return self._ask_one(Request(("GET", self.keys.gc_position)), parse.position)

    def keep_gc_position(self, position: tuple[int, int] | None) -> Exchange[None]:
        """Keep where a garbage collection stops; None if it was whole."""
        key = self.keys.gc_position
        words = ("DEL", key) if position is None else ("SET", key, "{}:{}".format(*position), "EX", 86_400)
        return self._ask_one(Request(words), lambda reply: None)
