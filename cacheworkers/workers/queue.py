"""The asks that wait for this process's publisher thread, grouped by loader and queue."""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from cacheworkers.flows.ports import Ask

_ORDER = ("miss", "revalidate", "warm")
#: Most calls of a plain loader in one message, where nobody waits for it.
PLAIN_GROUP = 8


class LoaderInfo(msgspec.Struct, frozen=True):
    """What publishing needs to know of a loader."""

    name: str
    load_for: float
    is_batch: bool
    batch_size: int
    rate_limit: str | None = None

    def group_size(self, queue: str) -> int:
        """Return how many calls one message may carry: a reader waits for each miss, and a batch is one query."""
        if self.is_batch:
            return self.batch_size
        return 1 if queue == "miss" else PLAIN_GROUP


class Send(Protocol):
    """Takes one group of asks on; called on the queue's own thread."""

    def __call__(self, info: LoaderInfo, queue: str, asks: list[Ask], /) -> None: ...


class AskQueue:
    """A bounded queue and the daemon thread that empties it, group by group; misses first.

    What is queued while one group is on its way is grouped for the next: no read waits for a group to fill.
    """

    def __init__(self, send: Send, infos: Callable[[str], LoaderInfo | None], most: int) -> None:
        self._send = send
        self._infos = infos
        self._most = most
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child does after a fork."""
        self._pid = os.getpid()
        self._changed = threading.Condition(threading.Lock())
        self._groups: dict[str, collections.OrderedDict[str, list[Ask]]] = {
            q: collections.OrderedDict() for q in _ORDER
        }
        self._count = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_sending = False

    def submit(self, ask: Ask) -> bool:
        """Queue an ask; False when there is no room or the queue is closed."""
        if self._pid != os.getpid():
            self.reset()
        with self._changed:
            if self._is_closed or self._count >= self._most:
                return False
            self._groups[ask.queue].setdefault(ask.loader, []).append(ask)
            self._count += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._empty, name="cacheworkers-publisher", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def close(self) -> None:
        """Send what is queued, for at most a second, then stop."""
        end = time.monotonic() + 1.0
        with self._changed:
            while (self._count or self._is_sending) and self._thread is not None and time.monotonic() < end:
                self._changed.wait(end - time.monotonic())
            self._is_closed = True
            self._changed.notify_all()

    def _empty(self) -> None:
        while True:
            with self._changed:
                self._is_sending = False
                self._changed.notify_all()
                while not self._count:
                    if self._is_closed:
                        return
                    self._changed.wait()
                taken = self._take()
                self._is_sending = True
            if taken is not None:
                self._send(*taken)

    def _take(self) -> tuple[LoaderInfo, str, list[Ask]] | None:
        for queue in _ORDER:
            groups = self._groups[queue]
            if not groups:
                continue
            name, asks = groups.popitem(last=False)
            info = self._infos(name)
            if info is None:
                self._count -= len(asks)
                return None
            size = info.group_size(queue)
            if len(asks) > size:
                groups[name] = asks[size:]  # to the end: another loader's turn
            self._count -= min(size, len(asks))
            return info, queue, asks[:size]
        return None
