"""Store: entries and loads in Redis, one typed method per script or command, each a step; and all other commands."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.core.keys import Keyspace
from cacheworkers.local.get_batcher import GetBatcher
from cacheworkers.store.commands import replies as parse
from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.access_scores import AccessScores
from cacheworkers.store.commands.garbage import GarbageCommands
from cacheworkers.store.commands.leases import Leases
from cacheworkers.store.commands.process_notes import ProcessNotes
from cacheworkers.store.commands.replicas import Replicate
from cacheworkers.store.commands.replies import Registered, Snapshot
from cacheworkers.store.commands.steps import Exchange, Get, Write, milliseconds
from cacheworkers.store.commands.tag_sets import TagSets
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.transport import Transport

#: A tag set's member outlives its entry by the load's deadline and this much, in seconds: the write comes after the
#: registration, and a promoted master's clock may differ.
REGISTRATION_MARGIN = 60.0


class Store(Leases, TagSets, AccessScores, ProcessNotes, GarbageCommands):
    """All that the library asks of Redis; here, what concerns entries."""

    def __init__(self, link: Transport, keys: Keyspace, *, batch_size: int = 100) -> None:
        super().__init__(link, keys)
        self._batch_size = batch_size
        self.batcher = GetBatcher(lambda calls: self.get_many(calls).arun(), self._submit_get_many, batch_size)

    def reset(self) -> None:
        """Forget connections and what was asked, as a child does after a fork."""
        self.link.reset()
        self.batcher.reset()

    # -- entries

    def get(self, call: str) -> Get:
        """The envelope of a call, unread; None when there is none, or something foreign."""
        return Get(self.link, self.batcher, self.keys.entry(call), call)

    def fetch(self, call: str, now: float) -> bytes | None:
        """Return the envelope of a call now, as `get` does: blocks this thread, in a process that has been checked.

        Args:
            now: this process's monotonic instant.
        """
        return self.link.get(f"{self.keys.entry_prefix}{call}}}", now)

    def get_many(self, calls: Sequence[str]) -> Exchange[list[bytes | None]]:
        """The envelopes of many calls, in their order."""
        keys = self.keys.entries(calls)
        if self.link.is_cluster:
            # An MGET takes keys of one slot only, and of a hundred keys hardly two have the same: as many GETs, which
            # go out in one write per master, are no more work for it, and work while a slot is on its way.
            return self._ask([Request(("GET", key)) for key in keys], lambda replies: [parse.raw(r) for r in replies])
        size = self._batch_size
        if len(keys) <= size:
            requests = [Request(("MGET", *keys))] if keys else []
            return self._ask(requests, lambda replies: parse.ours(replies[0]) if replies else [])
        chunks = [Request(("MGET", *keys[at : at + size])) for at in range(0, len(keys), size)]
        return self._ask(chunks, lambda replies: list(itertools.chain.from_iterable(replies)))

    def _submit_get_many(self, calls: list[str], done: Callable[[list[bytes | None] | Exception], None]) -> bool:
        """Ask for the envelopes of many calls together, as `Transport.submit` does."""

        def unwrapped(outcome: list[Any] | Exception) -> None:
            found = outcome[0] if isinstance(outcome, list) else outcome
            is_foreign = found is not outcome and isinstance(found, Exception)
            done(parse.foreign(found) if is_foreign else found)

        return self.link.submit(("MGET", *self.keys.entries(calls)), unwrapped)

    def heads(self, calls: Sequence[str]) -> Exchange[list[bytes | None]]:
        """The headers of the envelopes of many calls, in their order; an entry may be megabytes."""
        requests = [Request(("GETRANGE", self.keys.entry(call), 0, envelope.HEADER_BYTES - 1)) for call in calls]
        return self._ask(requests, lambda replies: [parse.raw(reply) or None for reply in replies])

    # -- loads

    def snapshot(self) -> Exchange[Snapshot]:
        """The sequence and the time, to be taken before the data is read.

        A process that keeps tags in several shards says so first: an invalidation that does not know it has begun
        before the data is read, and what it changed is in that data.
        """
        requests = []
        if self.keys.own_tag_shards:
            words = [word for each in self.keys.own_tag_shards.items() for word in each]
            requests.append(Request.call(scripts.DECLARE_SHARDS, (self.keys.tag_shards,), words))
        requests.append(Request.call(scripts.SNAPSHOT, (self.keys.seq,), ()))

        def parsed(replies: list[Any]) -> Snapshot:
            for reply in replies:
                parse.ours(reply)
            return Snapshot(int(replies[-1][0]), replies[-1][1] / 1000)

        return self._ask(requests, parsed)

    def register(
        self, calls: Sequence[tuple[str, Sequence[str], float]], *, load_for: float
    ) -> Exchange[list[Registered]]:
        """Put each `(call, tags, life)` into its tags' sets before it is written; what was invalidated meanwhile."""
        requests = []
        for call, tags, life in calls:
            kept_for_ms = milliseconds(life + load_for + REGISTRATION_MARGIN)
            for tag in tags:
                shard = self.keys.shard_of(tag, call)
                keys = (self.keys.tag_set(tag, shard), self.keys.last_invalidation(tag, shard))
                requests.append(Request.call(scripts.REGISTER, keys, (call, kept_for_ms)))

        def parsed(replies: list[Any]) -> list[Registered]:
            found, at = [], 0
            for _, tags, _ in calls:
                mine = replies[at : at + len(tags)]
                at += len(tags)
                found.append(
                    Registered(max((int(r[0]) for r in mine), default=0), max((r[1] / 1000 for r in mine), default=0.0))
                )
            return found

        return self._ask(requests, parsed)

    def write(self, entries: Sequence[tuple[Entry, str]]) -> Exchange[list[bool]]:
        """Store each `(entry, fence)`; False where an invalidation or another holder has broken the lease."""
        requests = [
            Request.call(scripts.WRITE, self._written_keys(entry.call), self._written(entry, fence))
            for entry, fence in entries
        ]
        return self._ask(requests, lambda replies: [reply == 1 for reply in replies])

    def register_write(
        self, entries: Sequence[tuple[Entry, str]], seq: int, *, load_for: float
    ) -> Write[tuple[list[Registered], list[bool]]]:
        """Do what `register` and `write` do, each `(entry, fence)` in one step; where one server has all keys.

        What an invalidation has overtaken since the snapshot `seq` is registered and not stored.
        """
        requests = []
        for entry, fence in entries:
            call = entry.call
            keys = [*self._written_keys(call)]
            for tag in entry.tags:
                shard = self.keys.shard_of(tag, call)
                keys += (self.keys.tag_set(tag, shard), self.keys.last_invalidation(tag, shard))
            kept_for_ms = milliseconds(entry.expires_at - entry.created + load_for + REGISTRATION_MARGIN)
            args = (*self._written(entry, fence), call, kept_for_ms, seq)
            requests.append(Request.call(scripts.REGISTER_WRITE, keys, args))

        def parsed(replies: list[Any]) -> tuple[list[Registered], list[bool]]:
            registered = [Registered(int(newest), now / 1000) for newest, now, _ in replies]
            return registered, [is_stored == 1 for _, _, is_stored in replies]

        return Write(self.link, requests, parsed)

    def fail(
        self, failures: Sequence[tuple[str, str, str, str]], *, first_for: float, most_for: float
    ) -> Exchange[list[bool]]:
        """Record each `(call, fence, kind, text)`; wakes whoever waits for it.  False where the lease was broken."""
        requests = [
            Request.call(
                scripts.FAIL,
                (self.keys.lease(call), self.keys.failures(call), self.keys.attempts(call)),
                (fence, kind, text, milliseconds(first_for), milliseconds(most_for)),
            )
            for call, fence, kind, text in failures
        ]
        return self._ask(requests, lambda replies: [int(reply) >= 0 for reply in replies])

    def offer(self, entry: Entry, kept_for: float) -> Exchange[bool]:
        """Leave an overtaken value, for `kept_for` seconds, to readers that had begun before its load."""
        request = Request.call(
            scripts.OFFER,
            (self.keys.overtaken(entry.call),),
            (envelope.pack(entry), milliseconds(kept_for), envelope.SEQ_AT),
        )
        return self._ask_one(request, lambda reply: reply == 1)

    def take_turn(self, loader: str, interval: float, most: float) -> Exchange[float | None]:
        """Take the next turn of a loader with a rate limit; seconds until then, or None: not within `most` seconds."""
        request = Request.call(
            scripts.TURN, (self.keys.turns(loader),), (int(interval * 1e6), int(max(0.0, most) * 1e6))
        )
        return self._ask_one(request, lambda left: None if int(left) < 0 else int(left) / 1e6)

    # -- replicas

    def replicate(self, replicas: int, store_timeout: float) -> Replicate:
        """Wait until `replicas` replicas of every master have all that was written so far; raises if fewer do."""
        return Replicate(self.link, self.keys.touched, replicas, store_timeout)

    def overtaken(self, calls: Sequence[tuple[str, Sequence[str]]]) -> Exchange[tuple[int, list[str]]]:
        """The newest number of an invalidation of any tag of `(call, tags)`, and each call's holder; needs no room.

        A holder is the fence of the lease, or its token where no load has begun.
        """
        keys = {self.keys.last_invalidation(tag, self.keys.shard_of(tag, call)) for call, tags in calls for tag in tags}
        requests = [Request(("HMGET", self.keys.lease(call), "fence", "token")) for call, _ in calls]
        requests += [Request(("GET", key)) for key in keys]

        def parsed(replies: list[Any]) -> tuple[int, list[str]]:
            leases, numbers = replies[: len(calls)], replies[len(calls) :]
            holders = [parse.text(fence or token or b"") for fence, token in leases]
            return max((int(n or 0) for n in numbers), default=0), holders

        return self._ask(requests, parsed)

    def call_state(self, loader: str, call: str) -> Exchange[list[Any]]:
        """What `lease`, `failures`, `read_at`, `attempts` and `taken_age` say of a call, in one round trip."""
        parts = (self.lease(call), self.failures(call), self.read_at(loader, call), self.attempts(call))
        return Exchange.joint((*parts, self.taken_age("miss")))

    # -- helpers

    def _written_keys(self, call: str) -> tuple[str, ...]:
        keys = self.keys
        return keys.entry(call), keys.lease(call), keys.failures(call), keys.attempts(call)

    def _written(self, entry: Entry, fence: str) -> tuple[Any, ...]:
        return fence, envelope.pack(entry), milliseconds(entry.expires_at), entry.write_id, envelope.WRITE_ID_AT
