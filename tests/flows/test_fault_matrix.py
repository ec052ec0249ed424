"""Each fault with each state of an entry, read in each way: readers get what docs/how-to/operate.md says they get."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheworkers import Cache, CacheworkersError, Load, LoadErrors
from cacheworkers.errors import StoreFull, StoreRefused, StoreUnavailable
from cacheworkers.store.connections.request import Request
from cacheworkers.testing.servers import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "operate.md"
STATES = {
    "fresh": {"fresh_for": 300, "stale_for": 300},
    "stale": {"fresh_for": 0, "stale_for": 300},
    "lapsed": {"fresh_for": 0, "stale_for": 0, "error_for": 300},
    "failed": {},
    "missing": {},
}
#: State -> the key whose entry is in it.
KEYS = {state: key for key, state in enumerate(STATES, 1)}
OLD, NEW = 1, 2


def documented() -> dict[str, dict[str, str]]:
    """Return fault -> state -> what readers get, as the documentation has it."""
    table = PAGE.read_text().partition("| what fails |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("| ").split("|")] for row in table.splitlines()]
    states, faults = rows[0], rows[2:]
    return {re.sub("`", "", row[0]): dict(zip(states, row[1:], strict=True)) for row in faults}


class Shop:
    """A loader with a key in each state."""

    def __init__(self, cache: Cache, fault: str) -> None:
        self.cache, self.ports = cache, cache._ports
        self.value: int | None = OLD
        self.leaves_out = False
        self.go = threading.Event()
        policy: dict[str, Any] = {"jitter": 0, "early": 0, "wait_for": 60, "load_for": 60}
        for state, life in STATES.items():
            if state != "missing":
                self._bring_into(state, policy | life)
        if "no worker" in fault:
            policy |= {"wait_for": 0.05, "load_for": 0.4 if "room" in fault else 30}
        if "on_timeout" in fault:
            policy["on_timeout"] = "raise"
        if "rate limit" in fault:
            policy["rate_limit"] = "1/h"
        self.loader = self._declared(policy | STATES["fresh"] | {"error_for": 300})
        self.value = NEW

    def _declared(self, policy: dict[str, Any]) -> Any:
        def price(load: Load, keys: list[int]) -> dict[int, int]:
            if self.value is None:
                raise RuntimeError("the database has an error")
            return {} if self.leaves_out else dict.fromkeys(keys, self.value)

        return self.cache.batch_loader(replace=True, **policy)(price)

    def _bring_into(self, state: str, policy: dict[str, Any]) -> None:
        """Have the state's key loaded with such a life: an entry keeps the one that it was written with."""
        loader, call = self._declared(policy), f"price[{KEYS[state]}]"
        self.value = None if state == "failed" else OLD
        assert loader.revalidate(KEYS[state])
        record = self.ports.store.failures if state == "failed" else self.ports.store.get
        wait_until(lambda: record(call).run())


def break_store(shop: Shop, patch: pytest.MonkeyPatch, error: Callable[[str], Exception], fails: Any) -> None:
    """Have requests answered with an error, those for which `fails` says so."""
    link = shop.ports.store.link
    exchange, aexchange = link.exchange, link.aexchange

    def checked(requests: Any) -> None:
        if any(fails(request) for request in requests):
            raise error("no use")

    def failing(requests: Any) -> Any:
        checked(requests)
        return exchange(requests)

    async def afailing(requests: Any) -> Any:
        checked(requests)
        return await aexchange(requests)

    patch.setattr(link, "exchange", failing)
    patch.setattr(link, "get", lambda key, now: failing([Request(("GET", key))])[0])
    patch.setattr(link, "aexchange", afailing)
    patch.setattr(link, "submit", lambda words, done: False)


class Nobody:
    """Takes messages, and nobody works."""

    def submit_all(self, requests: Any) -> int:
        return len(requests)


def full(request: Any) -> bool:
    return request.script is not None and request.script.name in ("register", "write")


def cause(shop: Shop, fault: str, patch: pytest.MonkeyPatch) -> None:
    """Bring a fault about, as its name says."""
    if "loader raises" in fault:
        shop.value = None
    if "leaves the key out" in fault:
        shop.leaves_out = True
    if "store is away" in fault:
        break_store(shop, patch, StoreUnavailable, lambda request: True)
    if "refuses scripts" in fault:
        break_store(shop, patch, StoreRefused, lambda request: request.script is not None)
    if "store is full" in fault:
        break_store(shop, patch, StoreFull, full)
    if "no worker" in fault:
        shop.ports.dispatcher = Nobody()
    if "no room" in fault:
        bulkhead = shop.cache._runtime._bulkhead
        for _ in range(shop.cache.config.bulkhead):
            threading.Thread(target=bulkhead.run, args=(lambda: shop.go.wait(60), 60), daemon=True).start()
        wait_until(lambda: bulkhead.running == shop.cache.config.bulkhead)
    if "rate limit" in fault:
        shop.ports.store.take_turn("price", 3600.0, 1e6).run()


def shown(read: Callable[[], Any]) -> str:
    """Return what the read of a key got, in the documentation's words."""
    try:
        found = read()
    except CacheworkersError as error:
        return type(error).__name__
    return "new" if found.value == NEW else f"old, {found.freshness.value}"


def each_shown(many: Callable[[], dict[int, int]]) -> dict[str, str]:
    """Return the same of one read of all keys; values alone do not say how fresh they are."""
    values, errors = {}, {}
    try:
        values = many()
    except LoadErrors as error:
        values, errors = error.values, error.errors
    assert {*values, *errors} == {*KEYS.values()} and not {*values} & {*errors}
    found = {key: "new" if value == NEW else "old" for key, value in values.items()}
    found |= {key: type(error).__name__ for key, error in errors.items()}
    return {state: found[key] for state, key in KEYS.items()}


WAYS: dict[str, Callable[[Any], dict[str, str]]] = {
    "read": lambda loader: {state: shown(lambda key=key: loader.read(key)) for state, key in KEYS.items()},
    "aread": lambda loader: {
        state: shown(lambda key=key: asyncio.run(loader.aread(key))) for state, key in KEYS.items()
    },
    "get_many": lambda loader: each_shown(lambda: loader.get_many(KEYS.values())),
    "aget_many": lambda loader: each_shown(lambda: asyncio.run(loader.aget_many(KEYS.values()))),
}


@pytest.fixture
def made(make_cache: Callable[..., Cache]) -> Iterator[Callable[[str], Shop]]:
    shops: list[Shop] = []

    def make(fault: str) -> Shop:
        shops.append(Shop(make_cache(l1_entries=0, backoff_for=600.0, max_backoff_for=600.0, bulkhead=2), fault))
        return shops[-1]

    yield make
    for shop in shops:
        shop.go.set()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", documented())
def test_readers_get_what_is_documented(
    made: Callable[[str], Shop], monkeypatch: pytest.MonkeyPatch, fault: str, way: str
) -> None:
    shop = made(fault)
    cause(shop, fault, monkeypatch)

    got = WAYS[way](shop.loader)

    expected = documented()[fault]
    if "many" in way:
        expected = {state: text.partition(",")[0] for state, text in expected.items()}
    assert got == expected


def test_the_table_has_every_state() -> None:
    assert all(list(row) == list(STATES) for row in documented().values())
    assert len(documented()) >= 13
