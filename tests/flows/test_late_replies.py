"""A request that reached the store, and whose answer did not come in time: the promise holds all the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from cacheworkers import Cache, Config, InvalidationIncomplete, Load
from cacheworkers.store.connections.connection import Connection, pack
from cacheworkers.testing import FaultProxy, Valkey
from cacheworkers.testing.servers import wait_until

_names = itertools.count(1)
#: How long the one exchange waits whose answer is late, seconds; all others wait for as long as a busy machine needs.
GIVES_UP_AFTER = 0.1


class Late:
    """A cache whose n-th exchange with the store from `arm` on is answered too late."""

    def __init__(self, proxy: FaultProxy, namespace: str) -> None:
        self.database = {1: "old", 2: "other"}
        self.loads = 0
        self.at = 0
        self.seen = 0
        self.is_over = False
        self.proxy = proxy
        config = Config(redis_url=proxy.url, namespace=namespace, store_timeout=20.0, breaker_for=0.0, l1_for=0.0)
        self.cache = Cache(config)
        pool: Any = self.cache._ports.store.link._masters.pool
        exchange = pool.exchange

        def counted(commands: Any) -> Any:
            self.seen += 1
            if self.seen != self.at:
                return exchange(commands)
            connection = Connection(pool.redis_pool(), GIVES_UP_AFTER)
            proxy.hold_replies()
            try:
                return connection.exchange(pack(commands), len(commands))
            finally:
                connection.close()
                proxy.release()
                self.is_over = True

        pool.exchange = counted
        pool.get = lambda key, began: counted([("GET", key)])[0]

        @self.cache.loader(tags=("t:{n}",), fresh_for=60, load_for=1.5, wait_for=60.0, early=0)
        def value(load: Load, n: int) -> str:
            self.loads += 1
            return self.database[n]

        self.value = value

    def arm(self, at: int) -> None:
        self.at, self.seen, self.is_over = at, 0, False


@pytest.fixture
def late(valkey: Valkey) -> Iterator[Late]:
    with FaultProxy(valkey.url) as proxy:
        late = Late(proxy, f"late{next(_names)}")
        late.value.get(2)  # connected, checked, scripts known
        late.cache.invalidate("t:2")
        wait_until(lambda: late.cache._ports.listener.is_up)
        yield late
        late.cache.close()


@pytest.mark.parametrize("at", range(1, 9))
def test_a_read_whose_exchange_is_late(late: Late, at: int) -> None:
    """It returns the value; what it left behind is invalidated as surely as ever."""
    late.arm(at)

    assert late.value.get(1) == "old"
    # A worker's last exchanges may come after the answer; reads go on until that one's turn has come.
    wait_until(lambda: late.value.get(1) == "old" and late.is_over)
    late.arm(0)
    late.database[1] = "new"
    late.cache.invalidate("t:1")

    assert late.value.get(1) == "new"
    assert late.value.get(1) == "new"


@pytest.mark.parametrize("at", range(1, 5))
def test_an_invalidation_whose_exchange_is_late(late: Late, at: int) -> None:
    """Acknowledged, nobody sees the old value; not acknowledged, doing it again is enough."""
    late.value.get(1)
    late.database[1] = "new"
    late.arm(at)

    try:
        late.cache.invalidate("t:1")
    except InvalidationIncomplete:
        late.arm(0)
        late.cache.invalidate("t:1")
    else:
        assert late.is_over
    late.arm(0)

    assert late.value.get(1) == "new"
