"""A shop whose time, pushes and workers the test moves: for reads of many, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from by_hand import ByHand

from cacheworkers import Cache, Load
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import Stepper

UNLUCKY = 1013


class Asks:
    """A dispatcher that keeps what it is given, for workers to take.

    Attributes:
        rounds: what was handed over together.
        room: how many it takes together.
    """

    def __init__(self) -> None:
        self.rounds: list[list[LoadRequest]] = []
        self.room = 10_000

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        self.rounds.append(list(asks[: self.room]))
        return min(len(asks), self.room)


class Shop:
    """A cache whose time, pushes and workers the test moves; a loader of batches, and a plain one.

    Attributes:
        batches: the keys of each call of a loader.
        on_load: called with the keys at each, before it returns.
        value_of: key -> what is loaded.
    """

    def __init__(self, cache: Cache, patch: pytest.MonkeyPatch, **policy: Any) -> None:
        self.cache, self.ports, self.asks = cache, cache._ports, Asks()
        self.ports.dispatcher = self.asks
        self.batches: list[list[int]] = []
        self.on_load: Callable[[list[int]], object] = lambda keys: None
        self.value_of: Callable[[int], int | None] = lambda key: key * 10 if key else None
        lives: Any = {"jitter": 0, "early": 0, "fresh_for": 600.0, "stale_for": 600.0, "load_for": 100.0, **policy}

        @cache.batch_loader(tags=("p:{key}",), **lives)
        def prices(load: Load, keys: list[int]) -> dict[int, int | None]:
            self._note(keys)
            return {key: self.value_of(key) for key in keys}

        @cache.loader(tags=("p:{key}",), **lives)
        def price(load: Load, key: int) -> int:
            self._note([key])
            return self.value_of(key) or 0

        self.prices, self.price = prices, price
        self.by_hand = ByHand(cache, patch)
        self.by_hand.begin()

    def _note(self, keys: list[int]) -> None:
        self.batches.append(list(keys))
        self.on_load(keys)
        if UNLUCKY in keys:
            raise ValueError("unlucky")

    def many(self, keys: Sequence[Any], *, of: Any = None) -> Stepper[dict[Any, Any]]:
        return Stepper((of or self.prices)._many(keys), by_exchange=True)

    def one(self, key: int, *, of: Any = None) -> Stepper[Any]:
        loader = of or self.prices
        return Stepper(loader._reads.flow(loader._one_key(key), None, loader._decode))

    def work(self) -> None:
        """Load what was asked for, each round as one task, and receive it."""
        rounds, self.asks.rounds[:] = self.asks.rounds[:], []
        for asks in rounds:
            for name in dict.fromkeys(ask.loader for ask in asks):
                mine = [ask for ask in asks if ask.loader == name]
                Stepper(load(self.ports, self.cache._loaders[name], mine, self.ports.worker)).finish()
        self.by_hand.receive()

    def fill(self, keys: Sequence[int], *, of: Any = None) -> None:
        """Have entries in the store, and none in memory."""
        going = self.many(keys, of=of)
        path(going, "wait")
        self.work()
        going.finish()
        self.batches.clear()
        self.ports.l1.clear()
        self.by_hand.go_on()

    def soften(self, keys: Sequence[int]) -> None:
        for key in keys:
            self.cache.invalidate(f"p:{key}", mode="soft")
        self.by_hand.receive()
        self.ports.l1.clear()

    def pass_time(self, going: Stepper[Any], seconds: float) -> None:
        """Let time pass, and end a wait for it."""
        self.by_hand._time._clock.now_ms += int(seconds * 1000)
        self.by_hand.go_on()
        assert going.at == "wait"
        step: Any = going._step
        step.timeout = 0.0

    def leases(self) -> list[str]:
        """Return the calls under lease."""
        keys = self.ports.store.keys
        found = self.ports.store.link.client().keys(f"{keys.namespace}:l:*")
        return sorted(key.decode().partition("{")[2].rstrip("}") for key in found)

    def is_idle(self) -> bool:
        """Whether nobody waits here."""
        return len(self.ports.waiters) == 0 and self.ports.waiters.calls == 0


def path(going: Stepper[Any], until: str = "") -> list[str]:
    """Perform steps, until one is next; their names.  An exchange is one step, of however many requests."""
    steps = []
    while going.at and not (until and going.at.startswith(until)):
        steps.append(going.at.split()[0])
        whole(going)
    return steps


def whole(going: Stepper[Any]) -> None:
    """Perform a step with all its requests."""
    step = going._step
    while step is not None and going._step is step:
        going.step()


def late(going: Stepper[Any]) -> None:
    """Perform a step with all its requests, and keep the flow from its reply."""
    while going._reply is None:
        going.send()


def tens(keys: Sequence[int]) -> dict[int, int]:
    return {key: key * 10 for key in keys}
