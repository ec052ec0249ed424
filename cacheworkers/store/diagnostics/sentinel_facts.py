"""Sentinel facts: how many Sentinels the URL names, and how many there are by their own word."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, ResponseError

from cacheworkers.store.connections.address import Node


class SentinelFacts(msgspec.Struct, frozen=True):
    """The Sentinels of one service.

    Attributes:
        named: those that the URL names.
        known: those that watch the service, by the answer that lists most; empty where none may be asked.
    """

    service: str
    named: frozenset[Node]
    known: frozenset[Node]


def sentinel_facts(client: Any, service: str, named: frozenset[Node]) -> SentinelFacts:
    """Ask each Sentinel that the URL names for the others.

    Args:
        client: of the master that Sentinels name; nothing is asked of the master itself.

    Raises:
        ConnectionError: none answers.
    """
    known: frozenset[Node] = frozenset()
    gone: dict[Node, Exception] = {}
    for sentinel in client.connection_pool.sentinel_manager.sentinels:  # a Sentinel once for each way to log in
        options = sentinel.connection_pool.connection_kwargs
        node = (options["host"], options["port"])
        if node in gone:
            continue
        try:
            others = sentinel.sentinel_sentinels(service)
        except (AuthenticationError, ResponseError):  # another way to log in, or no right to ask
            continue
        except (RedisError, OSError) as error:
            gone[node] = error
            continue
        found = frozenset({node, *((str(each["ip"]), int(each["port"])) for each in others)})
        known = max(known, found, key=len)
    if len(gone) == len(named):
        raise ConnectionError("; ".join(f"{host}:{port}: {error}" for (host, port), error in sorted(gone.items())))
    return SentinelFacts(service, named, known)
