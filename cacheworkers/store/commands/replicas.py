"""Replicas: wait until enough replicas have what was written, so that a failover to one of them loses none of it."""

from __future__ import annotations

import asyncio

from cacheworkers.errors import StoreError
from cacheworkers.store.commands import scripts
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.transport import Transport

#: How much of `store_timeout` the store may wait for its replicas; the rest is for its answer.
SHARE = 0.8
#: How long the key lives that is written for the sake of being written, milliseconds.
_TOUCHED_FOR_MS = 1000


class Replicate:
    """A step: wait until every master's replicas have acknowledged all writes so far.

    An acknowledgement says that a replica has the write in its memory, not on its disk.
    """

    __slots__ = ("_key", "_link", "_replicas", "_within")

    def __init__(self, link: Transport, key: str, replicas: int, store_timeout: float) -> None:
        """
        Args:
            key: a key that may be written; on a Cluster, the beginning of a key of each master.
            replicas: how many of each master's.
            store_timeout: seconds.
        """
        self._link = link
        self._key = key
        self._replicas = replicas
        self._within = SHARE * store_timeout

    def __repr__(self) -> str:
        return "replicate"

    def run(self) -> None:
        """Wait, blocking this thread.

        Raises:
            StoreError: a master has fewer replicas that acknowledged in time.
        """
        wait = ("WAIT", self._replicas, max(1, int(self._within * 1000)))
        found = self._link.on_masters(
            self._key, lambda key: [Request.call(scripts.WAIT_MARKER, (key,), (_TOUCHED_FOR_MS,)).in_full(), wait]
        )
        least = min(int(replies[1]) for replies in found)
        if least < self._replicas:
            raise StoreError(f"{least} of {self._replicas} replicas acknowledged it within {self._within:g} s")

    async def arun(self) -> None:
        """Wait on a thread: WAIT blocks its connection, and the loop's is shared by all tasks."""
        await asyncio.to_thread(self.run)
