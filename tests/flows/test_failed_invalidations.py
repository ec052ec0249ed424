"""What an invalidation that cannot be sure of its own process does to its memory."""

from __future__ import annotations

import pytest

from cacheworkers import Cache, Load
from cacheworkers.testing.servers import wait_until


class Unanswered:
    """A ping behind all pushes that is not answered in time."""

    def run(self) -> bool:
        return False


def test_an_invalidation_whose_ping_is_not_answered_empties_memory(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pushes may not have come: whatever memory holds may be what was deleted."""

    @cache.loader(fresh_for=300, early=0, tags=("n:{n}",))
    def number(load: Load, n: int) -> int:
        return n

    ports = cache._ports
    number.get(1)
    wait_until(lambda: ports.listener.is_up)
    wait_until(lambda: number.read(1).tier == "l1")
    monkeypatch.setattr(ports.listener, "barrier", lambda timeout: Unanswered())

    cache.invalidate("n:2")

    assert ports.l1.get("number[1]") is None


def test_memory_is_emptied_where_the_listener_does_not_answer(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept may be what was invalidated: nobody knows whether its push has come."""

    class Unanswered:
        def run(self) -> bool:
            return False

    l1 = cache._ports.l1
    cleared: list[int] = []
    clear = l1.clear
    monkeypatch.setattr(l1, "clear", lambda: cleared.append(1) or clear())
    monkeypatch.setattr(cache._ports.listener, "barrier", lambda timeout: Unanswered())

    cache.invalidate("products")

    assert cleared
