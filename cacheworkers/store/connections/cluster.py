"""Cluster: the slot map, one write to each master that an exchange concerns, and redirections.

A node that answers MOVED, ASK, TRYAGAIN, CLUSTERDOWN or NOSCRIPT has not run the command, so that it is safe to send it
again; nothing is sent again after an error of the connection, since it may have run.

    MOVED      the slot has another master: ask that one for the slot map, then send it there
    ASK        the slot is moving, and its keys are no longer here, or never were: to the other node, once
    TRYAGAIN   the slot is moving, and some of the keys are here, some there: a little later, where the slot is
    NOSCRIPT   to the same node, with the script's source

A master that does not answer while others do is unavailable: until a probe finds it, or another in its place, requests
that concern it fail immediately, and no others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    TryAgainError,
)

from cacheworkers.core.driver import Flow, Pause, arun, run
from cacheworkers.store.connections.address import Node
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests, TimeLeft
from cacheworkers.store.connections.pool import Pool
from cacheworkers.store.connections.request import Request, check_probe
from cacheworkers.store.connections.topology import Master, MasterUnavailable, SingleMaster

_ASKING = ("ASKING",)
#: How often an exchange goes where it is sent without a pause: nodes that contradict one another will agree soon.
_IMMEDIATE = 4
#: Pauses, each twice as long as the one before, seconds.
_SHORTEST, _LONGEST = 0.001, 0.05


class _RoutedRequest(NamedTuple):
    """One request on its way: the node is the slot's master, unless one is named."""

    at: int
    words: tuple[Any, ...]
    node: Node | None = None
    is_asking: bool = False


class Cluster:
    """The masters of a Cluster, as far as this process knows.

    Attributes:
        names: of the masters that have slots.
        unavailable: names of those that did not answer last time; no exchange asks them.
    """

    def __init__(
        self, seeds: Sequence[Node], pool_to: Callable[[Node], Pool], patience: float, timeout: float | None = None
    ) -> None:
        """
        Args:
            seeds: nodes that are asked first, and when no other answers.
            pool_to: makes the pool of a node.
            patience: for how long a request is sent again while its slot moves, seconds.
            timeout: of an exchange, however many nodes have to be asked, seconds; None for no limit.
        """
        self._seeds = tuple(seeds)
        self._pool_to = pool_to
        self._patience = patience
        self._timeout = timeout
        self.reset()

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""
        self._pools: dict[Node, Pool] = {}
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._slots: dict[Node, list[range]] = {}
        self.names: frozenset[str] = frozenset()
        self.unavailable: frozenset[str] = frozenset()
        self._known: tuple[Node, ...] = self._seeds
        #: The node that a slot last moved to: after a failover or a migration its slot map is newer than the others'.
        self._informed = self._seeds[0]
        self._is_outdated = True

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, errors among them, after one round trip per master."""
        return run(self._exchange(requests))

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do the same on the running loop."""
        return await arun(self._exchange(requests))

    def masters(self) -> Flow[list[Master]]:
        """Return all masters that have slots, always in the same order."""
        yield from self._refresh()
        return [Master(_name(node), self._to(node), slots) for node, slots in sorted(self._slots.items())]

    def confirm(self, key: str) -> Flow[None]:
        """Ask for the slots, and ask the masters that failed again; raises if one fails again."""
        self.refresh_later()
        masters = yield from self.masters()
        failed = [each for each in masters if each.pool.failed_at and each.name not in self.unavailable]
        for master, [reply] in zip(failed, (yield FanOut(*(_read(each, key) for each in failed))), strict=True):
            check_probe(reply)
            master.pool.failed_at = 0.0

    def probe(self, key: str) -> Flow[bool]:
        """Ask for the slots, and ask each master that has not failed; the others are unavailable."""
        self.refresh_later()
        masters = yield from self.masters()
        sound = [master for master in masters if not master.pool.failed_at]
        for [reply] in (yield FanOut(*(_read(master, key) for master in sound))):
            check_probe(reply)
        self.unavailable = self.names - {master.name for master in sound}
        return bool(self.unavailable)

    def probe_unavailable(self, key: str) -> Flow[bool]:
        """Ask the unavailable masters, the one that failed longest ago first; return whether all answer again."""
        masters = yield from self.masters()
        for master in sorted(masters, key=lambda master: master.pool.failed_at):
            if master.name in self.unavailable:
                try:
                    [[reply]] = yield FanOut(_read(master, key))
                    check_probe(reply)
                except (RedisError, OSError):
                    continue
                master.pool.failed_at = 0.0
                self.unavailable -= {master.name}
        return not self.unavailable

    def master_of(self, key: str) -> str:
        """Return the name of the master that has a key's slot, as far as it is known."""
        node = self._owners[key_slot(key.encode())]
        return "" if node is None else _name(node)

    def refresh_later(self) -> None:
        """Ask for the slots again before the next exchange."""
        self._is_outdated = True

    def drop(self) -> None:
        """Refresh later, and use no connection again: one of them failed."""
        self.refresh_later()
        for pool in list(self._pools.values()):
            pool.drop()

    def close(self) -> None:
        """Close idle connections."""
        for pool in list(self._pools.values()):
            pool.close()

    # -- requests

    def _exchange(self, requests: Sequence[Request]) -> Flow[list[Any]]:
        replies: list[Any] = [None] * len(requests)
        routed = [_RoutedRequest(at, request.words) for at, request in enumerate(requests)]
        immediate, pauses = iter(range(_IMMEDIATE)), _pauses(self._patience)
        time_left = None if self._timeout is None else TimeLeft(self._timeout, self._timeout)
        while True:
            yield from self._refresh(time_left)
            groups = self._by_node(routed, requests)
            self._check_unavailable(groups)
            parts = [RoutedRequests(self._to(node), _commands(group)) for node, group in groups.items()]
            try:
                found = yield FanOut(*parts, timeout=None if time_left is None else time_left.rest)
            except (RedisError, OSError):
                self._check_unavailable(groups)  # sent before that was known: no other master failed
                raise
            routed, is_early = [], False
            for (node, group), answers in zip(groups.items(), found, strict=True):
                for each, reply in zip(group, _without_asking(group, answers), strict=True):
                    replies[each.at] = reply
                    if isinstance(reply, RedisError):
                        routed += self._again(each, node, reply, requests[each.at])
                        is_early = is_early or isinstance(reply, TryAgainError)
            if not routed or (time_left is not None and time_left.is_over):
                return replies
            if is_early or next(immediate, None) is None:
                pause = next(pauses, None)
                if pause is None:
                    return replies
                yield Pause(pause)

    def _by_node(
        self, routed: Sequence[_RoutedRequest], requests: Sequence[Request]
    ) -> dict[Node, list[_RoutedRequest]]:
        groups: dict[Node, list[_RoutedRequest]] = {}
        for each in routed:
            node = each.node or self._owner(requests[each.at].key)
            if node in groups:
                groups[node].append(each)
            else:
                groups[node] = [each]
        return groups

    def _check_unavailable(self, nodes: Iterable[Node]) -> None:
        if self.unavailable and (found := self.unavailable.intersection(map(_name, nodes))):
            raise MasterUnavailable(f"{', '.join(sorted(found))} did not answer lately")

    def _owner(self, key: str) -> Node:
        slot = key_slot(key.encode())
        node = self._owners[slot]
        if node is None:
            raise ClusterDownError(f"no master has slot {slot}, of {key}")
        return node

    def _again(self, each: _RoutedRequest, node: Node, reply: RedisError, request: Request) -> list[_RoutedRequest]:
        """Return how to send a request again, if this answer says that it did not run and might elsewhere."""
        match reply:
            case MovedError():
                self._note_move(reply.slot_id, (reply.host or node[0], reply.port))
                return [each._replace(node=None, is_asking=False)]
            case AskError():
                return [each._replace(node=(reply.host or node[0], reply.port), is_asking=True)]
            case TryAgainError():
                return [each._replace(node=None, is_asking=False)]
            case NoScriptError():
                return [each._replace(words=request.in_full(), node=node)]
        return []

    # -- slots

    def _note_move(self, slot: int, node: Node) -> None:
        self._owners[slot] = node
        self._informed = node
        self._to(node).failed_at = 0.0  # it has been named by another node since
        self._is_outdated = True

    def _refresh(self, time_left: TimeLeft | None = None) -> Flow[None]:
        """Refresh the slot map if it is outdated; of several callers at the same time, one asks."""
        if not self._is_outdated and self._slots:
            return
        self._is_outdated = False
        try:
            yield from self._ask_for_slots(time_left)
        except BaseException:
            self._is_outdated = True
            raise

    def _ask_for_slots(self, time_left: TimeLeft | None) -> Flow[None]:
        failure: Exception | None = None
        nodes = dict.fromkeys((self._informed, *self._known))
        # Those that never failed come first; then those whose failure is longest ago.
        for node in sorted(nodes, key=lambda node: self._to(node).failed_at):
            if failure is not None and time_left is not None and time_left.is_over:
                break
            within = None if time_left is None else time_left.rest
            try:
                [[reply]] = yield FanOut(RoutedRequests(self._to(node), [("CLUSTER", "SLOTS")]), timeout=within)
            except (RedisError, OSError) as error:
                failure = error
                continue
            if isinstance(reply, Exception):
                failure = reply
            elif not reply:
                failure = ClusterDownError(f"{_name(node)} has no slots")
            else:
                self._set_slots(reply, node[0])
                return
        assert failure is not None
        raise failure

    def _set_slots(self, reply: Any, answered_by: str) -> None:
        """Use what CLUSTER SLOTS answered: `[first slot, last slot, master, replica, ...]` of each range."""
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        slots: dict[Node, list[range]] = {}
        known: dict[Node, None] = {}
        for first, last, *nodes in reply:
            # No host is the one that was asked.
            named = [(_text(host) or answered_by, int(port)) for host, port, *_ in nodes]
            owners[first : last + 1] = [named[0]] * (last + 1 - first)
            slots.setdefault(named[0], []).append(range(first, last + 1))
            known.update(dict.fromkeys(named))
        known.update(dict.fromkeys(self._seeds))
        self._owners, self._slots, self._known = owners, slots, tuple(known)
        self.names = frozenset(map(_name, slots))
        for node in self._pools.keys() - known.keys():
            gone = self._pools.pop(node, None)
            if gone is not None:
                gone.drop()

    def _to(self, node: Node) -> Pool:
        pool = self._pools.get(node)
        # Of two threads that make one at the same time, both use the first's.
        return pool if pool is not None else self._pools.setdefault(node, self._pool_to(node))


#: What reaches the masters of a store.
Topology = Cluster | SingleMaster


def _read(master: Master, key: str) -> RoutedRequests:
    return RoutedRequests(master.pool, [("GET", master.key(key))])


def _commands(routed: Sequence[_RoutedRequest]) -> list[tuple[Any, ...]]:
    commands = []
    for each in routed:
        if each.is_asking:
            commands.append(_ASKING)
        commands.append(each.words)
    return commands


def _without_asking(routed: Sequence[_RoutedRequest], answers: Sequence[Any]) -> Iterator[Any]:
    """Yield the answer to each request: the one to its ASKING comes before."""
    following = iter(answers)
    for each in routed:
        if each.is_asking:
            next(following)
        yield next(following)


def _pauses(patience: float) -> Iterator[float]:
    """Yield how long to wait before something is sent again, until there is no patience left."""
    pause = _SHORTEST
    while patience > 0.0:
        yield min(pause, patience)
        patience -= pause
        pause = min(2 * pause, _LONGEST)


def _name(node: Node) -> str:
    return f"{node[0]}:{node[1]}"


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply or "")
