"""Publish queue: the load requests that wait for this process's publisher thread, grouped by loader and queue."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from cacheworkers.flows.load import TOGETHER_FOR
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.local.load_time import LoadTime
from cacheworkers.local.process_thread import ProcessThread

log = logging.getLogger("cacheworkers")

_ORDER = ("miss", "revalidate", "warm")
#: How many load requests may wait for the publisher thread; what has no room is loaded by its reader.
MAX_WAITING = 10_000
#: Most calls of a plain loader in one message, which are loaded one after the other: where it is not known how long
#: that takes, and where they are quick ...
PLAIN_GROUP, QUICK_GROUP = 8, 32
#: ... for they may take as long as this together, seconds, each this much longer than its load.  A message costs as
#: much as a quick load or two.
QUICK_GROUP_FOR, BESIDE_LOAD = 0.02, 0.0005
#: While readers of this process wait for at least this many calls, workers are behind ...
BACKED_UP = 16
#: ... and a message may wait this long to fill, seconds: its calls would wait in the broker otherwise.
LINGER_FOR = 0.01
#: How long after `start` a thread prepares, seconds: the process has just begun to read, and may be busy with it.
PREPARE_AFTER = 0.5
#: How long `PublishQueue.close` waits for what is queued, seconds.
CLOSE_WITHIN = 1.0


class LoaderInfo(msgspec.Struct, frozen=True):
    """What publishing needs to know of a loader."""

    name: str
    load_for: float
    is_batch: bool
    batch_size: int
    rate_limit: str | None = None
    load_times: LoadTime = msgspec.field(default_factory=LoadTime)
    version: int = 1
    module: str = ""
    #: The fingerprint of its types and tags, in hex.
    schema: str = ""

    def group_size(self, queue: str) -> int:
        """Return how many calls one message may carry: a reader waits for each miss, and a batch is one query."""
        if self.is_batch:
            return self.batch_size
        most = min(QUICK_GROUP, self.load_times.fits(QUICK_GROUP_FOR, BESIDE_LOAD))
        if queue != "miss":
            most = max(most, min(PLAIN_GROUP, int(TOGETHER_FOR // self.load_for)))
        return max(1, most)

    def message_for(self, calls: int | None = None) -> float:
        """Return how long the calls of one message may take, seconds; by default of the largest message.

        A batch is one load, other calls are loaded one after the other, and none begins after `TOGETHER_FOR`.
        """
        several = 1 if self.is_batch else calls or self.group_size("warm")
        return max(self.load_for, min(self.load_for * several, TOGETHER_FOR))


#: Takes one group of requests on, of a loader and a kind of queue; called on the queue's own threads.
Send = Callable[[LoaderInfo, str, list[LoadRequest]], None]


class PublishQueue:
    """A bounded queue and the daemon threads that empty it, group by group; misses first.

    What is queued while the threads are busy is grouped for the next.  A read waits for a group to fill only where it
    would wait anyway: workers are behind.
    """

    def __init__(
        self,
        send: Send,
        infos: Callable[[str], LoaderInfo | None],
        most: int = MAX_WAITING,
        *,
        unsent: Callable[[list[LoadRequest]], None] = lambda requests: None,
        waited_for: Callable[[], int] = lambda: 0,
        prepare: Callable[[], None] = lambda: None,
        threads: int = 1,
        name: str = "cacheworkers-publisher",
    ) -> None:
        """
        Args:
            send: sends one group; what it raises is logged.
            infos: answers for a loader's name.
            most: how many requests may wait.
            unsent: gets the requests that are never sent: their loader is unknown, sending raised, or the queue closed.
            waited_for: returns how many calls this process's readers wait for.
            prepare: called by a thread that `start` has started, if no request comes soon.
            threads: how many groups are sent concurrently.
        """
        self._send = send
        self._infos = infos
        self._most = most
        self._unsent = unsent
        self._waited_for = waited_for
        self._prepare = prepare
        self._most_threads = threads
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Begin again, as a child does after a fork."""
        self._pid = os.getpid()
        # Entered by itself: a signal's handler that raises inside a Condition's own `__enter__` leaves it locked.
        self._lock = threading.Lock()
        self._has_asks = threading.Condition(self._lock)
        self._has_ended = threading.Condition(self._lock)
        self._groups: dict[str, collections.OrderedDict[str, collections.deque[LoadRequest]]] = {
            q: collections.OrderedDict() for q in _ORDER
        }
        self._count = 0
        self._threads = 0
        self._idle = 0
        self._fills_at = 0
        self._is_closed = False

    def start(self) -> None:
        """Have a thread ready before there are requests."""
        with self._lock:
            self._is_staffed()

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Queue requests together, so that they are grouped; how many, from the first on, there was room for."""
        if self._pid != os.getpid():
            self.reset()
        with self._lock:
            if self._is_closed or not self._is_staffed():
                return 0
            taken = requests[: max(0, self._most - self._count)]
            for request in taken:
                group = self._groups[request.queue].get(request.loader)
                if group is None:
                    group = self._groups[request.queue][request.loader] = collections.deque()
                group.append(request)
            self._count += len(taken)
            if taken and self._count >= self._fills_at:
                self._has_asks.notify()
        return len(taken)

    def wait_until_sent(self, within: float) -> bool:
        """Return whether what is queued has been sent, or given up, before `within` seconds are over."""
        with self._lock:
            return self._has_ended.wait_for(lambda: not self._count and self._idle == self._threads, within)

    def close(self) -> bool:
        """Send what is queued, for at most a second, then stop; False if something is on its way even then."""
        if self._pid != os.getpid():
            self.reset()
        end = time.monotonic() + CLOSE_WITHIN
        with self._lock:
            self._is_closed = True
            self._has_asks.notify_all()
            while self._threads and (left := end - time.monotonic()) > 0:
                self._has_ended.wait(left)
            unsent = [request for groups in self._groups.values() for group in groups.values() for request in group]
            for groups in self._groups.values():
                groups.clear()
            self._count = 0
            is_over = not self._threads
        if unsent:
            self._give_back(unsent)
        return is_over

    def _is_staffed(self) -> bool:
        """Return whether a thread will take what is queued; starts one while all are busy and more are allowed."""
        if not self._idle and self._threads < self._most_threads:
            thread = ProcessThread(self._empty, self._name)
            with contextlib.suppress(RuntimeError):  # no thread can be started, or the process is ending
                thread.start()
                self._threads += 1
                # Idle until it takes a group: what is queued before that is grouped, and starts no other thread.
                self._idle += 1
        return self._threads > 0

    def _empty(self) -> None:
        with self._lock:
            is_calm = not (self._count or self._is_closed or self._has_asks.wait(PREPARE_AFTER))
        if is_calm:
            self._prepare()
        while True:
            with self._lock:
                while not self._count and not self._is_closed:
                    self._has_asks.wait()
                self._linger()
                self._idle -= 1
                if not self._count:
                    self._threads -= 1
                    self._has_ended.notify_all()
                    return
                name, queue, info, requests = self._take()
                if self._count:
                    self._is_staffed()  # what is left, of another loader perhaps, need not wait for this group
            self._take_on(name, queue, info, requests)
            with self._lock:
                self._idle += 1
                self._has_ended.notify_all()

    def _linger(self) -> None:
        """Let the group that is next fill, if workers are behind."""
        if self._is_closed or not self._count or self._waited_for() < BACKED_UP:
            return
        queue = next(q for q in _ORDER if self._groups[q])
        name, waiting = next(iter(self._groups[queue].items()))
        info = self._infos(name)
        missing = 0 if info is None else min(info.group_size(queue), QUICK_GROUP) - len(waiting)
        if missing > 0:
            self._fills_at = self._count + missing
            self._has_asks.wait(LINGER_FOR)
            self._fills_at = 0

    def _take_on(self, name: str, queue: str, info: LoaderInfo | None, requests: list[LoadRequest]) -> None:
        if info is None:
            log.warning("no loader is named %s here, its leases are released", name, extra={"loader": name})
            self._give_back(requests)
            return
        try:
            self._send(info, queue, requests)
        except BaseException:  # whatever it was, the next group has a thread
            log.exception("requests of %s were not sent", name, extra={"loader": name})
            self._give_back(requests)

    def _take(self) -> tuple[str, str, LoaderInfo | None, list[LoadRequest]]:
        """Take the next group off; there is one."""
        queue = next(q for q in _ORDER if self._groups[q])
        groups = self._groups[queue]
        name, waiting = groups.popitem(last=False)
        info = self._infos(name)
        size = len(waiting) if info is None else min(len(waiting), info.group_size(queue))
        requests = [waiting.popleft() for _ in range(size)]
        if waiting:
            groups[name] = waiting  # to the end: another loader's turn
        self._count -= size
        return name, queue, info, requests

    def _give_back(self, requests: list[LoadRequest]) -> None:
        try:
            self._unsent(requests)
        except Exception:
            log.exception("leases could not be released; they expire by themselves")
