"""Stores as operators run them: standalone, Sentinel 1+2+3 and Cluster 3+3, with passwords, and with TLS."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cacheworkers.testing import Valkey
from cacheworkers.testing.cluster import SLOTS
from cacheworkers.testing.servers import free_port, wait_until

CERTIFICATES = Path(__file__).parents[1] / "integration" / "certificates"
#: How the certificate of the servers is verified.
TLS_OPTIONS = f"ssl_ca_certs={CERTIFICATES}/ca.pem&ssl_server_hostname=shop.example"
PASSWORD = "s3cret/?"
QUOTED = "s3cret%2F%3F"
#: How long a master may be silent before it is replaced, seconds.
DOWN_AFTER = 1.0


class Kind(NamedTuple):
    """One way to run a store."""

    shape: str
    product: str
    security: str

    def __str__(self) -> str:
        return "-".join(self)


@cache
def binary_of(product: str) -> str | None:
    """Return the path of a product's server; None where it is not installed."""
    if product == "redis":
        return os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    words, _ = Valkey().command()
    return str(words[0])


@cache
def speaks_tls(product: str) -> bool:
    """Return whether a server has been built with TLS."""
    binary = binary_of(product)
    if binary is None:
        return False
    with tempfile.TemporaryDirectory() as directory:
        words = [binary, "--port", "0", "--tls-port", str(free_port()), *_tls_files("--"), "--dir", directory]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            assert server.stdout is not None
            for line in server.stdout:
                if "Ready to accept connections" in line or "ready to accept connections" in line:
                    server.terminate()
                    return True
    return False


def missing(kind: Kind) -> str:
    """Return why a store of this kind cannot be started here; empty if it can."""
    if binary_of(kind.product) is None:
        return f"no {kind.product}-server"
    if kind.security == "tls" and not speaks_tls(kind.product):
        return f"this {kind.product}-server has no TLS"
    return ""


def _tls_files(prefix: str) -> list[str]:
    files = {"tls-cert-file": "server.pem", "tls-key-file": "server.key", "tls-ca-cert-file": "ca.pem"}
    words = [word for name, file in files.items() for word in (prefix + name, str(CERTIFICATES / file))]
    return [*words, f"{prefix}tls-auth-clients", "no", f"{prefix}tls-replication", "yes", f"{prefix}tls-cluster", "yes"]


class Node(Valkey):
    """A server of either product, with a password, and with TLS if asked for."""

    def __init__(self, kind: Kind, **config: str) -> None:
        super().__init__(requirepass=PASSWORD, masterauth=PASSWORD, repl_diskless_sync_delay="0", **config)
        self.kind = kind

    def command(self) -> Any:
        """Return the command line."""
        words, options = super().command()
        words = [str(binary_of(self.kind.product)), *words[1:]]
        if self.kind.security == "tls":
            at = words.index("--port")
            words[at : at + 2] = ["--port", "0", "--tls-port", str(self.port), *_tls_files("--")]
        return words, options

    def client(self, password: str = PASSWORD) -> Any:
        """Return redis-py's client of this server."""
        tls = {"ssl_ca_certs": str(CERTIFICATES / "ca.pem"), "ssl_check_hostname": False}
        return redis.Redis(
            port=self.port,
            password=password,
            socket_timeout=5.0,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            ssl=self.kind.security == "tls",
            **(tls if self.kind.security == "tls" else {}),
        )

    def ask(self, *words: Any) -> Any:
        """Return the reply to a command."""
        with self.client() as client:
            return client.execute_command(*words)

    def is_ready(self) -> bool:
        """Return whether it answers."""
        with contextlib.suppress(redis.RedisError, OSError):
            return bool(self.ask("PING"))
        return False

    def is_master(self) -> bool:
        """Return whether it is a master that answers."""
        with contextlib.suppress(redis.RedisError, OSError):
            return bool(self.ask("ROLE")[0] == "master")
        return False


class Sentinel(Node):
    """Watches a master, which it calls `shop`; of the password that the servers have."""

    def __init__(self, kind: Kind, master: Node) -> None:
        super().__init__(kind)
        self._master = master

    def command(self) -> Any:
        """Return the command line, after writing its file."""
        ports = [f"port {self.port}"]
        if self.kind.security == "tls":
            files = _tls_files("")
            ports = ["port 0", f"tls-port {self.port}"]
            ports += [f"{name} {value}" for name, value in zip(files[::2], files[1::2], strict=True)]
        lines = [
            *ports,
            "bind 127.0.0.1",
            f'requirepass "{PASSWORD}"',
            f'sentinel sentinel-pass "{PASSWORD}"',
            f"sentinel monitor shop 127.0.0.1 {self._master.port} 2",
            f'sentinel auth-pass shop "{PASSWORD}"',
            f"sentinel down-after-milliseconds shop {int(DOWN_AFTER * 1000)}",
            "sentinel failover-timeout shop 2000",
        ]
        file = self.dir / "sentinel.conf"
        file.write_text("\n".join(lines) + "\n")
        return [str(binary_of(self.kind.product)), str(file), "--sentinel"], {}


class Deployment:
    """Servers of one kind; a context manager that stops them.

    Attributes:
        url: for `Config.redis_url`.
        replicas: how many each master has.
        nodes, sentinels: the servers, masters and replicas; and who watches them.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._stack = contextlib.ExitStack()
        self.replicas = {"standalone": 0, "sentinel": 2, "cluster": 1}[kind.shape]
        self.nodes: list[Node] = []
        self.sentinels: list[Sentinel] = []

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.url_of(self.sentinels or (self.nodes[:3] if self.kind.shape == "cluster" else self.nodes[:1]))

    def url_of(self, named: Sequence[Node]) -> str:
        """Return a URL that names these: Sentinels, seeds of a Cluster, or the one server."""
        tls = self.kind.security == "tls"
        options = f"?{TLS_OPTIONS}" if tls else ""
        scheme = {"standalone": "redis", "sentinel": "sentinel", "cluster": "cluster"}[self.kind.shape] + "s" * tls
        user = f":{QUOTED}@"
        if self.kind.shape == "standalone":
            return f"{scheme}://{user}127.0.0.1:{named[0].port}/2{options}"
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in named)
        if self.kind.shape == "cluster":
            return f"{scheme}://{user}{hosts}{options}"
        more = f"{options}&" if options else "?"
        return f"{scheme}://{user}{hosts}/shop/2{more}sentinel_password={QUOTED}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            {"standalone": self._standalone, "sentinel": self._sentinel, "cluster": self._cluster}[self.kind.shape]()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def failing_over(self) -> Iterator[None]:
        """Kill a master; in the block another takes its place.  Then the old one comes back, as a replica.

        A single server has no other: it is back immediately, and empty.
        """
        if self.kind.shape == "standalone":
            self.nodes[0].kill()
            self.nodes[0].start()
            yield
            return
        master = next(node for node in self.nodes if node.is_master())
        others = [node for node in self.nodes if node is not master]
        before = sum(node.is_master() for node in others)
        master.kill()
        yield
        wait_until(lambda: sum(node.is_master() for node in others) == before + 1, within=150.0)  # Sentinels may tilt
        master.start()
        if self.kind.shape == "sentinel":  # Sentinels do it too, after ten seconds
            new = next(node for node in others if node.is_master())
            master.ask("REPLICAOF", "127.0.0.1", new.port)
        wait_until(lambda: self.has_link(master))

    def has_link(self, replica: Node) -> bool:
        """Return whether a replica receives what its master does."""
        with contextlib.suppress(redis.RedisError, OSError), replica.client() as client:
            return bool(client.info("replication").get("master_link_status") == "up")
        return False

    def _start(self, node: Node) -> Node:
        self.nodes.append(self._stack.enter_context(node))
        return node

    def _standalone(self) -> None:
        self._start(Node(self.kind))

    def _sentinel(self) -> None:
        master = self._start(Node(self.kind))
        for _ in range(2):
            self._start(Node(self.kind, replicaof=f"127.0.0.1 {master.port}"))
        self.sentinels = [self._stack.enter_context(Sentinel(self.kind, master)) for _ in range(3)]
        for sentinel in self.sentinels:
            wait_until(lambda sentinel=sentinel: self._sees(sentinel) == ("2", "2"))
        wait_until(lambda: master.client().info("replication")["connected_slaves"] == 2)

    def _sees(self, sentinel: Node) -> tuple[Any, Any]:
        with sentinel.client() as client:
            found = client.sentinel_master("shop")
        return str(found["num-slaves"]), str(found["num-other-sentinels"])

    def _cluster(self) -> None:
        bus = [free_port() for _ in range(6)]
        for port in bus:
            self._start(
                Node(
                    self.kind,
                    cluster_enabled="yes",
                    cluster_port=str(port),
                    cluster_node_timeout=str(int(DOWN_AFTER * 1000)),
                )
            )
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for nth, node in enumerate(masters):
            node.ask("CLUSTER", "ADDSLOTSRANGE", SLOTS * nth // 3, SLOTS * (nth + 1) // 3 - 1)
        for epoch, node in enumerate(self.nodes, 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node, port in zip(self.nodes[1:], bus[1:], strict=True):
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, port)
        for node in self.nodes:
            wait_until(lambda node=node: self._is_settled(node))
        for master, replica in zip(masters, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        for replica in replicas:
            wait_until(lambda replica=replica: self.has_link(replica))
        for node in self.nodes:
            wait_until(lambda node=node: str(node.ask("CLUSTER", "NODES")).count("slave ") == 3)

    def _is_settled(self, node: Node) -> bool:
        info = str(node.ask("CLUSTER", "INFO"))
        return "cluster_state:ok" in info and "cluster_known_nodes:6" in info
