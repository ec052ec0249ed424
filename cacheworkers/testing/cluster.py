"""A Valkey Cluster from PyPI wheels, whose slots can be moved from master to master, step by step."""

from __future__ import annotations

import contextlib
from typing import Any, Self

from cacheworkers.store.connections.address import parse_url
from cacheworkers.store.connections.clients import Clients
from cacheworkers.store.connections.pool import Pool
from cacheworkers.testing.servers import Valkey, free_port, wait_until

SLOTS = 16384
_TIMEOUT = 10.0


class Node(Valkey):
    """One server of a Cluster."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.bus = free_port()
        super().__init__(cluster_enabled="yes", cluster_port=str(self.bus), **config)
        self._clients = Clients(parse_url(self.url), _TIMEOUT)
        self._pool = Pool(self._clients.pool, self._clients.async_pool, _TIMEOUT)

    def ask(self, *words: Any) -> Any:
        """Return the reply to a command.

        Raises:
            Exception: redis-py's, for what the server answered or because it did not.
        """
        [reply] = self._pool.exchange([words])
        if isinstance(reply, Exception):
            raise reply
        return reply

    @property
    def id(self) -> str:
        """What it is called in the Cluster."""
        return str(self.ask("CLUSTER", "MYID").decode())

    def close(self) -> None:
        """Stop, and remove its directory."""
        self._pool.close()
        self._clients.close()
        super().close()


class ValkeyCluster:
    """Valkey servers on free ports of 127.0.0.1; a context manager that stops them.

    Attributes:
        masters: share the slots evenly at first.
        spare: a master without slots; None unless asked for.
        replica: of the first master; None unless asked for.
    """

    def __init__(self, masters: int = 3, *, has_spare: bool = False, has_replica: bool = False, **config: str) -> None:
        self.masters = [Node(config) for _ in range(masters)]
        self.spare = Node(config) if has_spare else None
        self.replica = Node(config) if has_replica else None

    @property
    def url(self) -> str:
        """Its URL, which names the last master."""
        return self.masters[-1].url.replace("redis://", "cluster://")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(node) for node in (*self.masters, self.spare, self.replica) if node]
            self._meet(nodes)
            self._servers = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()

    def owner(self, slot: int) -> Node:
        """Return the master of a slot.

        Raises:
            LookupError: no server that is alive is.
        """
        for node in self._nodes:
            claim = _owner_seen_by(node, slot)
            if claim and claim[0] == node.id:
                return node
        raise LookupError(f"no master has slot {slot}")

    @property
    def _nodes(self) -> list[Node]:
        """Those that are alive."""
        return [node for node in (*self.masters, self.spare, self.replica) if node and node.process]

    def begin_move(self, slot: int, target: Node) -> None:
        """Have a slot's keys be on their way: what its master no longer has, the target is asked for."""
        source = self.owner(slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, target: Node, most: int = 1_000_000) -> int:
        """Move some keys of a slot; how many there were."""
        source = self.owner(slot)
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, int(1000 * _TIMEOUT), "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, target: Node) -> None:
        """Make the target the slot's master, once all its keys are there."""
        while self.move_keys(slot, target):
            pass
        source = self.owner(slot)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        self._wait_for_claim(slot, target)

    def move(self, slot: int, target: Node) -> None:
        """Move a slot and its keys to another master."""
        self.begin_move(slot, target)
        self.end_move(slot, target)

    def move_atomically(self, slot: int, target: Node) -> None:
        """Move a slot and its keys to another master in one step, as Valkey 9 can."""
        self.owner(slot).ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
        self._wait_for_claim(slot, target)

    def _wait_for_claim(self, slot: int, target: Node) -> None:
        """Wait until all nodes know of a move.

        Each takes the latest epoch it knows and adds one.  Were the slot moved on before all knew of this move, two
        masters could claim it under the same epoch, or none.
        """

        def is_known() -> bool:
            claims = {_owner_seen_by(node, slot) for node in self._nodes}
            return len(claims) == 1 and all(claim and claim[0] == target.id for claim in claims)

        wait_until(is_known)

    def _meet(self, nodes: list[Node]) -> None:
        first, *others = nodes
        bounds = [SLOTS * nth // len(self.masters) for nth in range(len(self.masters) + 1)]
        for node, begin, end in zip(self.masters, bounds[:-1], bounds[1:], strict=True):
            node.ask("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for epoch, node in enumerate(nodes, 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        for node in nodes:
            wait_until(lambda node=node: _is_settled(node, len(nodes)))  # type: ignore[misc]  # bound as it is now
        if self.replica is not None:
            self.replica.ask("CLUSTER", "REPLICATE", first.id)
            replica = self.replica
            wait_until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))


def _is_settled(node: Node, nodes: int) -> bool:
    info = node.ask("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and f"cluster_known_nodes:{nodes}\r".encode() in info


def _owner_seen_by(node: Node, slot: int) -> tuple[str, int] | None:
    """Return which master has a slot, as a node sees it, and under which epoch."""
    for line in node.ask("CLUSTER", "NODES").decode().splitlines():
        name, _, _, _, _, _, epoch, _, *ranges = line.split()
        for each in ranges:
            first, _, last = each.partition("-")
            if first.isdigit() and int(first) <= slot <= int(last or first):
                return name, int(epoch)
    return None
