"""Faults of a store with replicas, behind Sentinels or as a Cluster, for `python -m benchmarks.faults --shapes`."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Self

import redis

from benchmarks.fault_tools import can_drop_packets, cut_off
from cacheworkers.testing.servers import wait_until

LASTS = 0.3


def deployed(shape: str) -> Any:
    """Return a store of a shape, as the tests of topologies start it; a context manager."""
    deployments = import_module("tests.topologies.deployments")
    return deployments.Deployment(deployments.Kind(shape, "valkey", "password"))


class ReplicatedFaults:
    """Each method is one kind: it breaks something, and heals it or returns what does."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment
        self._chance = random.Random(3)
        self.url = deployment.url
        #: All that there are: of two, the one that has an invalidation need not be the one that is promoted.
        self.replicas = deployment.replicas
        #: How many masters there are, but for moments.
        self._count = 1 if deployment.sentinels else 3
        #: Kind of fault -> seconds until another server was the master: the part of its time that the servers take.
        self.replaced: dict[str, list[float]] = {}
        self.kinds: dict[str, Callable[[], Callable[[], object] | None]] = {
            "a master killed, replaced": self.kill_a_master,
            "a planned failover": self.fail_over,
            "a master frozen": self.pause_a_master,
            "a replica killed": self.kill_a_replica,
            "a master kills all connections": lambda: self._on_a_master("CLIENT", "KILL", "TYPE", "normal"),
            "a master denies writes": self.deny,
            "a master full": self.fill,
            "tracking connections cut": self.cut_tracking,
            "a master frozen, replaced": self.freeze_a_master,
        }
        self._cut = contextlib.ExitStack()
        # A Cluster's master still reaches the others over connections of its own, and so is not replaced.
        if can_drop_packets() and deployment.sentinels:
            self.kinds["a master cut off, replaced"] = self.cut_a_master_off

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cut.close()

    def kill_a_master(self) -> Callable[[], object]:
        """Kill a master; it comes back as a replica later."""
        stack = contextlib.ExitStack()
        stack.callback(wait_until, self._is_settled)
        began = time.monotonic()
        stack.enter_context(self._deployment.failing_over())
        stack.callback(self._wait_for_another, "a master killed, replaced", began)
        return stack.close

    def freeze_a_master(self) -> Callable[[], object]:
        """Stop a master's process until it has been replaced; it finds that out when it goes on."""
        master, began = self._a_master(), time.monotonic()
        master.pause()

        def resume() -> None:
            self._wait_for_another("a master frozen, replaced", began, but=master)
            master.resume()
            wait_until(self._is_settled)

        return resume

    def cut_a_master_off(self) -> Callable[[], object]:
        """Drop all packets of a master until it has been replaced; it has been one all the while, by its own word."""
        master, began = self._a_master(), time.monotonic()
        self._cut.enter_context(cut_off([master.port]))

        def connect() -> None:
            self._wait_for_another("a master cut off, replaced", began, but=master)
            self._cut.close()
            wait_until(self._is_settled)

        return connect

    def fail_over(self) -> Callable[[], object]:
        """Have a replica take over in good order."""
        old, began = self._a_master(), time.monotonic()
        if self._deployment.sentinels:
            try:
                self._deployment.sentinels[0].ask("SENTINEL", "FAILOVER", "shop")
            except redis.ResponseError:  # one has just ended
                return lambda: wait_until(self._is_settled)
            self._wait_for_another("a planned failover", began, but=old)
            # The old one is a master until it is demoted: which is one would be unclear to the next fault.
            return lambda: wait_until(lambda: not old.is_master() and self._is_settled(), within=150.0)
        self._replica_of(old).ask("CLUSTER", "FAILOVER")
        self._wait_for_another("a planned failover", began, but=old)
        return lambda: wait_until(self._is_settled)

    def pause_a_master(self) -> None:
        """Stop a master's process for less than it takes to be replaced."""
        master = self._a_master()
        master.pause()
        time.sleep(LASTS)
        master.resume()

    def kill_a_replica(self) -> None:
        """Kill a replica, and start it again."""
        replica = self._replica_of(self._a_master())
        port = self._master_port(replica)
        replica.kill()
        time.sleep(LASTS)
        replica.start()
        if self._deployment.sentinels:
            replica.ask("REPLICAOF", "127.0.0.1", port)
        wait_until(self._is_settled)

    def deny(self) -> None:
        """Take the rights to write away on a master."""
        master = self._a_master()
        master.ask("ACL", "SETUSER", "default", "-set", "-eval", "-evalsha", "-zadd", "-hset")
        time.sleep(LASTS)
        master.ask("ACL", "SETUSER", "default", "+@all")

    def fill(self) -> None:
        """Leave no room on a master, and evict nothing."""
        master = self._a_master()
        master.ask("CONFIG", "SET", "maxmemory", "1")
        time.sleep(LASTS)
        master.ask("CONFIG", "SET", "maxmemory", "0")

    def cut_tracking(self) -> None:
        """Cut those connections that bring invalidation messages, on every master."""
        for master in self._masters():
            with master.client() as client:
                for each in client.client_list():
                    if "t" in each["flags"]:
                        with contextlib.suppress(redis.ResponseError):
                            client.client_kill_filter(_id=each["id"])

    def _is_settled(self) -> bool:
        nodes = self._deployment.nodes
        replicas = [node for node in nodes if not node.is_master()]
        return len(nodes) - len(replicas) == self._count and all(map(self._deployment.has_link, replicas))

    def _wait_for_another(self, kind: str, began: float, but: Any = None) -> None:
        """Wait until there are as many masters as before, not counting the old one; record how long it took."""
        others = [node for node in self._deployment.nodes if node is not but]
        wait_until(lambda: sum(node.is_master() for node in others) == self._count, within=150.0)
        self.replaced.setdefault(kind, []).append(time.monotonic() - began)

    def _on_a_master(self, *words: str) -> None:
        with contextlib.suppress(redis.ConnectionError):  # it may be one of those that are killed
            self._a_master().ask(*words)

    def _masters(self) -> list[Any]:
        return [node for node in self._deployment.nodes if node.is_master()]

    def _a_master(self) -> Any:
        return self._chance.choice(self._masters())

    def _replica_of(self, master: Any) -> Any:
        return next(each for each in self._deployment.nodes if self._master_port(each) == master.port)

    def _master_port(self, node: Any) -> int:
        role = node.ask("ROLE")
        return int(role[2]) if role[0] == "slave" else 0
