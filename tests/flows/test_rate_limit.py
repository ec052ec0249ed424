"""A loader's rate limit: no more loads begin, whoever runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers import Cache, Load, LoadErrors, RateLimited
from cacheworkers.errors import DeclarationError, StoreUnavailable
from cacheworkers.local.rate_limiter import RateLimiter, per_second


def test_turns_are_taken_in_the_store_by_all_processes(make_cache: Callable[..., Cache]) -> None:
    """Evenly spaced: of two processes each gets every other one."""
    stores = [make_cache()._ports.store for _ in range(2)]

    waits = [stores[at % 2].take_turn("quote", 100.0, 1000.0).run() for at in range(6)]

    assert all(wait is not None and 100 * at - 10 < wait <= 100 * at for at, wait in enumerate(waits))


def test_each_half_of_a_batch_that_raised_takes_a_turn(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    runs: list[list[int]] = []

    @cache.batch_loader(wait_for=0, rate_limit="1000/s")
    def quotes(load: Load, keys: list[int]) -> dict[int, int]:
        runs.append(keys)
        if 2 in keys:
            raise ValueError("no quote")
        return {key: key for key in keys}

    store, turns = cache._ports.store, []
    take = store.take_turn
    monkeypatch.setattr(store, "take_turn", lambda *args: turns.append(args) or take(*args))
    with pytest.raises(LoadErrors) as caught:
        quotes.get_many([1, 2, 3, 4])

    assert caught.value.values == {1: 1, 3: 3, 4: 4}
    assert len(turns) == len(runs) > 1


def test_a_turn_that_would_come_too_late_is_not_taken(make_cache: Callable[..., Cache]) -> None:
    store = make_cache()._ports.store
    assert store.take_turn("quote", 100.0, 0.0).run() == 0

    assert store.take_turn("quote", 100.0, 50.0).run() is None

    wait = store.take_turn("quote", 100.0, 150.0).run()
    assert wait is not None and 50 < wait <= 100


@pytest.mark.parametrize("kind", ["plain", "batch"])
@pytest.mark.parametrize("is_away", [False, True], ids=["store", "no store"])
def test_loads_beyond_the_limit_do_not_begin(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, kind: str, is_away: bool
) -> None:
    """The second of the hour is refused: without the store, by this process alone."""
    cache = make_cache()
    loads: list[Any] = []
    policy: dict[str, Any] = {"wait_for": 0.0, "load_for": 5, "rate_limit": "1/h"}

    if kind == "plain":

        @cache.loader(**policy)
        def quote(load: Load, number: int) -> int:
            loads.append(number)
            return number

        loader: Any = quote
    else:

        @cache.batch_loader(**policy)
        def quotes(load: Load, keys: list[int]) -> dict[int, int]:
            loads.append(keys)
            return {key: key for key in keys}

        loader = quotes
    if is_away:

        def away(requests: Any) -> Any:
            raise StoreUnavailable("away")

        monkeypatch.setattr(cache._ports.store.link, "exchange", away)

    assert loader.get(1) == 1
    with pytest.raises(RateLimited, match="1/h"):
        loader.get(2)

    assert len(loads) == 1


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100.0), ("30/m", 0.5), ("36/h", 0.01), ("2", 2.0), ("0.5/s", 0.5)]
)
def test_a_rate_is_a_number_and_a_unit(text: str, rate: float) -> None:
    assert per_second(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "0/s", "-1/s", "fast", "2/d", "2 / s", "1e3/s"])
def test_what_is_no_rate_is_refused_when_it_is_declared(make_cache: Callable[..., Cache], text: str) -> None:
    with pytest.raises(DeclarationError, match="rate limit"):

        @make_cache().loader(rate_limit=text)
        def quote(load: Load) -> int:
            return 1


def test_turns_of_one_process_do_not_add_up_while_nobody_comes() -> None:
    """No bursts: what was not used is lost."""
    limiter = RateLimiter(2.0)

    assert limiter.take_turn(100.0, 0.0) == 0
    assert limiter.take_turn(200.0, 0.0) == 0
    assert limiter.take_turn(200.0, 0.4) is None
    assert limiter.take_turn(200.0, 0.5) == 0.5
