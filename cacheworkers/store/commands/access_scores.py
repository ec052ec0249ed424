"""Access scores: which calls of a loader are read most, as all processes have reported, each command as a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cacheworkers.local.read_forecasts import Known
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

    def read_ats(self, loader: str, calls: Sequence[str]) -> Exchange[list[float | None]]:
        """The `read_at` of many calls, in their order; None of those that are not among the hottest."""
        requests = [Request(("ZSCORE", self.keys.accesses(loader), call)) for call in calls]
        return self._ask(requests, lambda replies: list(map(_instant, replies)))

    def read_at(self, loader: str, call: str) -> Exchange[float | None]:
        """The `read_at` of one call; None if it is not among the hottest."""
        return self._ask_one(Request(("ZSCORE", self.keys.accesses(loader), call)), _instant)

    def known(self, loader: str) -> Exchange[Known]:
        """What forecasts of a loader's reads have come to."""
        return self._ask_one(Request(("GET", self.keys.forecasts(loader))), _known)

    def keep_known(self, loader: str, known: Known) -> Exchange[None]:
        """Keep that, for a month."""
        words = ("SET", self.keys.forecasts(loader), "{} {}".format(*known), "EX", 30 * 86_400)
        return self._ask_one(Request(words), lambda reply: None)


def _instant(reply: Any) -> float | None:
    found = parse.or_nothing(reply, None)
    return None if found is None else float(found)


def _known(reply: Any) -> Known:
    """Return what was kept; what is known at first where there is nothing, or nothing of ours."""
    try:
        vain, odds = map(float, parse.text(parse.or_nothing(reply, b"")).split())
    except ValueError:
        return Known()
    return Known(vain, odds) if 0.0 <= vain < math.inf and 0.0 < odds < math.inf else Known()
