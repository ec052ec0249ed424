"""Access scores: which calls of a loader are read most, as all processes have reported, each command as a step."""

from __future__ import annotations

from collections.abc import Sequence

from cacheworkers.store.commands import replies as parse
from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.steps import Exchange, StoreCommands
from cacheworkers.store.connections.request import Request

#: Half-lives for which access scores are remembered.
ACCESSES_KEPT_FOR = 100


class AccessScores(StoreCommands):
    """The hottest calls of each loader; see `core/access_score.py`."""

    def add_accesses(
        self, loader: str, reads: Sequence[tuple[str, int]], *, half_life: float, most: int, warm_for: float = 0.0
    ) -> Exchange[int]:
        """Add `(call, reads)` to the access scores of a loader, which keep its `most` most read calls; how many it has.

        Args:
            warm_for: how long after its last read a call is kept warm, seconds; so much longer it is remembered.
        """
        words = [word for call, count in reads for word in (call, count)]
        kept_for = ACCESSES_KEPT_FOR * half_life + warm_for
        request = Request.call(scripts.ADD_ACCESSES, (self.keys.accesses(loader),), (half_life, most, kept_for, *words))
        return self._ask_one(request, lambda reply: int(parse.or_nothing(reply, 0)))

    def most_read(self, loader: str, first: int, most: int, since: float) -> Exchange[list[tuple[str, float]]]:
        """The hottest calls of a loader from a rank on: `(call, read_at)`; see `core/access_score.py`.

        Args:
            since: least `read_at`.
        """
        key, limit = self.keys.accesses(loader), ("LIMIT", first, most)
        request = Request(("ZREVRANGEBYSCORE", key, "+inf", since, "WITHSCORES", *limit))
        return self._ask_one(request, lambda reply: parse.scored(parse.or_nothing(reply, ())))

    def count_read_since(self, loader: str, since: float) -> Exchange[int]:
        """How many calls of a loader have a `read_at` of at least `since`."""
        request = Request(("ZCOUNT", self.keys.accesses(loader), since, "+inf"))
        return self._ask_one(request, lambda reply: int(parse.or_nothing(reply, 0)))

    def read_at(self, loader: str, call: str) -> Exchange[float | None]:
        """The `read_at` of one call; None if it is not among the hottest."""
        request = Request(("ZSCORE", self.keys.accesses(loader), call))
        return self._ask_one(
            request, lambda reply: None if (found := parse.or_nothing(reply, None)) is None else float(found)
        )
