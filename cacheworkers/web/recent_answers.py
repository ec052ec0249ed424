"""Answers of this second: what is read again before a number in its headers changes gets the same answer."""

from __future__ import annotations

from math import floor

import msgspec

from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.web.http import Answer, HttpPolicy, answer

_MOST = 1024


class _Kept(msgspec.Struct, frozen=True):
    """An answer, and the whole seconds of its entry that it tells."""

    entry: Entry
    age: int
    left: int
    answer: Answer


class Recent:
    """Makes answers by one policy, and keeps those made of fresh entries in this process's memory.

    A hot entry is answered thousands of times in a second by the same bytes.  Threads may share it.
    """

    def __init__(self, policy: HttpPolicy) -> None:
        self.policy = policy
        self._kept: dict[int, _Kept] = {}

    def answer(
        self, read: Read, *, method: str, path: str, if_match: bytes | None = None, if_none_match: bytes | None
    ) -> Answer:
        """Return what `http.answer` does."""
        entry = read.entry
        is_plain = method == "GET" and if_match is None and if_none_match is None and read.tier == "l1"
        if entry is None or not is_plain or read.freshness is not Freshness.FRESH:
            return answer(read, self.policy, method=method, path=path, if_match=if_match, if_none_match=if_none_match)
        age, left = int(read.age), floor(entry.fresh_until - entry.created - read.age)
        kept = self._kept.get(id(entry))
        # It holds its entry, so that no other can have the same id; and every number is one of these two, or fixed.
        if kept is not None and kept.entry is entry and kept.age == age and kept.left == left:
            return kept.answer
        made = answer(read, self.policy, path=path)
        if made.status == 200:  # a 404 names the path
            if len(self._kept) >= _MOST:
                self._kept.clear()
            self._kept[id(entry)] = _Kept(entry, age, left, made)
        return made
