"""Cluster: which master has which slot, one write to each of those that an exchange concerns, and what moves meanwhile.

A node that answers MOVED, ASK, TRYAGAIN, CLUSTERDOWN or NOSCRIPT has not run the command, so that it is safe to send it
again; nothing is sent again after an error of the connection, for it may have run.

    MOVED      the slot has another master: ask that one who has which slots, then send it there
    ASK        the slot is on its way, and its keys are not here any more, or never were: to the other node, once
    TRYAGAIN   the slot is on its way, and some of the keys are here, some there: a little later, where the slot is
    NOSCRIPT   to the same node, with the script's source

A master that does not answer while others do is away: until a probe has found it back, or another in its place, what
concerns it fails at once, and nothing else does.
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
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests, TimeLeft
from cacheworkers.store.connections.pool import Pool
from cacheworkers.store.connections.request import UNAVAILABLE, Request
from cacheworkers.store.connections.topology import Master, MasterUnavailable

#: Host and port.
Node = tuple[str, int]
_ASKING = ("ASKING",)
#: How often an exchange goes where it is sent without a pause: nodes that contradict one another will agree soon.
_AT_ONCE = 4
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
        away: names of those that did not answer when they were last asked; no exchange asks them.
    """

    def __init__(
        self, entrance: Node, wires_to: Callable[[Node], Pool], patience: float, within: float | None = None
    ) -> None:
        """
        Args:
            entrance: a node that is asked first, and when no other answers.
            wires_to: makes wires to a node.
            patience: for how long a request is sent again while its slot is on its way, seconds.
            within: how long an exchange may take, whoever has to be asked, seconds, if not as long as that takes.
        """
        self._entrance = entrance
        self._wires_to = wires_to
        self._patience = patience
        self._within = within
        self.reset()

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""
        self._wires: dict[Node, Pool] = {}
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._slots: dict[Node, list[range]] = {}
        self.names: frozenset[str] = frozenset()
        self.away: frozenset[str] = frozenset()
        self._known: tuple[Node, ...] = (self._entrance,)
        #: Where a slot was last said to have gone: after a failover or a migration it knows better than the others.
        self._informed = self._entrance
        self._is_doubtful = True

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, errors among them, after one round trip per master."""
        return run(self._exchange(requests))

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do the same on the running loop."""
        return await arun(self._exchange(requests))

    def every(self) -> Flow[list[Master]]:
        """Return all masters that have slots, always in the same order."""
        yield from self._find_out()
        return [Master(_name(node), self._to(node), slots) for node, slots in sorted(self._slots.items())]

    def probe(self, key: str) -> Flow[bool]:
        """Ask who has which slots, and each master that has not failed; if they answer, only the others are away."""
        self.doubt()
        masters = yield from self.every()
        sound = [master for master in masters if not master.wires.failed_at]
        for [reply] in (yield FanOut(*(_read(master, key) for master in sound))):
            if isinstance(reply, UNAVAILABLE):
                raise reply
        self.away = self.names - {master.name for master in sound}
        return bool(self.away)

    def find_back(self, key: str) -> Flow[bool]:
        """Ask the masters that are away, whose failure is longest ago first; return whether all are back."""
        masters = yield from self.every()
        for master in sorted(masters, key=lambda master: master.wires.failed_at):
            if master.name in self.away:
                try:
                    [[reply]] = yield FanOut(_read(master, key))
                except (RedisError, OSError):
                    continue
                if not isinstance(reply, UNAVAILABLE):
                    master.wires.failed_at = 0.0
                    self.away -= {master.name}
        return not self.away

    def master_of(self, key: str) -> str:
        """Return the name of the master that has a key's slot, as far as it is known."""
        node = self._owners[key_slot(key.encode())]
        return "" if node is None else _name(node)

    def doubt(self) -> None:
        """Ask for the slots again before the next exchange."""
        self._is_doubtful = True

    def drop(self) -> None:
        """Doubt, and use no connection again: one of them failed."""
        self.doubt()
        for wires in list(self._wires.values()):
            wires.drop()

    def close(self) -> None:
        """Close idle connections."""
        for wires in list(self._wires.values()):
            wires.close()

    # -- requests

    def _exchange(self, requests: Sequence[Request]) -> Flow[list[Any]]:
        replies: list[Any] = [None] * len(requests)
        errands = [_RoutedRequest(at, request.words) for at, request in enumerate(requests)]
        at_once, pauses = iter(range(_AT_ONCE)), _pauses(self._patience)
        time_left = None if self._within is None else TimeLeft(self._within, self._within)
        while True:
            yield from self._find_out(time_left)
            groups = self._by_node(errands, requests)
            self._check_away(groups)
            trips = [RoutedRequests(self._to(node), _commands(group)) for node, group in groups.items()]
            try:
                found = yield FanOut(*trips, within=None if time_left is None else time_left.rest)
            except (RedisError, OSError):
                self._check_away(groups)  # sent before that was known: no other is to blame
                raise
            errands, is_early = [], False
            for (node, group), answers in zip(groups.items(), found, strict=True):
                for errand, reply in zip(group, _without_asking(group, answers), strict=True):
                    replies[errand.at] = reply
                    if isinstance(reply, RedisError):
                        errands += self._again(errand, node, reply, requests[errand.at])
                        is_early = is_early or isinstance(reply, TryAgainError)
            if not errands or (time_left is not None and time_left.is_over):
                return replies
            if is_early or next(at_once, None) is None:
                pause = next(pauses, None)
                if pause is None:
                    return replies
                yield Pause(pause)

    def _by_node(
        self, errands: Sequence[_RoutedRequest], requests: Sequence[Request]
    ) -> dict[Node, list[_RoutedRequest]]:
        groups: dict[Node, list[_RoutedRequest]] = {}
        for errand in errands:
            node = errand.node or self._owner(requests[errand.at].key)
            if node in groups:
                groups[node].append(errand)
            else:
                groups[node] = [errand]
        return groups

    def _check_away(self, nodes: Iterable[Node]) -> None:
        if self.away and (away := self.away.intersection(map(_name, nodes))):
            raise MasterUnavailable(f"{', '.join(sorted(away))} did not answer lately")

    def _owner(self, key: str) -> Node:
        slot = key_slot(key.encode())
        node = self._owners[slot]
        if node is None:
            raise ClusterDownError(f"no master has slot {slot}, of {key}")
        return node

    def _again(self, errand: _RoutedRequest, node: Node, reply: RedisError, request: Request) -> list[_RoutedRequest]:
        """Return how to send a request again, if this answer says that it did not run and might elsewhere."""
        match reply:
            case MovedError():
                self._note_move(reply.slot_id, (reply.host or node[0], reply.port))
                return [errand._replace(node=None, is_asking=False)]
            case AskError():
                return [errand._replace(node=(reply.host or node[0], reply.port), is_asking=True)]
            case TryAgainError():
                return [errand._replace(node=None, is_asking=False)]
            case NoScriptError():
                return [errand._replace(words=request.in_full(), node=node)]
        return []

    # -- slots

    def _note_move(self, slot: int, node: Node) -> None:
        self._owners[slot] = node
        self._informed = node
        self._to(node).failed_at = 0.0  # another has heard of it since
        self._is_doubtful = True

    def _find_out(self, time_left: TimeLeft | None = None) -> Flow[None]:
        """Ask who has which slots, unless that is known; of many who are in doubt, one asks."""
        if not self._is_doubtful and self._slots:
            return
        self._is_doubtful = False
        try:
            yield from self._ask_for_slots(time_left)
        except BaseException:
            self._is_doubtful = True
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
                [[reply]] = yield FanOut(RoutedRequests(self._to(node), [("CLUSTER", "SLOTS")]), within=within)
            except (RedisError, OSError) as error:
                failure = error
                continue
            if isinstance(reply, Exception):
                failure = reply
            elif not reply:
                failure = ClusterDownError(f"{_name(node)} knows of no slots")
            else:
                self._take_in(reply, node[0])
                return
        assert failure is not None
        raise failure

    def _take_in(self, reply: Any, answered_by: str) -> None:
        """Take in what CLUSTER SLOTS answered: `[first slot, last slot, master, replica, ...]` of each range."""
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        slots: dict[Node, list[range]] = {}
        known: dict[Node, None] = {}
        for first, last, *nodes in reply:
            # No host is the one that was asked.
            named = [(_text(host) or answered_by, int(port)) for host, port, *_ in nodes]
            owners[first : last + 1] = [named[0]] * (last + 1 - first)
            slots.setdefault(named[0], []).append(range(first, last + 1))
            known.update(dict.fromkeys(named))
        known[self._entrance] = None
        self._owners, self._slots, self._known = owners, slots, tuple(known)
        self.names = frozenset(map(_name, slots))
        for node in self._wires.keys() - known.keys():
            gone = self._wires.pop(node, None)
            if gone is not None:
                gone.drop()

    def _to(self, node: Node) -> Pool:
        wires = self._wires.get(node)
        # Of two threads that make them at once, both use the first's.
        return wires if wires is not None else self._wires.setdefault(node, self._wires_to(node))


def _read(master: Master, key: str) -> RoutedRequests:
    return RoutedRequests(master.wires, [("GET", master.key(key))])


def _commands(errands: Sequence[_RoutedRequest]) -> list[tuple[Any, ...]]:
    commands = []
    for errand in errands:
        if errand.is_asking:
            commands.append(_ASKING)
        commands.append(errand.words)
    return commands


def _without_asking(errands: Sequence[_RoutedRequest], answers: Sequence[Any]) -> Iterator[Any]:
    """Yield the answer to each errand: the one to its ASKING comes before."""
    following = iter(answers)
    for errand in errands:
        if errand.is_asking:
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
