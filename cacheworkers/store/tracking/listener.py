"""Listener: receives invalidation messages of the entries that this process keeps or waits for.

One daemon thread holds one RESP3 connection per master.  The server tracks what is read on it: an entry that memory
keeps is compared there with what the store has, and reported when it changes; a call that a reader waits for is asked
for together with its lease.  So a change of what this process neither keeps nor waits for costs it, and the server,
nothing.  A ping's answer comes after all earlier messages: it proves that memory is coherent, and is the barrier of an
invalidation.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import random
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import hiredis
from redis.exceptions import RedisError

from cacheworkers.core.keys import Keyspace
from cacheworkers.events import Event, ListenerDown, ListenerLag, ListenerUp
from cacheworkers.local.clock import StoreClock
from cacheworkers.local.coherence import Coherence
from cacheworkers.local.fork_check import process_mark
from cacheworkers.local.l1 import L1
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.local.waiters import Waiters
from cacheworkers.store.connections.health import error_text
from cacheworkers.store.connections.transport import Masters, Transport
from cacheworkers.store.tracking.barrier import Barrier
from cacheworkers.store.tracking.key_tracking import KeyTracking
from cacheworkers.store.tracking.tracking_connection import COLLECT_FOR, TrackingConnection
from cacheworkers.store.tracking.waker import Waker

log = logging.getLogger("cacheworkers")

PING_EVERY = 0.5
PING_LOST_AFTER = 2.0
_BACKOFF = (0.05, 2.0)


class Listener(KeyTracking):
    """The thread that receives, and its connections.

    Attributes:
        started: its item 0 is true in the process in which it has been started, and not in a fork.
    """

    def __init__(
        self,
        link: Transport,
        keys: Keyspace,
        coherence: Coherence,
        clock: StoreClock,
        l1: L1,
        waiters: Waiters,
        *,
        timeout: float,
        emit: Callable[[Event], None],
    ) -> None:
        """
        Args:
            timeout: seconds to wait for a connection.
        """
        self._coherence = coherence
        self._clock = clock
        self._l1 = l1
        self._waiters = waiters
        self._timeout = timeout
        self._emit = emit
        #: Called when this process begins to listen, that is, to read.
        self.on_start: Callable[[], None] = lambda: None
        #: Called first: a fork without Python's hooks has a thread by name only.
        self.check_process: Callable[[], None] = lambda: None
        super().__init__(link, keys, l1, waiters)
        self.reset()

    def reset(self) -> None:
        """Forget thread and connections, as a child does after a fork."""
        self._lock = threading.Lock()
        self._connections = {}
        self._masters: frozenset[str] = frozenset()
        self._listened_to = self._masters
        self._thread: threading.Thread | None = None
        self.started: Any = (False,)
        self._closed = threading.Event()
        self._is_reported_down = False
        self._is_late_use_logged = False
        self._waker: Waker | None = None

    @property
    def connections(self) -> list[TrackingConnection]:
        """The connections that are open, one per master."""
        return list(self._connections.values())

    @property
    def is_up(self) -> bool:
        """Whether changes are reported."""
        return self._coherence.is_coherent

    def start(self) -> None:
        """Start listening, if this process does not yet."""
        self.check_process()
        if self._closed.is_set() and not self._is_late_use_logged:
            self._is_late_use_logged = True
            log.warning(
                "this cache has been closed, and is read again: reads go past this process's memory, and what its "
                "sessions commit is invalidated by nobody; close it once, when the process ends, not in a lifespan or "
                "fixture that runs again"
            )
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                thread = ProcessThread(self._listen, "cacheworkers-listener")
                try:
                    thread.start()
                except RuntimeError as error:
                    # No more threads, none in this kind of interpreter, or it is ending: reads go past memory.
                    self._report_down(self._link.where, f"its thread cannot be started: {error}")
                    return
                self._thread = thread
                self.started = process_mark()
                self.on_start()

    def close(self) -> None:
        """Stop listening for good."""
        self._closed.set()
        self.started = (False,)  # a read after this calls `start`, which says so
        with self._lock:
            connections, waker = list(self._connections.values()), self._waker
        for connection in connections:
            connection.close()
        if waker is not None:  # a selector is not woken by a socket that this process closes
            waker.wake()
        # Not left to the thread, which may take its time to end.
        self._coherence.close(time.monotonic())
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    # -- proof

    def barrier(self, timeout: float) -> Barrier:
        """Return the step that waits until all messages sent so far have been processed."""
        return Barrier(self.ping, timeout)

    def ping(self) -> list[Future[bool]] | None:
        """Send a ping to every master; None when not all are listened to."""
        with self._lock:
            connections = list(self._connections.values())
            if not self.is_up or not connections or self._link.masters != self._masters:
                return None
        return self._ping(connections)

    def _ping(self, connections: Sequence[TrackingConnection], *, asks_role: bool = False) -> list[Future[bool]]:
        # What was read before this ping and is kept after it would be asked about behind it: its answer would prove
        # too much.
        self._l1.bump_all()
        return [
            each.ping(self._on_time, functools.partial(self._on_role, each) if asks_role else None)
            for each in connections
        ]

    # -- the thread

    def _listen(self) -> None:
        try:
            self._listen_until_closed()
        finally:  # whatever ended it: memory must not serve keys that are no longer tracked
            self._coherence.lost(time.monotonic())
            self._link.expect_silence()
            self._close_connections()

    def _listen_until_closed(self) -> None:
        backoff, process = _BACKOFF[0], os.getpid()
        while not self._closed.is_set():
            _stay_in(process)
            try:
                self._connect()
                backoff = _BACKOFF[0]
                self._receive()
            except (OSError, RedisError, hiredis.HiredisError) as error:
                _stay_in(process)
                self._lose(error)
                self._closed.wait(backoff * (0.5 + random.random() / 2))
                backoff = min(backoff * 2, _BACKOFF[1])
            except Exception as error:  # a bug in a callback must not leave memory serving untracked keys
                if self._closed.is_set():  # its sockets were closed under it
                    self._lose(error)
                    return
                log.exception("listener failed")
                self._lose(error)
                self._closed.wait(_BACKOFF[1])

    def _lose(self, error: Exception) -> None:
        # Memory stops answering first, so that whatever is filled from here on is filled under a new guard.
        self._coherence.lost(time.monotonic())
        connections = self._close_connections()
        if connections:
            self._link.expect_silence()
            self._l1.bump_all()
            self._waiters.wake_all()
        if not self._closed.is_set():
            address = connections[0].address if connections else self._link.where
            self._report_down(address, error_text(error))

    def _report_down(self, master: str, error: str) -> None:
        """Log and emit that no changes are reported, and why; once until they are again."""
        if self._is_reported_down:
            return
        self._is_reported_down = True
        log.warning(
            "the listener receives no invalidation messages from %s: %s; until it does, reads ask the store, if it "
            "answers, instead of this process's memory: `cacheworkers doctor` says what is missing",
            master,
            error,
        )
        self._emit(ListenerDown(master, error))

    def _close_connections(self) -> list[TrackingConnection]:
        """Close all connections, and return them."""
        with self._lock:
            connections, self._connections = list(self._connections.values()), {}
            waker, self._waker = self._waker, None
        for connection in connections:
            connection.close()
        if waker is not None:
            waker.close()
        return connections

    def _connect(self) -> None:
        connections: dict[str, TrackingConnection] = {}
        waker = Waker()
        try:
            pools = self._link.pools()
            self._masters = frozenset(pools)
            for name, pool in pools.items():
                connections[name] = TrackingConnection(name, pool, self._timeout, waker.wake)
            masters: Masters = self._masters
            for each in connections.values():
                masters = self._link.confirm_master(each.address)
        except BaseException:
            for connection in connections.values():
                connection.close()
            waker.close()
            raise
        # Emptied before the listener counts as up: what was kept meanwhile may have changed unreported.
        self.messages.drop_all()
        self._listened_to = masters
        self._link.end_silence()
        with self._lock:
            self._connections, self._waker = connections, waker
        self._ping(list(connections.values()), asks_role=True)

    def _receive(self) -> None:
        with self._lock:
            connections, waker = list(self._connections.values()), self._waker
        if waker is None:  # closed meanwhile
            return
        with selectors.DefaultSelector() as selector:
            for each in connections:
                selector.register(each.socket, selectors.EVENT_READ, each)
            selector.register(waker, selectors.EVENT_READ, None)
            next_ping, process = time.monotonic() + PING_EVERY, os.getpid()
            flushed_at, flush_at, proven_at = 0.0, math.inf, 0.0
            while not self._closed.is_set():
                looked_at = time.monotonic()
                ready = selector.select(max(0.0, min(next_ping, flush_at) - looked_at))
                _stay_in(process)
                for found, _ in ready:
                    if found.data is not None:
                        self._process(found.data)
                    else:
                        waker.clear()
                        flush_at = flushed_at + COLLECT_FOR
                # The oldest: replies of several masters arrive in any order, and the last one completes the proof.
                if (oldest := min(each.proven_at for each in connections)) > proven_at:
                    proven_at = oldest
                    self._prove()
                now = time.monotonic()
                if now >= flush_at:
                    flushed_at, flush_at = now, math.inf
                    for each in connections:
                        each.flush()
                if now >= next_ping:
                    next_ping = now + PING_EVERY
                    self._ping_all(connections, looked_at)

    def _ping_all(self, connections: Sequence[TrackingConnection], looked_at: float) -> None:
        """Ping every master that has answered the last ping; raise if one has not for too long.

        Args:
            looked_at: when what has arrived was last asked for. Not the present: a process that was paused since then
                finds the answer as it goes on.
        """
        for each in connections:
            if each.unanswered_for(looked_at) > PING_LOST_AFTER:
                raise OSError(f"no answer to a ping for {PING_LOST_AFTER} s")
            if self._link.confirm_master(each.address) != self._listened_to:
                raise OSError("the masters have changed meanwhile")
        if due := [each for each in connections if not each.pings]:
            self._ping(due, asks_role=True)
        if self._link.is_cluster:
            # A key that does not exist leaves with its slot unreported: its new master has to be asked.
            for flight in self._waiters.waiting():
                self.watch(flight)

    def _prove(self) -> None:
        """Note up to when every message of every master has been processed."""
        connections = list(self._connections.values())
        if self._link.masters != self._masters:  # one is not listened to: no ping may prove the opposite
            raise OSError("the Cluster has other masters now")
        if not connections or not all(each.proven_at for each in connections):
            return
        if self._coherence.prove(min(each.proven_at for each in connections)):
            if self._is_reported_down:
                self._is_reported_down = False
                addresses = ", ".join(each.address for each in connections)
                log.warning("the listener receives invalidation messages from %s", addresses)
            for each in connections:
                self._emit(ListenerUp(each.address))

    # -- what arrives

    def _process(self, connection: TrackingConnection) -> None:
        for reply in connection.messages():
            if isinstance(reply, hiredis.PushNotification):
                self.messages.process(reply)
            else:
                connection.answer(reply)

    def _on_time(self, reply: Any, sent: float) -> None:
        if isinstance(reply, hiredis.ReplyError):
            raise OSError(f"the tracking connection answered {reply}")
        received = time.monotonic()
        self._clock.measure(int(reply[0]) + int(reply[1]) / 1e6, sent, received)
        self._emit(ListenerLag(received - sent))

    def _on_role(self, connection: TrackingConnection, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            raise OSError(f"the tracking connection answered {reply}")
        # A replica reports changes too, but as late as it pleases: its answers would prove nothing.
        if b"role:master" not in reply:
            raise OSError(f"{connection.address} is no longer a master")


def _stay_in(process: int) -> None:
    """Sleep for ever in a fork of a process, where its green threads go on: this one would take its messages.

    It must not end either: the fork does not know it as a thread.
    """
    while os.getpid() != process:
        time.sleep(3600.0)
