"""Process notes: what processes, workers and upkeep tasks note of themselves in the store, each command as a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cacheworkers.store.commands import replies as parse
from cacheworkers.store.commands.steps import Exchange, Info, StoreCommands, milliseconds
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.server_check import info_of

#: How long it is known what the processes of a namespace were, seconds.
MARKS_KEPT_FOR = 86400.0
#: How long it is known when a worker last took a message, and that a worker runs, seconds.
TAKEN_KEPT_FOR = 600.0
WORKER_KEPT_FOR = 180.0
#: How long the sign that an upkeep task has run is kept, seconds.
BEAT_KEPT_FOR = 86400.0


class ProcessNotes(StoreCommands):
    """Signs of life, what the processes of a namespace are, and what doctor is to know."""

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
        return self._ask_one(Request(("HGETALL", self.keys.marks)), parse.instants)

    def note_unstored(self, loader: str, reason: str) -> Exchange[None]:
        """Note that a value of a loader had no place here."""
        key = self.keys.unstored
        requests = [Request(("HSET", key, loader, reason)), Request(("PEXPIRE", key, milliseconds(BEAT_KEPT_FOR)))]
        return self._ask(requests, lambda replies: None)

    def unstored(self) -> Exchange[dict[str, str]]:
        """Loader -> why its last value without a place here had none, within a day."""
        return self._ask_one(Request(("HGETALL", self.keys.unstored)), parse.fields)

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

    # -- upkeep and workers

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
        """Leave a sign that an upkeep task has run."""
        return self._set_for(self.keys.beat(task), BEAT_KEPT_FOR)

    def note_taken(self, queue: str) -> Exchange[None]:
        """Leave a mark that a worker has taken a message from a queue."""
        return self._set_for(self.keys.taken(queue), TAKEN_KEPT_FOR)

    def taken_age(self, queue: str) -> Exchange[float | None]:
        """How long ago a worker last took a message from a queue, seconds; None for longer than ten minutes."""
        return self._ask_one(
            Request(("PTTL", self.keys.taken(queue))),
            lambda left: TAKEN_KEPT_FOR - int(left) / 1000 if int(left) > 0 else None,
        )

    def note_worker(self, name: str) -> Exchange[None]:
        """Leave a mark that a worker of this store runs."""
        return self._set_for(self.keys.worker(name), WORKER_KEPT_FOR)

    def have_workers(self, names: Sequence[str]) -> Exchange[list[bool]]:
        """Whether each of these workers has left its mark in this store."""
        requests = [Request(("EXISTS", self.keys.worker(name))) for name in names]
        return self._ask(requests, lambda replies: [reply == 1 for reply in replies])

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
        return self._ask_one(Request(("SET", self.keys.run_id, run_id)), lambda reply: None)
