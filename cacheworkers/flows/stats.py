"""Stats: what the store holds and does, and what is read most of each loader."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cacheworkers.core.access_score import score_of
from cacheworkers.core.driver import Flow
from cacheworkers.flows.keep_warm import half_life_of, hottest
from cacheworkers.flows.ports import Ports


class StoreStats(msgspec.Struct, frozen=True):
    """The store, all masters of a Cluster together.

    Attributes:
        version: of the first master.
        uptime: seconds, of the youngest.
        commands: a second, lately.
        keys: of every namespace in it.
        memory, memory_most: bytes; 0 means no limit.
        evictions: keys evicted to make room since it began.
        clients: connections.
    """

    version: str
    uptime: float
    commands: int
    keys: int
    memory: int
    memory_most: int
    evictions: int
    clients: int


class LoaderStats(msgspec.Struct, frozen=True):
    """One loader: its access_score in all, of how many calls, and the hottest of them with its own."""

    loader: str
    access_score: float
    calls: int
    hottest: str
    hottest_score: float


def store_stats(ports: Ports) -> Flow[StoreStats]:
    """Ask every master."""
    masters: list[dict[str, str]] = yield ports.store.info()

    def total(name: str) -> int:
        return sum(int(float(each.get(name, "0"))) for each in masters)

    keys = sum(
        int(fields.split(",")[0].removeprefix("keys="))
        for each in masters
        for name, fields in each.items()
        if name.startswith("db") and fields.startswith("keys=")
    )
    first = masters[0]
    return StoreStats(
        first.get("valkey_version") or first.get("redis_version", "?"),
        min(float(each.get("uptime_in_seconds", "0")) for each in masters),
        total("instantaneous_ops_per_sec"),
        keys,
        total("used_memory"),
        total("maxmemory"),
        total("evicted_keys"),
        total("connected_clients"),
    )


def loader_stats(ports: Ports, loaders: Iterable[str]) -> Flow[list[LoaderStats]]:
    """Look at the access_score of each loader, the hottest loader first."""
    found = []
    for name in loaders:
        calls = yield from hottest(ports, name, ports.config.max_hot_calls)
        now = ports.clock.now()
        access_score = [(call, score_of(read_at, now, half_life_of(ports, name))) for call, read_at in calls]
        first, most = access_score[0] if access_score else ("-", 0.0)
        found.append(LoaderStats(name, sum(reads for _, reads in access_score), len(access_score), first, most))
    return sorted(found, key=lambda each: -each.access_score)
