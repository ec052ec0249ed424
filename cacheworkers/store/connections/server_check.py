"""The check at the first exchange: entries are safe on the server, neither too old nor free to evict tag sets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from cacheworkers.core.driver import Flow
from cacheworkers.errors import StoreError, UnsafeStore
from cacheworkers.local.clock import StoreClock
from cacheworkers.store.connections.cluster import Topology
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests
from cacheworkers.store.connections.request import Request, check
from cacheworkers.store.connections.topology import Master

#: They evict no tag sets, and leases last of all.
SAFE_POLICIES = ("noeviction", "volatile-lru", "volatile-lfu")
_OLDEST = 7


def info_of(reply: Any) -> dict[str, str]:
    """Return the fields that INFO answered."""
    text = reply.decode() if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def check_server(info: dict[str, str], where: str, *, allows_evicting: bool) -> None:
    """Return if entries, tag sets and leases are safe on a server.

    Raises:
        UnsafeStore: it may evict tag sets or leases.
        StoreError: it is too old.
    """
    policy = info.get("maxmemory_policy", "noeviction")
    if policy not in SAFE_POLICIES and not allows_evicting:
        raise UnsafeStore(
            f"the store at {where} has maxmemory-policy {policy}: it may evict tag sets or leases, and "
            f"with them invalidations; set one of {', '.join(SAFE_POLICIES)}, or allow_evicting_store=True"
        )
    version = info.get("redis_version", str(_OLDEST))
    if int(version.split(".")[0]) < _OLDEST:
        raise StoreError(f"the store at {where} is version {version}; at least Redis 7.0 or Valkey 7.2")


class Admission(Protocol):
    """Says whether this process may use the store at all."""

    def question(self) -> Request | None:
        """Return what to ask the store first, if anything; raise what lately was the answer to it."""

    def check(self, reply: Any) -> None:
        """Raise what keeps this process out, by the store's reply."""


def check_store(
    masters: Topology, clock: StoreClock, where: str, *, allows_evicting: bool, admission: Admission | None
) -> Flow[None]:
    """Check that the server is safe to write to, and ask for admission; measure its clock."""
    question = None if admission is None else admission.question()
    known: list[Master] = yield from masters.masters()
    pool = min(known, key=lambda master: master.pool.failed_at).pool
    [[info]] = yield FanOut(RoutedRequests(pool, [("INFO", "everything")]))
    check([info])
    check_server(info_of(info), where, allows_evicting=allows_evicting)
    sent = time.monotonic()
    [[answer]] = yield FanOut(RoutedRequests(pool, [("TIME",)]))
    received = time.monotonic()
    check([answer])
    clock.measure(int(answer[0]) + int(answer[1]) / 1e6, sent, received)
    if admission is not None and question is not None:
        replies = yield _Asked(masters, [question])
        admission.check(replies[0])


class _Asked:
    """A step: an exchange that nothing is asked before."""

    def __init__(self, masters: Topology, requests: Sequence[Request]) -> None:
        self._masters = masters
        self._requests = requests

    def run(self) -> list[Any]:
        return self._masters.exchange(self._requests)

    async def arun(self) -> list[Any]:
        return await self._masters.aexchange(self._requests)
