"""Bookkeeping: what workers, beat, doctor and warming leave in the store beside entries, each command as a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from cacheworkers.core.keys import Keyspace
from cacheworkers.store.commands import replies as parse
from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.replies import Trimmed
from cacheworkers.store.commands.steps import Exchange, Info, Scan
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.server_check import info_of
from cacheworkers.store.connections.transport import Transport

T = TypeVar("T")

#: How long it is known what the processes of a namespace were, seconds.
MARKS_KEPT_FOR = 86400.0
#: Half-lives for which access scores are remembered.
ACCESSES_KEPT_FOR = 100
#: How long it is known when a worker last took a message, and that a worker runs, seconds.
TAKEN_KEPT_FOR = 600.0
WORKER_KEPT_FOR = 180.0
#: How long the sign that an upkeep task has run is kept, seconds.
BEAT_KEPT_FOR = 86400.0


class Bookkeeping:
    """Access scores, signs of life, notes for doctor, and the position of the garbage collection."""

    def __init__(self, link: Transport, keys: Keyspace) -> None:
        self.link = link
        self.keys = keys

    # -- for doctor

    def note_marks(self, marks: Sequence[str], at: float, lapsed: Sequence[str] = ()) -> Exchange[dict[str, float]]:
        """Note what a process of this namespace is, and delete what lapsed; all that is noted, as of `marks`."""
        key = self.keys.marks
        fields = [word for mark in marks for word in (mark, at)]
        note = [Request(("HSET", key, *fields)), Request(("PEXPIRE", key, milliseconds(MARKS_KEPT_FOR)))]
        if lapsed:
            note.append(Request(("HDEL", key, *lapsed)))
        return self._ask([*note, Request(("HGETALL", key))], lambda replies: parse.instants(replies[-1]))

    def marks(self) -> Exchange[dict[str, float]]:
        """What the processes of this namespace are, and when that was last noted, seconds since the epoch."""
        return self._ask([Request(("HGETALL", self.keys.marks))], lambda replies: parse.instants(replies[0]))

    def note_unstored(self, loader: str, reason: str) -> Exchange[None]:
        """Note that a value of a loader had no place here."""
        key = self.keys.unstored
        requests = [Request(("HSET", key, loader, reason)), Request(("PEXPIRE", key, milliseconds(BEAT_KEPT_FOR)))]
        return self._ask(requests, lambda replies: None)

    def unstored(self) -> Exchange[dict[str, str]]:
        """Loader -> why its last value without a place here had none, within a day."""
        return self._ask([Request(("HGETALL", self.keys.unstored))], lambda replies: parse.fields(replies[0]))

    # -- access scores

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
        return self._ask([request], lambda replies: int(parse.or_nothing(replies[0], 0)))

    def most_read(self, loader: str, first: int, most: int, since: float) -> Exchange[list[tuple[str, float]]]:
        """The hottest calls of a loader from a rank on: `(call, read_at)`; see `core/access_score.py`.

        Args:
            since: least `read_at`.
        """
        key, limit = self.keys.accesses(loader), ("LIMIT", first, most)
        request = Request(("ZREVRANGEBYSCORE", key, "+inf", since, "WITHSCORES", *limit))
        return self._ask([request], lambda replies: parse.scored(parse.or_nothing(replies[0], ())))

    def count_read_since(self, loader: str, since: float) -> Exchange[int]:
        """How many calls of a loader have a `read_at` of at least `since`."""
        request = Request(("ZCOUNT", self.keys.accesses(loader), since, "+inf"))
        return self._ask([request], lambda replies: int(parse.or_nothing(replies[0], 0)))

    def read_at(self, loader: str, call: str) -> Exchange[float | None]:
        """The `read_at` of one call; None if it is not among the hottest."""
        request = Request(("ZSCORE", self.keys.accesses(loader), call))

        def parsed(replies: Sequence[Any]) -> float | None:
            reply = parse.or_nothing(replies[0], None)
            return None if reply is None else float(reply)

        return self._ask([request], parsed)

    def foreign_keys(self, loaders: Iterable[str]) -> Exchange[list[str]]:
        """Those keys of the namespace and of these loaders, not of calls and tags, that something else has written."""
        requests = [Request(("ZCOUNT", self.keys.accesses(loader), "-inf", "+inf")) for loader in loaders]
        requests += [Request(("HGETALL", key)) for key in (self.keys.marks, self.keys.unstored, self.keys.tag_shards)]
        requests.append(Request(("GET", self.keys.seq)))
        return self._ask(
            requests,
            lambda replies: [
                request.key for request, reply in zip(requests, replies, strict=True) if isinstance(reply, Exception)
            ],
        )

    # -- the server itself

    def info(self) -> Info:
        """What every master says of itself: name -> text."""
        return Info(self.link)

    def run_ids(self) -> Exchange[tuple[str, str, bool]]:
        """The run id noted last, empty for none; that of the server that answers; whether this began with keys."""
        requests = [Request(("GET", self.keys.run_id)), Request(("INFO", "server", "persistence"))]

        def parsed(replies: Sequence[Any]) -> tuple[str, str, bool]:
            info = info_of(replies[1])
            has_loaded = info.get("rdb_last_load_keys_loaded", "0") != "0"
            return parse.text(replies[0] or b""), info.get("run_id", ""), has_loaded

        return self._ask(requests, parsed)

    def note_run_id(self, run_id: str) -> Exchange[None]:
        """Note a server's run id: another one there later says that it was restarted, or is another server."""
        return self._ask([Request(("SET", self.keys.run_id, run_id))], lambda replies: None)

    def begin_tick(self, task: str, every: float) -> Exchange[tuple[bool, float | None]]:
        """Whether nobody else has begun an upkeep task in this period, and how long ago it last ended, seconds.

        None where that is more than a day, or never.
        """
        requests = [
            Request(("SET", self.keys.tick(task), "", "NX", "PX", max(1, milliseconds(every * 0.9)))),
            Request(("PTTL", self.keys.beat(task))),
        ]
        return self._ask(
            requests,
            lambda replies: (
                replies[0] is not None,
                BEAT_KEPT_FOR - int(replies[1]) / 1000 if int(replies[1]) > 0 else None,
            ),
        )

    def note_beat(self, task: str) -> Exchange[None]:
        """Leave a sign that an upkeep task has run; how much of its life is left says when."""
        request = Request(("SET", self.keys.beat(task), "", "PX", milliseconds(BEAT_KEPT_FOR)))
        return self._ask([request], lambda replies: None)

    def unlink(self, names: Sequence[str]) -> Exchange[int]:
        """Delete keys; how many there were."""
        return self._ask([Request(("UNLINK", name)) for name in names], lambda replies: sum(map(int, replies)))

    # -- workers

    def note_taken(self, queue: str) -> Exchange[None]:
        """Leave a mark that a worker has taken a message from a queue; how much of its life is left says when."""
        request = Request(("SET", self.keys.taken(queue), "", "PX", milliseconds(TAKEN_KEPT_FOR)))
        return self._ask([request], lambda replies: None)

    def taken_age(self, queue: str) -> Exchange[float | None]:
        """How long ago a worker last took a message from a queue, seconds; None for longer than ten minutes."""
        return self._ask(
            [Request(("PTTL", self.keys.taken(queue)))],
            lambda replies: TAKEN_KEPT_FOR - int(replies[0]) / 1000 if int(replies[0]) > 0 else None,
        )

    def note_worker(self, name: str) -> Exchange[None]:
        """Leave a mark that a worker of this store runs."""
        request = Request(("SET", self.keys.worker(name), "", "PX", milliseconds(WORKER_KEPT_FOR)))
        return self._ask([request], lambda replies: None)

    def have_workers(self, names: Sequence[str]) -> Exchange[list[bool]]:
        """Whether each of these workers has left its mark in this store."""
        requests = [Request(("EXISTS", self.keys.worker(name))) for name in names]
        return self._ask(requests, lambda replies: [reply == 1 for reply in replies])

    # -- garbage collection

    def trim_tag(self, key: str, last: str, *, most: int, mark_kept_for: float) -> Exchange[Trimmed]:
        """Drop expired members of one tag set, and the tag's mark when it is old enough."""
        request = Request.call(scripts.TRIM_TAG, (key, last), (most, milliseconds(mark_kept_for)))

        def parsed(replies: list[Any]) -> Trimmed:
            dropped, _, *are_foreign = replies[0]
            return Trimmed(int(dropped), tuple(itertools.compress((key, last), are_foreign)))

        return self._ask([request], parsed)

    def gc_position(self) -> Exchange[tuple[int, int]]:
        """Where the last garbage collection stopped: its phase and its cursor there; the beginning, if it was whole."""
        return self._ask([Request(("GET", self.keys.gc_position))], lambda replies: parse.position(replies[0]))

    def keep_gc_position(self, position: tuple[int, int] | None) -> Exchange[None]:
        """Keep where a garbage collection stops; None if it was whole."""
        key = self.keys.gc_position
        words = ("DEL", key) if position is None else ("SET", key, "{}:{}".format(*position), "EX", 86_400)
        return self._ask([Request(words)], lambda replies: None)

    def scan(self, cursor: int, pattern: str) -> Scan:
        """One step of a walk through the keys that match a pattern, on all masters; it ends at cursor 0."""
        return Scan(self.link, cursor, pattern)

    # -- helpers

    def _ask(self, requests: Sequence[Request], parse: Callable[[list[Any]], T]) -> Exchange[T]:
        return Exchange(self.link, requests, parse)


def milliseconds(seconds: float) -> int:
    """Return seconds as the store counts them."""
    return int(seconds * 1000)
