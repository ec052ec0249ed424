"""The listener: hears of every entry that changes anywhere, drops it from L1 and wakes who waits for it.

One daemon thread holds one RESP3 connection per master with `CLIENT TRACKING ON BCAST` on the prefixes of entries and
failures.  A push means "this changed".  A ping's answer comes after all earlier pushes, which makes it a proof of
coherence for L1, and a barrier for an invalidation.  A reader that would keep the thread waiting takes in what has
arrived itself.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import random
import selectors
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import hiredis
from redis.exceptions import RedisError

from cacheworkers.core.keys import Keyspace
from cacheworkers.events import Event, ListenerDown, ListenerLag, ListenerUp
from cacheworkers.local.clock import StoreClock
from cacheworkers.local.coherence import Coherence
from cacheworkers.store.connections.transport import Transport
from cacheworkers.store.tracking.tracking_connection import InvalidationReader, TrackingConnection

log = logging.getLogger("cacheworkers")

PING_EVERY = 0.5
PING_LOST_AFTER = 2.0
_BACKOFF = (0.05, 2.0)


class Barrier:
    """A step: wait until every push sent before it has been processed; False when the listener is not up."""

    __slots__ = ("_listener", "_timeout")

    def __init__(self, listener: Listener, timeout: float) -> None:
        self._listener = listener
        self._timeout = timeout

    def __repr__(self) -> str:
        return "barrier"

    def run(self) -> bool:
        """Wait, blocking this thread."""
        pings = self._listener.ping()
        end = time.monotonic() + self._timeout
        try:
            return pings is not None and all([ping.result(max(0.0, end - time.monotonic())) for ping in pings])
        except TimeoutError:
            return False

    async def arun(self) -> bool:
        """Wait on the running loop."""
        pings = self._listener.ping()
        if pings is None:
            return False
        waiting = asyncio.gather(*map(asyncio.wrap_future, pings))
        try:
            return all(await asyncio.wait_for(waiting, self._timeout))
        except TimeoutError:
            return False


class Listener:
    """The thread that listens, and its connections."""

    def __init__(
        self,
        link: Transport,
        keys: Keyspace,
        coherence: Coherence,
        clock: StoreClock,
        *,
        timeout: float,
        on_entry: Callable[[str], None],
        on_failure: Callable[[str], None],
        on_lost: Callable[[], None],
        on_gap: Callable[[], None],
        is_busy: Callable[[], bool],
        emit: Callable[[Event], None],
    ) -> None:
        """
        Args:
            timeout: seconds to wait for a connection.
            on_entry: called with a call's text when its entry changed.
            on_failure: called with a call's text when its load failed.
            on_lost: called when the connection is lost: from here on pushes are missed.
            is_busy: says whether these callbacks might have to wait: no reader calls them then.
            on_gap: called when everything may have changed unheard: before the listener is up again, on FLUSHALL.
        """
        self._link = link
        self._gate = coherence
        self._clock = clock
        self._timeout = timeout
        self._on_entry = on_entry
        self._on_failure = on_failure
        self._on_lost = on_lost
        self._on_gap = on_gap
        self._is_busy = is_busy
        self._emit = emit
        self._keys = keys
        #: Called when this process begins to listen, that is, to read.
        self.on_start: Callable[[], None] = lambda: None
        #: Called first: a fork without Python's hooks has a thread by name only.
        self.check_process: Callable[[], None] = lambda: None
        self._entries = keys.entries_prefix.encode()
        self._failures = keys.failures_prefix.encode()
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget thread and connections, as a child does after a fork."""
        self._lock = threading.Lock()
        self._ears: list[TrackingConnection] = []
        self._intake: InvalidationReader | None = None
        self._masters: frozenset[str] = frozenset()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._is_told_down = False
        #: Events to be told by the thread: a reader that takes in must not run anybody's code.
        self._untold: collections.deque[ListenerUp | ListenerLag] = collections.deque()

    @property
    def is_up(self) -> bool:
        """Whether pushes are being heard."""
        return self._gate.is_coherent

    def start(self) -> None:
        """Start listening, if this process does not yet."""
        self.check_process()
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                thread = threading.Thread(target=self._listen, name="cacheworkers-listener", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # No more threads, none in this kind of interpreter, or it is ending: reads go past L1.
                    self._tell_down(self._link.where, f"its thread cannot be started: {error}")
                    return
                self._thread = thread
                self.on_start()

    def close(self) -> None:
        """Stop listening for good."""
        self._closed.set()
        with self._lock:
            ears, intake = self._ears, self._intake
        _close(ears, intake)
        # Not left to the thread, which may take its time to end: nobody hears of anything from here on.
        self._gate.close(time.monotonic())
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def barrier(self, timeout: float) -> Barrier:
        """Return the step that waits until all pushes sent so far have been processed."""
        return Barrier(self, timeout)

    def ping(self) -> list[Future[bool]] | None:
        """Send a ping to every master; None when not all are heard."""
        with self._lock:
            if not self.is_up or not self._ears or self._link.masters != self._masters:
                return None
            return [ear.ping() for ear in self._ears]

    # -- the thread

    def _listen(self) -> None:
        try:
            self._listen_until_closed()
        finally:  # whatever ended it: L1 must not answer for what nobody hears of
            self._gate.lost(time.monotonic())
            self._hang_up()

    def _listen_until_closed(self) -> None:
        backoff = _BACKOFF[0]
        while not self._closed.is_set():
            try:
                self._connect()
                backoff = _BACKOFF[0]
                self._hear()
            except (OSError, RedisError, hiredis.HiredisError) as error:
                self._lose(error)
                self._closed.wait(backoff * (0.5 + random.random() / 2))
                backoff = min(backoff * 2, _BACKOFF[1])
            except Exception as error:  # a bug in a callback must not leave L1 serving what it no longer hears of
                if self._closed.is_set():  # its sockets were closed under it
                    self._lose(error)
                    return
                log.exception("listener failed")
                self._lose(error)
                self._closed.wait(_BACKOFF[1])

    def _lose(self, error: Exception) -> None:
        # Order: the gate is closed first, so that whatever is filled from here on is filled under a new guard.
        self._gate.lost(time.monotonic())
        ears = self._hang_up()
        if ears:
            self._on_lost()
        if not self._closed.is_set():
            self._tell_down(ears[0].master if ears else self._link.where, f"{type(error).__name__}: {error}")

    def _tell_down(self, master: str, error: str) -> None:
        """Say that nothing is heard, and why; not again until something has been heard."""
        if self._is_told_down:
            return
        self._is_told_down = True
        log.warning(
            "the listener does not hear %s: %s; until it does, memory answers nothing and each read asks the store: "
            "`cacheworkers doctor` says what is missing",
            master,
            error,
        )
        self._emit(ListenerDown(master, error))

    def _hang_up(self) -> list[TrackingConnection]:
        """Close all connections, and return them."""
        with self._lock:
            ears, self._ears = self._ears, []
            intake, self._intake = self._intake, None
        _close(ears, intake)
        return ears

    def _connect(self) -> None:
        ears = []
        try:
            pools = self._link.pools()
            self._masters = frozenset(pools)
            for pool in pools.values():
                ears.append(
                    TrackingConnection(pool, self._timeout, (self._keys.entries_prefix, self._keys.failures_prefix))
                )
        except BaseException:
            for ear in ears:
                ear.hang_up()
            raise
        # L1 is emptied before the listener counts as up: what was kept meanwhile may have changed unheard.
        self._on_gap()
        with self._lock:
            self._ears = ears
        for ear in ears:
            ear.ping(asks_role=True)

    def _hear(self) -> None:
        intake = InvalidationReader(self._ears, self._take_in, self._prove, lambda: self._fail(intake), self._is_busy)
        with selectors.DefaultSelector() as selector:
            for ear in self._ears:
                selector.register(ear.socket, selectors.EVENT_READ)
            self._intake = intake
            self._gate.take_in = intake.run_here
            next_ping = time.monotonic() + PING_EVERY
            while not self._closed.is_set():
                looked_at = time.monotonic()
                selector.select(max(0.0, next_ping - looked_at))
                intake.run()
                self._tell()
                now = time.monotonic()
                if now >= next_ping:
                    next_ping = now + PING_EVERY
                    self._look_after(looked_at)

    def _fail(self, intake: InvalidationReader) -> None:
        """A reader could not take in what it has received: nothing is proven any more, and the thread begins anew."""
        if intake is self._intake:
            self._gate.lost(time.monotonic())
            self._on_lost()
            for ear in self._ears:
                ear.shutdown()

    def _prove(self) -> None:
        """Tell the gate up to when every push of every master has been processed."""
        if self._link.masters != self._masters:  # one is not heard: no ping may prove the opposite
            raise OSError("the Cluster has other masters now")
        if not all(ear.heard_at for ear in self._ears):
            return
        if self._gate.heard(min(ear.heard_at for ear in self._ears)):
            self._untold += [ListenerUp(ear.master) for ear in self._ears]

    def _tell(self) -> None:
        """Tell what has been noticed, by whichever thread."""
        while self._untold:
            event = self._untold.popleft()
            if isinstance(event, ListenerUp) and self._is_told_down:
                self._is_told_down = False
                log.warning("the listener hears %s", ", ".join(ear.master for ear in self._ears))
            self._emit(event)

    def _look_after(self, looked_at: float) -> None:
        """Ping every master that owes no answer; raise if one owes it for too long.

        Args:
            looked_at: when what has arrived was last asked for. Not the present: a process that was paused since then
                finds the answer as it goes on.
        """
        for ear in self._ears:
            if ear.silent_for(looked_at) > PING_LOST_AFTER:
                raise OSError(f"no answer to a ping for {PING_LOST_AFTER} s")
            if not ear.pings:
                ear.ping(asks_role=True)

    def _take_in(self, ear: TrackingConnection) -> None:
        entries, failures = self._entries, self._failures
        first, last = len(entries) + 1, -1  # between the braces of `ns:e:{product[42]}`
        first_failure = len(failures) + 1
        for reply in ear.replies():
            if isinstance(reply, hiredis.PushNotification):
                if reply[0] != b"invalidate":
                    continue
                if reply[1] is None:  # FLUSHDB, FLUSHALL: of any database
                    self._on_gap()
                    continue
                for key in reply[1]:
                    if key.startswith(entries):
                        self._on_entry(key[first:last].decode(errors="replace"))
                    elif key.startswith(failures):
                        self._on_failure(key[first_failure:last].decode(errors="replace"))
            elif isinstance(reply, hiredis.ReplyError):
                raise OSError(f"the listener's connection answered {reply}")
            elif isinstance(reply, bytes):
                # A replica pushes too, but as late as it pleases: its answers would prove nothing.
                if b"role:master" not in reply:
                    raise OSError(f"{ear.master} is no master any more")
            else:
                sent, received = ear.ponged()
                self._clock.measure(int(reply[0]) + int(reply[1]) / 1e6, sent, received)
                self._untold.append(ListenerLag(received - sent))


def _close(ears: list[TrackingConnection], intake: InvalidationReader | None) -> None:
    if intake is not None:
        intake.hang_up()
    for ear in ears:
        ear.hang_up()
