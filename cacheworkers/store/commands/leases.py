"""Leases: claim a call, begin its load, give it back; and what is known of its loads; each command as a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cacheworkers.core import envelope
from cacheworkers.store.commands import replies as parse
from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.replies import Alone, Begun, Claim
from cacheworkers.store.commands.steps import Exchange, StoreCommands, milliseconds
from cacheworkers.store.connections.request import Request

#: Most loads of one call that run at a time: those of before an invalidation, and one.
MAX_RUNNING = 2


class Leases(StoreCommands):
    """Who loads which call, how often that was tried, and how it failed."""

    def claim(
        self,
        call: str,
        token: str,
        *,
        lease_for: float,
        seen: bytes = b"",
        expected: str = "",
        heeds_backoff: bool = True,
        warms: bool = False,
        least_seq: int | None = None,
        is_last: bool = False,
        enqueue: tuple[str, bytes, bytes] | None = None,
    ) -> Exchange[Claim]:
        """Take the lease of a call, for `lease_for` seconds.

        Args:
            token: 16 hex digits, random: whoever claims knows it, and gives it to the worker.
            seen: the version the reader saw; refused when another is there now.
            expected: the token of a lease that may be taken over if its holder has not begun.
            heeds_backoff: refuse while a failure's backoff is running.
            warms: nobody waits for the load; until it has begun, a claim that does not warm may take its lease.
            is_last: whoever claims cannot wait: claim however many overtaken loads are running.
            least_seq: take an overtaken value too, if its load began at this sequence number or later.
            enqueue: the key of a queue, a list on this very server, and the message to push there with the claim, in
                two parts: the snapshot goes between them.
        """
        keys = self.keys
        names = (keys.entry(call), keys.lease(call), keys.failures(call), keys.overtaken(call), keys.attempts(call))
        request = Request.call(
            scripts.CLAIM,
            (*names, keys.seq) if self.has_one_slot else names,
            (
                token,
                milliseconds(lease_for),
                seen,
                expected,
                int(heeds_backoff),
                envelope.MAGIC,
                envelope.WRITE_ID_AT,
                int(warms),
                "" if least_seq is None else least_seq,
                envelope.SEQ_AT,
                "" if is_last else MAX_RUNNING,
                *(enqueue or ()),
            ),
        )
        return self._ask_one(request, parse.claim)

    def claim_many(
        self, asks: Sequence[tuple[str, str, bytes]], *, lease_for: float, warms: bool = False
    ) -> Exchange[list[Claim]]:
        """Take the leases of many `(call, token, seen)`, in one round trip; see `claim`.  At least one."""
        return Exchange.joint(
            [self.claim(call, token, lease_for=lease_for, seen=seen, warms=warms) for call, token, seen in asks]
        )

    def begin(
        self,
        calls: Sequence[tuple[str, str, str, bytes]],
        *,
        load_for: float,
        is_redelivered: bool = False,
        is_shared: bool | None = None,
    ) -> Exchange[list[Begun | Alone | None]]:
        """Begin the loads of many `(call, token, fence, seen)`; None where the work is another process's.

        Several are loaded together.  Of those a call whose last load has died is `Alone`: not begun.
        """
        if is_shared is None:
            is_shared = len(calls) > 1
        requests = [
            Request.call(
                scripts.BEGIN,
                (self.keys.entry(call), self.keys.lease(call), self.keys.attempts(call)),
                (
                    token,
                    fence,
                    milliseconds(load_for),
                    seen,
                    int(is_redelivered),
                    envelope.MAGIC,
                    envelope.WRITE_ID_AT,
                    int(is_shared),
                ),
            )
            for call, token, fence, seen in calls
        ]
        return self._ask(requests, lambda replies: [parse.begun(reply) for reply in replies])

    def mark_begun(self, claims: Sequence[tuple[str, str, float]]) -> Exchange[None]:
        """Say that the loads of many `(call, token, load_for)` have begun, which did without `begin`."""
        requests = [
            Request.call(
                scripts.MARK_BEGUN, (self.keys.lease(call), self.keys.attempts(call)), (token, milliseconds(load_for))
            )
            for call, token, load_for in claims
        ]
        return self._ask(requests, lambda replies: None)

    def release(self, names: Iterable[tuple[str, str]]) -> Exchange[int]:
        """Give back the leases of many `(call, token or fence)`; how many were ours."""
        requests = [
            Request.call(
                scripts.RELEASE, (self.keys.lease(call), self.keys.attempts(call), self.keys.failures(call)), (name,)
            )
            for call, name in names
        ]
        return self._ask(requests, lambda replies: sum(int(reply) for reply in replies))

    def lease(self, call: str) -> Exchange[dict[str, str]]:
        """The lease of a call as it stands: token, fence, taken_over, warm, left_ms; empty when nobody holds it."""
        key = self.keys.lease(call)

        def parsed(replies: Sequence[Any]) -> dict[str, str]:
            found = parse.fields(replies[0])
            return found and {**found, "left_ms": str(int(replies[1]))}

        return self._ask([Request(("HGETALL", key)), Request(("PTTL", key))], parsed)

    def are_claimed(self, calls: Sequence[str]) -> Exchange[list[bool]]:
        """Whether anybody holds the lease of each call."""
        requests = [Request(("EXISTS", self.keys.lease(call))) for call in calls]
        return self._ask(requests, lambda replies: [reply == 1 for reply in replies])

    def failing_until(self, calls: Sequence[str]) -> Exchange[list[float]]:
        """The instant, seconds, at which the backoff of each call's last failed load ends; 0 for none."""
        requests = [Request(("HGET", self.keys.failures(call), "until_ms")) for call in calls]
        return self._ask(requests, lambda replies: [float(reply or 0) / 1000 for reply in replies])

    def attempts(self, call: str) -> Exchange[int]:
        """How many loads of a call have begun since the last that ended; of those broken off by invalidations, one."""
        request = Request(("GET", self.keys.attempts(call)))
        return self._ask_one(request, lambda reply: int((reply or b"0").split()[0]))

    def failures(self, call: str) -> Exchange[dict[str, str]]:
        """The last failure of a call: kind, text, until_ms, count; empty when there is none."""
        return self._ask_one(Request(("HGETALL", self.keys.failures(call))), parse.failure)
