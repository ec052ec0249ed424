"""RecentAnswers: keeps the headers of recent answers until a number in them changes; logs why there was no answer."""

from __future__ import annotations

import logging
import time
from math import floor

import msgspec

from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.errors import BadArgument, LoadError, Unavailable
from cacheworkers.web.http import Answer, HttpPolicy, answer, refusal

_MAX_CALLS = 1024
#: A 503 is logged once for its loader and kind of error in as many seconds.
_LOGGED_EVERY = 60.0
log = logging.getLogger("cacheworkers")


class _Kept(msgspec.Struct, frozen=True):
    """The headers of an answer, those of the same as 304, and what they are right for: a version of an entry, its ages.

    A soft invalidation moves a version's `fresh_until`.

    Neither the entry nor its payload is kept: `l1_bytes` bounds those.
    """

    write_id: bytes
    fresh_until: float
    age: float
    age_below: float
    headers: list[tuple[bytes, bytes]]
    tag: bytes
    not_modified: list[tuple[bytes, bytes]]


class RecentAnswers:
    """Makes answers by one policy, and keeps the headers of those made of fresh entries in this process's memory.

    A hot entry is answered thousands of times in a second with the same headers.  Threads may share it.
    """

    def __init__(self, policy: HttpPolicy) -> None:
        self.policy = policy
        self._kept: dict[str, _Kept] = {}
        self._logged_until: dict[tuple[str, str], float] = {}

    def answer(
        self, read: Read, method: str, path: str, if_match: bytes | None = None, if_none_match: bytes | None = None
    ) -> Answer:
        """Return what `http.answer` does."""
        entry = read.entry
        if read.tier == "l1" and method == "GET" and if_match is None and entry is not None:
            kept = self._kept.get(entry.call)
            if (
                kept is None
                or kept.write_id != entry.write_id
                or kept.fresh_until != entry.fresh_until
                or not kept.age <= read.age < kept.age_below
            ):
                kept = self._keep(read, entry)
            if kept is not None:
                if if_none_match is None:
                    return Answer(200, kept.headers, read.value)
                if if_none_match == kept.tag:
                    return Answer(304, kept.not_modified, b"")
        return answer(read, self.policy, method=method, path=path, if_match=if_match, if_none_match=if_none_match)

    def refuse(self, error: Unavailable | BadArgument, *, method: str, path: str) -> Answer:
        """Return what `http.refusal` does, and log why it is a 503: its body does not say, and nobody else sees it."""
        made = refusal(error, self.policy, method=method, path=path)
        loader, kind, where = "", type(error).__name__, ""
        if isinstance(error, LoadError):
            loader, kind = error.loader, error.kind
            where = '; the process that ran it, a worker or this one, has logged the traceback as "load of ... failed"'
        now = time.monotonic()
        if made.status == 503 and self._logged_until.get((loader, kind), 0.0) <= now:
            self._logged_until[loader, kind] = now + _LOGGED_EVERY
            fields = {"loader": loader, "kind": kind}
            log.warning("answered 503: %s%s", str(error).partition("\n")[0], where, extra=fields)
        return made

    def _keep(self, read: Read, entry: Entry) -> _Kept | None:
        made = answer(read, self.policy)
        if made.status != 200 or read.freshness is not Freshness.FRESH:  # a 404 names the path
            return None
        tag = dict(made.headers)[b"etag"]
        not_modified = answer(read, self.policy, if_none_match=tag).headers
        # They differ by two whole numbers: its age, and how long it is still fresh.
        until = entry.fresh_until
        fresh_for = until - entry.created
        age_below = min(floor(read.age) + 1, fresh_for - floor(fresh_for - read.age))
        if len(self._kept) >= _MAX_CALLS:
            self._kept.clear()
        kept = self._kept[entry.call] = _Kept(
            entry.write_id, until, read.age, age_below, made.headers, tag, not_modified
        )
        return kept
