"""For which master memory goes on while nobody reports changes: the one listened to, while it is confirmed."""

from __future__ import annotations

import time

from cacheworkers import Config
from cacheworkers.local.clock import StoreClock
from cacheworkers.store.connections.sentinels import Term
from cacheworkers.store.connections.transport import Transport

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


def test_behind_sentinels_it_is_one_term_while_most_confirm_it() -> None:
    """A master that is one again after another missed its changes; an answer that has lapsed proves nothing."""
    config = Config(redis_url="sentinel://10.0.1.1,10.0.1.2,10.0.1.3/shop")
    link = Transport(config, StoreClock(), on_lost=lambda error: None, on_back=lambda: None)
    lease, listened_to = link._clients.lease, Term(OLD, 1)
    assert lease is not None

    lease.confirm(listened_to, time.monotonic() + 60)  # however long this machine pauses
    assert link.is_silent("price[1]", listened_to)
    assert not link.is_silent("price[1]", Term(OLD, 2))
    assert not link.is_silent("price[1]", Term(NEW, 1))

    lease.until = time.monotonic() - 1
    assert not link.is_silent("price[1]", listened_to)
    link.close()
