"""Recent: the headers of recent answers, used again until a number in them changes."""

from __future__ import annotations

from math import floor

import msgspec

from cacheworkers.core.entry import Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.web.http import Answer, HttpPolicy, answer

_MOST = 1024


class _Kept(msgspec.Struct, frozen=True):
    """The headers of an answer, and all that they are made of besides the policy.

    Neither the entry nor its payload is kept: `l1_bytes` bounds those.
    """

    made_of: tuple[object, ...]
    headers: list[tuple[bytes, bytes]]


class Recent:
    """Makes answers by one policy, and keeps the headers of those made of fresh entries in this process's memory.

    A hot entry is answered thousands of times in a second with the same headers.  Threads may share it.
    """

    def __init__(self, policy: HttpPolicy) -> None:
        self.policy = policy
        self._kept: dict[str, _Kept] = {}

    def answer(
        self, read: Read, *, method: str, path: str, if_match: bytes | None = None, if_none_match: bytes | None
    ) -> Answer:
        """Return what `http.answer` does."""
        entry = read.entry
        is_plain = method == "GET" and if_match is None and if_none_match is None and read.tier == "l1"
        if entry is None or not is_plain or read.freshness is not Freshness.FRESH:
            return answer(read, self.policy, method=method, path=path, if_match=if_match, if_none_match=if_none_match)
        age, left = int(read.age), floor(entry.fresh_until - entry.created - read.age)
        ends = (entry.created, entry.fresh_until, entry.stale_until, entry.expires_at)
        made_of = (age, left, entry.write_id, entry.digest, ends, entry.tags)
        kept = self._kept.get(entry.call)
        if kept is not None and kept.made_of == made_of:
            return Answer(200, kept.headers, read.value)
        made = answer(read, self.policy, path=path)
        if made.status == 200:  # a 404 names the path
            if len(self._kept) >= _MOST:
                self._kept.clear()
            self._kept[entry.call] = _Kept(made_of, made.headers)
        return made
