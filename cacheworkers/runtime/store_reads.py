"""StoreReads: reads of one loader that L1 does not answer: chooses a look in the store, another read's, or a flow."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from time import monotonic
from typing import Any

from cacheworkers.core.driver import Flow, arun, run
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import CacheworkersError, LoadTimeout, StoreError
from cacheworkers.flows import read as reading
from cacheworkers.flows.claim_ahead import claim_ahead
from cacheworkers.flows.loader_memory import LoaderMemory
from cacheworkers.flows.nested_read import nested
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports
from cacheworkers.flows.read_state import StoreResult
from cacheworkers.flows.transaction_read import read_in_transaction
from cacheworkers.load_context import current
from cacheworkers.local.blocking_call import warn_if_blocking
from cacheworkers.local.coalescing import Crowd, Outcome, TaskPlace, leave
from cacheworkers.local.l1 import MISSING
from cacheworkers.runtime.loader_runner import LoaderRunner
from cacheworkers.runtime.read_results import Arguments, Decode, ReadResults
from cacheworkers.sql.watch.dirty_transactions import dirty, dirty_transactions, is_dirty, late

#: As many tasks that begin to read one call while its look is under way are the beginning of thousands.
CROWDED = 256


class StoreReads:
    """Reads through the store.  Most find a fresh entry there, and need neither a flow nor a place among the waiters.

    Threads look each for itself, and become a crowd where there is nothing fresh: to wait for another's look takes
    longer than a look.  Tasks are a crowd from the first one on.
    """

    def __init__(self, ports: Ports, spec: LoaderSpec, memory: LoaderMemory, runner: LoaderRunner) -> None:
        self._ports = ports
        self._spec = spec
        self._memory = memory
        self._runner = runner
        self._since = memory.since
        self._results = ReadResults(ports, spec, memory)
        #: Raw positional arguments -> the tasks that read this call together, if there are several.
        self.crowds: dict[Any, Crowd] = {}
        self._has_index = spec.signature.positional_keys

    def find(self, call: Call, arguments: Arguments, decode: Decode, as_read: bool) -> Any:
        """Return the value or the Read of a call, blocking this thread."""
        if _get_running_loop() is not None:
            warn_if_blocking(self._spec.name)
        ports, text = self._ports, call.text
        if (current.get() or dirty.get() or late) and self.is_alone():
            apart = run(self.flow(call, arguments, decode))
            return apart if as_read else apart.value
        started, waiters, keeps = monotonic(), ports.waiters, self._memory.keeps_for
        if not ports.listener.started[0]:
            ports.listener.start()
        crowds = waiters.crowds.of_threads
        if text in waiters.flights or (crowds and (text, self._since) in crowds):
            return self._read_or_follow(call, arguments, decode, as_read, started, None)
        guard, is_coherent = self._guarded(text) if keeps else (0, False)
        try:
            raw = ports.store.fetch(text, started)
        except StoreError:  # the flow knows what to do without the store
            return self._read_or_follow(call, arguments, decode, as_read, started, None)
        is_plain = not (as_read or is_coherent or ports.has_hook)
        if is_plain and raw is not None and (value := self._results.fresh_value(text, decode, raw)) is not MISSING:
            return value
        found = StoreResult(raw, guard, is_coherent)
        if not is_plain:
            hit = self._results.hit(call, arguments, decode, found, started)
            if hit is not None:
                return hit if as_read else hit.value
        return self._read_or_follow(call, arguments, decode, as_read, started, found)

    async def afind(self, call: Call, arguments: Arguments, decode: Decode, as_read: bool) -> Any:
        """Return the value or the Read of a call, on the running loop."""
        started, found = monotonic(), None
        place, crowd = self.join(call.text, arguments, started)
        if place is not None:
            try:
                found = await place
            except BaseException as error:
                if not self.is_only_the_look(error, place, crowd, started):
                    raise
            else:
                value = self.settled(call, arguments, decode, as_read, started, crowd, found)
                if value is not MISSING:
                    return value
        return await self.alead(call, arguments, decode, as_read, started, crowd, found)

    def follow(self, crowd: Crowd, started: float) -> TaskPlace | None:
        """Join a crowd that was found by raw arguments; return what to await, None where that is for `join` to do."""
        loop = asyncio.get_running_loop()
        if crowd.loop is not loop or ((current.get() or dirty.get() or late) and self.is_alone()):
            return None
        place: TaskPlace = asyncio.Future(loop=loop)
        if not crowd.join(place, started):
            return None
        if crowd.unsent and crowd.unsent == self._ports.store.batcher.unsent(loop):
            crowd.cover_all()
        if len(crowd.followers) == CROWDED:
            self._claim_ahead(crowd)
        return place

    def join(self, text: str, arguments: Arguments, started: float) -> tuple[Any, Crowd | None]:
        """Join the tasks of the running loop that read a call: of those that read it together, one does so for all.

        Args:
            arguments: raw ones of the call, if it has no others.

        Returns:
            What to await, the leader's outcome or the reply to a look of this task's own, if there is either; and the
            crowd that is this task's to lead, if it does.
        """
        ports = self._ports
        if (current.get() or dirty.get() or late) and self.is_alone():
            return None, None
        loop, waiters, batcher = asyncio.get_running_loop(), ports.waiters, ports.store.batcher
        crowd, place = waiters.crowds.enter((text, self._since) if self._since else text, started, loop)
        turn = batcher.unsent(loop)
        if place is not None:
            if turn and crowd.unsent == turn:
                crowd.cover_all()
            if crowd.index is None and arguments is not None and self._has_index:
                crowd.loop, crowd.index, crowd.arguments = loop, self.crowds, arguments
                self.crowds[arguments] = crowd
            if len(crowd.followers) == CROWDED:
                self._claim_ahead(crowd)
            return place, None
        try:
            return self._look(text, crowd, turn, loop), crowd
        except BaseException as error:
            self._fail(crowd, error, started)
            raise

    def is_only_the_look(self, error: BaseException, place: Any, crowd: Crowd | None, started: float) -> bool:
        """Return whether a leader may go on without its look, for the store failed; else its crowd goes on without it.

        Args:
            error: what awaiting a place has raised.
        """
        if crowd is None:
            leave(place)
            return False
        if isinstance(error, StoreError):
            return True
        self._fail(crowd, error, started)
        return False

    def settled(
        self,
        call: Call | None,
        arguments: Arguments,
        decode: Decode,
        as_read: bool,
        started: float,
        crowd: Crowd | None,
        found: Any,
    ) -> Any:
        """Return what a place has come to, value or Read; MISSING if that takes a flow, or a look of this task's own.

        Args:
            call: None will do where this task does not lead.
            crowd: the crowd that this task leads.
            found: a leader's outcome, or a reply for the leader.
        """
        if crowd is None:
            return self._results.shared(decode, found, started, as_read) if type(found) is Outcome else MISSING
        assert call is not None
        ports = self._ports
        try:
            is_plain = not (as_read or crowd.is_coherent or crowd.followers or ports.has_hook)
            if is_plain and found is not None:
                value = self._results.fresh_value(call.text, decode, found)
                if value is not MISSING:
                    crowd.disband()
                    return value
            crowd.looked = StoreResult(found, crowd.guard, crowd.is_coherent)
            if crowd.followers:
                ports.store.batcher.was_alone = False  # the next look waits a turn, and covers who joins in it
            hit = None if is_plain else self._results.hit(call, arguments, decode, crowd.looked, started)
            if hit is not None and hit.entry is not None:
                crowd.payload = hit.entry.payload
                self._succeed(call, crowd, hit)
                return hit if as_read else hit.value
        except BaseException as error:
            self._fail(crowd, error, started)
            raise
        return MISSING

    def flow(self, call: Call, arguments: Arguments, decode: Decode, started: float | None = None) -> Flow[Read]:
        """Return the flow that reads a call past L1: within a transaction or a load, or through the store."""
        dirty = dirty_transactions(self._ports)
        if not dirty:
            return self._clean_flow(call, arguments, decode, started)
        return read_in_transaction(
            self._ports,
            self._spec,
            call,
            decode,
            dirty,
            self._runner.step_in_transaction,
            lambda: self._clean_flow(call, arguments, decode),
        )

    def outer_load(self) -> Loading | None:
        """Return the load of this cache that this thread or task is in."""
        found = current.get()
        return found[1] if found is not None and found[0] is self._runner.owner else None

    def is_alone(self) -> bool:
        """Return whether a read may be given nothing of another's: it is within a load, or sees a dirty session."""
        return self.outer_load() is not None or is_dirty(self._ports)

    # -- inside

    def _clean_flow(self, call: Call, arguments: Arguments, decode: Decode, started: float | None = None) -> Flow[Read]:
        """Return the flow that reads a call outside dirty transactions."""
        outer = self.outer_load()
        if outer is not None:
            return nested(self._ports, self._spec, call, decode, outer)
        self._ports.listener.start()
        return self._store_flow(call, arguments, decode, started)

    def _store_flow(
        self,
        call: Call,
        arguments: Arguments,
        decode: Decode,
        started: float | None,
        looked: StoreResult | None = None,
        crowd: Crowd | None = None,
    ) -> Flow[Read]:
        """Return the flow that reads a call through the store."""
        options = self._memory.options(call, arguments, decode)
        return reading.read(self._ports, self._spec, call, options, found=looked, started=started, crowd=crowd)

    def _read_or_follow(
        self,
        call: Call,
        arguments: Arguments,
        decode: Decode,
        as_read: bool,
        started: float,
        looked: StoreResult | None,
    ) -> Any:
        """Return the value or the Read of a call that is not fresh: of the threads that want it, one reads for all."""
        ports = self._ports
        crowd, place = ports.waiters.crowds.enter((call.text, self._since), started, None)
        if place is not None:
            looked = None  # long ago, after it has waited
            policy = self._spec.policy
            outcome = place.outcome(policy.wait_for + policy.load_for + ports.config.store_timeout)
            if isinstance(outcome, Outcome):
                shared = self._results.shared(decode, outcome, started, as_read)
                if shared is not MISSING:
                    return shared
            if outcome is None:  # a signal's handler, perhaps, has interrupted the leader before it could end
                crowd.leave_group()
            if type(outcome) is not Crowd:
                found = run(self._store_flow(call, arguments, decode, started))
                return found if as_read else found.value
        try:
            found = run(self._store_flow(call, arguments, decode, started, looked, crowd))
        except BaseException as error:
            self._fail(crowd, error, started)
            raise
        self._succeed(call, crowd, found)
        return found if as_read else found.value

    async def alead(
        self,
        call: Call,
        arguments: Arguments,
        decode: Decode,
        as_read: bool,
        started: float,
        crowd: Crowd | None,
        found: Any,
    ) -> Any:
        """Return the value or the Read of a call where a first look, or waiting for another's, was not enough.

        Args:
            crowd: the crowd that this task leads from its beginning.
            found: what it was given where it followed: an outcome that it cannot read, or the crowd, to lead it on.
        """
        if crowd is None:
            if type(found) is not Crowd:  # alone, or what another has found cannot be read so
                read = await arun(self.flow(call, arguments, decode, started))
                return read if as_read else read.value
            crowd, place, ports = found, None, self._ports
            try:
                loop = asyncio.get_running_loop()
                place = self._look(call.text, crowd, ports.store.batcher.unsent(loop), loop)
                reply = None if place is None else await place
            except StoreError:
                pass
            except BaseException as error:
                self._fail(crowd, error, started)
                raise
            else:
                if place is not None:
                    value = self.settled(call, arguments, decode, as_read, started, crowd, reply)
                    if value is not MISSING:
                        return value
        try:
            read = await arun(self._store_flow(call, arguments, decode, started, crowd.looked, crowd))
        except BaseException as error:
            self._fail(crowd, error, started)
            raise
        self._succeed(call, crowd, read)
        return read if as_read else read.value

    def _look(self, text: str, crowd: Crowd, turn: int, loop: asyncio.AbstractEventLoop) -> Any:
        """Ask the store for a crowd; return what to await; None where a flow is waiting for a load of the call.

        Args:
            turn: the batcher's of the running loop, if it is not sent yet.
            loop: the running one, which costs a system call to ask for.
        """
        ports = self._ports
        if not turn and not ports.listener.started[0]:  # asked once a turn
            ports.listener.start()
        if text in ports.waiters.flights:
            return None
        if self._memory.keeps_for:
            crowd.guard, crowd.is_coherent = self._guarded(text)
        if crowd.followers:
            crowd.cover()
        batcher = ports.store.batcher
        place = batcher.get(text, loop)
        crowd.unsent = turn or batcher.unsent(loop)
        return place

    def _claim_ahead(self, crowd: Crowd) -> None:
        """Claim for a crowd's leader, unless a flow is there already: that has had its answer, and claims itself."""
        text = crowd.key if type(crowd.key) is str else crowd.key[0]  # type: ignore[index]
        if text not in self._ports.waiters.flights:
            crowd.ahead = claim_ahead(self._ports, self._spec, text)

    def _guarded(self, text: str) -> tuple[int, bool]:
        """Return L1's guard and whether pushes are received, in this order."""
        return self._ports.l1.guard(text), self._ports.coherence.is_coherent

    def _succeed(self, call: Call, crowd: Crowd, read: Read) -> None:
        """End a leader's turn with a value."""
        readers = crowd.succeed(read)
        if readers:
            self._ports.access_counter.count(call.text, readers)

    def _fail(self, crowd: Crowd, error: BaseException, started: float) -> None:
        """End a leader's turn with an error, or leave the others to another leader where this one was cancelled.

        The time of a follower is not over before it is: the leader began first, so that its time is over first.  What
        it has found out holds for all it covers.
        """
        if not isinstance(error, CacheworkersError):
            crowd.pass_on()  # cancelled; or a signal's handler has ended this very read, for a time limit of its own
            return
        now, wait_for = monotonic(), self._spec.policy.wait_for
        if isinstance(error, LoadTimeout) and now >= started + wait_for:
            crowd.began_before = now - wait_for
        crowd.fail(error)
