"""A Cluster's nodes say where a request runs; it follows them, but not for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    NoScriptError,
    TryAgainError,
)

from cacheworkers import ConfigError
from cacheworkers.core.driver import run
from cacheworkers.store.commands.scripts import SNAPSHOT
from cacheworkers.store.connections.address import parse_url
from cacheworkers.store.connections.clients import Clients
from cacheworkers.store.connections.cluster import Cluster, Node
from cacheworkers.store.connections.connection import unconnected
from cacheworkers.store.connections.request import Request

A, B, C = ("a", 1), ("b", 2), ("c", 3)
SLOTS = [[0, 8191, [b"a", 1, b"id"]], [8192, 16383, [b"b", 2, b"id"], [b"c", 3, b"id"]]]
ASKING = ("ASKING",)
_Answers = Callable[[tuple[Any, ...]], Any]


class Nodes:
    """Nodes that answer by a table; what each was sent is noted.

    Attributes:
        sent: (node, commands of one write), in order.
    """

    def __init__(self, slots: Any = SLOTS, **answers: _Answers) -> None:
        self.slots = slots
        self.sent: list[tuple[Node, list[tuple[Any, ...]]]] = []
        self._answers = answers

    def to(self, node: Node) -> Any:
        return _Pool(self, node)

    def answer(self, node: Node, words: tuple[Any, ...]) -> Any:
        if words == ("CLUSTER", "SLOTS"):
            return self.slots(node) if callable(self.slots) else self.slots
        return b"OK" if words == ASKING else self._answers[node[0]](words)


class _Pool:
    def __init__(self, nodes: Nodes, node: Node) -> None:
        self._nodes = nodes
        self._node = node
        self._replies: list[Any] = []
        self.failed_at = 0.0
        self.timeout = 1.0

    def send(self, commands: Sequence[tuple[Any, ...]], timeout: float | None = None) -> _Pool:
        self._nodes.sent.append((self._node, list(commands)))
        self._replies = [self._nodes.answer(self._node, words) for words in commands]
        return self

    def receive(self, timeout: float | None = None) -> list[Any]:
        for reply in self._replies:
            if isinstance(reply, ConnectionError):
                self.failed_at = len(self._nodes.sent)
                raise reply
        return self._replies

    def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self.send(commands).receive()

    def give_up(self) -> None:
        self._replies = []

    def drop(self) -> None:
        pass


def made(nodes: Nodes) -> Cluster:
    return Cluster([A], nodes.to, patience=0.0)


def key_on(node: Node, nth: int = 0) -> str:
    """The nth key that lies on a or on b."""
    found = (key for key in map(str, range(1000)) if (key_slot(key.encode()) < 8192) == (node == A))
    return [next(found) for _ in range(nth + 1)][-1]


def got(*keys: str) -> list[Request]:
    return [Request(("GET", key)) for key in keys]


def echoed(words: tuple[Any, ...]) -> Any:
    return words[1]


def always(reply: Any) -> _Answers:
    return lambda words: reply


def test_one_write_for_each_master_and_replies_in_order() -> None:
    nodes = Nodes(a=echoed, b=echoed)
    keys = [key_on(B), key_on(A), key_on(B, 1), key_on(A, 1)]

    assert made(nodes).exchange(got(*keys)) == keys

    assert nodes.sent[1:] == [(B, [("GET", keys[0]), ("GET", keys[2])]), (A, [("GET", keys[1]), ("GET", keys[3])])]


def test_asking_is_written_right_before_the_command_alone() -> None:
    """Only what was sent elsewhere is sent again."""
    moving, staying = key_on(A), key_on(A, 1)
    nodes = Nodes(a=lambda words: AskError("1 c:3") if words[1] == moving else words[1], c=echoed)

    assert made(nodes).exchange(got(moving, staying)) == [moving, staying]

    assert nodes.sent[2:] == [(C, [ASKING, ("GET", moving)])]


def test_who_names_another_master_is_believed_and_that_one_is_asked_for_the_slots() -> None:
    key = key_on(A)
    nodes = Nodes(a=always(MovedError(f"{key_slot(key.encode())} c:3")), c=echoed)
    nodes.slots = lambda node: SLOTS if node == A else [[0, 16383, [b"c", 3, b"id"]]]
    cluster = made(nodes)
    cluster._to(C).failed_at = 1.0  # some time ago
    before = cluster.names

    assert cluster.exchange(got(key)) == [key]

    assert [node for node, _ in nodes.sent] == [A, A, C, C]
    assert cluster.names != before


@pytest.mark.parametrize("reply", [MovedError("1 b:2"), AskError("1 b:2"), TryAgainError("later"), NoScriptError("")])
def test_an_answer_that_stays_the_same_is_followed_a_few_times(reply: Exception) -> None:
    """It is the reply in the end, and what else was asked is not asked again."""
    key, other = key_on(A), key_on(B, 7)
    nodes = Nodes(a=always(reply), b=lambda words: words[1] if words[1] == other else reply)

    replies = made(nodes).exchange([Request.call(SNAPSHOT, (key,), ()), *got(other)])

    assert replies == [reply, other]
    commands = [words for _, commands in nodes.sent for words in commands]
    assert commands.count(("GET", other)) == 1
    assert len(commands) < 20


def test_an_unknown_script_is_sent_in_full_to_whoever_did_not_know_it() -> None:
    """While its slot is on its way, with another ASKING."""
    call = Request.call(SNAPSHOT, (key_on(A),), ())
    nodes = Nodes(
        a=always(AskError("1 c:3")),
        c=lambda words: b"ran" if words[0] == "EVAL" else NoScriptError("No matching script."),
    )

    assert made(nodes).exchange([call]) == [b"ran"]

    assert nodes.sent[2:] == [(C, [ASKING, call.words]), (C, [ASKING, call.in_full()])]


def test_nothing_is_sent_again_after_a_failure_of_the_connection() -> None:
    """It may have run."""
    nodes = Nodes(a=always(ConnectionError("cut")), b=echoed)
    keys = key_on(A), key_on(B)

    with pytest.raises(ConnectionError):
        made(nodes).exchange(got(*keys))

    assert [commands for _, commands in nodes.sent[1:]] == [[("GET", keys[0])], [("GET", keys[1])]]


def test_who_failed_is_asked_last_for_the_slots() -> None:
    nodes = Nodes(a=always(ConnectionError("cut")), b=echoed)
    cluster = made(nodes)
    with pytest.raises(ConnectionError):
        cluster.exchange(got(key_on(A)))
    cluster.drop()
    nodes.sent.clear()

    assert cluster.exchange(got(key_on(B))) == [key_on(B)]

    assert nodes.sent[0] == (B, [("CLUSTER", "SLOTS")])


def test_of_several_nodes_that_are_asked_for_the_slots_the_first_may_be_away() -> None:
    nodes = Nodes(a=echoed, b=echoed)
    nodes.slots = lambda node: ConnectionError("refused") if node == A else SLOTS

    assert Cluster([A, B], nodes.to, patience=0.0).exchange(got(key_on(B))) == [key_on(B)]


def test_a_master_that_answers_its_probe_with_an_error_has_not_recovered() -> None:
    nodes = Nodes(a=always(ClusterDownError("no answer yet")), b=echoed)
    cluster = made(nodes)
    failed, _ = run(cluster.masters())
    failed.pool.failed_at = 1.0

    with pytest.raises(ClusterDownError):
        run(cluster.confirm("k"))
    assert failed.pool.failed_at == 1.0

    nodes._answers["a"] = echoed
    run(cluster.confirm("k"))
    assert failed.pool.failed_at == 0.0


def test_a_node_without_slots_is_not_believed() -> None:
    """It was taken out of the Cluster."""
    nodes = Nodes(a=echoed, b=echoed)
    cluster = made(nodes)
    cluster.exchange(got(key_on(A)))
    cluster.refresh_later()
    nodes.slots = lambda node: [] if node == A else SLOTS

    assert cluster.exchange(got(key_on(B))) == [key_on(B)]


def test_a_slot_without_a_master_says_which() -> None:
    nodes = Nodes(slots=[SLOTS[0]], a=echoed)

    with pytest.raises(ClusterDownError, match=str(key_slot(key_on(B).encode()))):
        made(nodes).exchange(got(key_on(B)))


def test_a_node_that_names_no_host_means_its_own() -> None:
    key = key_on(A)
    answers = iter([MovedError(f"{key_slot(key.encode())} :9"), b"ran"])
    nodes = Nodes(a=lambda words: next(answers))
    nodes.slots = lambda node: [[0, 16383, [None, node[1], b"id"]]]

    assert made(nodes).exchange(got(key)) == [b"ran"]

    assert nodes.sent[-1][0] == ("a", 9)


def test_every_master_has_a_key_of_its_own_in_each_of_its_slots() -> None:
    for node, master in zip((A, B), run(made(Nodes()).masters()), strict=True):
        for nth in range(3):
            assert (key_slot(master.key("k", nth).encode()) < 8192) == (node == A)


def test_nodes_are_reached_as_the_url_says() -> None:
    """By TLS and credentials."""
    url = parse_url("clusters://shop:se%20cret@here:7000/0?ssl_cert_reqs=none")
    clients = Clients(url, 1.5)

    for pool in (clients.pool_at("there", 7001), clients.async_pool_at("there", 7001)):
        connection = unconnected(pool)
        assert type(connection).__name__ == "SSLConnection"
        assert (connection.host, connection.port, connection.db) == ("there", 7001, 0)
        assert (connection.username, connection.password) == ("shop", "se cret")
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (1.5, 1.5)


@pytest.mark.parametrize("url", ["cluster://here/3", "clusters://here/?db=1"])
def test_a_cluster_has_no_other_databases(url: str) -> None:
    with pytest.raises(ConfigError, match="database"):
        parse_url(url)
