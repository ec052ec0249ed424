"""A load without `begin` that turns out slow is marked as begun, so that no reader takes its lease over."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cacheworkers import Cache, Load
from cacheworkers.errors import StoreUnavailable
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.runtime import slow_loads
from cacheworkers.store.commands.replies import Claimed, Held
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until

CALL, TOKEN, OTHER = "price[1]", "1" * 16, "2" * 16


@pytest.fixture
def store(cache: Cache) -> Any:
    return cache._ports.store


def away(asked: threading.Event) -> Any:
    asked.set()
    raise StoreUnavailable("away")


def take_over(store: Any) -> Any:
    return store.claim(CALL, OTHER, lease_for=60, expected=TOKEN).run()


def test_a_load_that_stalls_keeps_its_lease_and_is_stored(cache: Cache, store: Any) -> None:
    stalls = threading.Event()

    @cache.loader(tags=("price",), wait_for=60, load_for=60)
    def price(load: Load, number: int) -> int:
        stalls.wait()
        return number

    ports, spec = cache._ports, cache._loaders["price"]
    spec.load_times.load_time = 0.0
    claim = store.claim(CALL, TOKEN, lease_for=60).run()
    request = LoadRequest("price", CALL, TOKEN, "", "miss", snapshot=claim.snapshot)
    worker = Stepper(load(ports, spec, [request], ports.worker))
    assert worker.at == f"load {CALL}"
    thread = threading.Thread(target=worker.finish)
    thread.start()
    try:
        wait_until(lambda: store.lease(CALL).run().get("fence") == TOKEN)
        held = take_over(store)
    finally:
        stalls.set()
        thread.join()

    assert isinstance(held, Held) and held.is_begun
    assert worker.finish()[CALL].outcome == "stored"
    assert price.get(1) == 1


def test_one_that_is_marked_is_not_begun_by_the_same_message(store: Any) -> None:
    store.claim(CALL, TOKEN, lease_for=60).run()
    store.mark_begun([(CALL, TOKEN, 60)]).run()

    assert store.begin([(CALL, TOKEN, "f" * 16, b"")], load_for=60).run() == [None]
    [again] = store.begin([(CALL, TOKEN, "f" * 16, b"")], load_for=60, is_redelivered=True).run()
    assert again is not None


@pytest.mark.parametrize("lease", ["gone", "another's", "begun"])
def test_only_the_lease_of_its_own_claim_is_marked(store: Any, lease: str) -> None:
    """One that an invalidation has broken must not be made again."""
    if lease != "gone":
        store.claim(CALL, OTHER if lease == "another's" else TOKEN, lease_for=60).run()
    if lease == "begun":
        store.begin([(CALL, TOKEN, "f" * 16, b"")], load_for=60).run()
    before = store.lease(CALL).run()

    store.mark_begun([(CALL, TOKEN, 60)]).run()

    after = store.lease(CALL).run()
    assert after.get("fence") == before.get("fence") and after.get("token") == before.get("token")


def test_one_that_is_marked_has_its_whole_time_and_counts(store: Any) -> None:
    """Half of its lease may be over when its message is taken; and one that never ends must not be tried for ever."""
    store.claim(CALL, TOKEN, lease_for=5).run()

    store.mark_begun([(CALL, TOKEN, 60)]).run()

    assert int(store.lease(CALL).run()["left_ms"]) > 50_000
    assert store.attempts(CALL).run() == 1
    store.link.client().delete(store.keys.lease(CALL))  # it has run out
    store.claim(CALL, OTHER, lease_for=60).run()
    [again] = store.begin([(CALL, OTHER, "f" * 16, b"")], load_for=60, is_redelivered=True).run()
    assert again.attempts == 2


def test_loads_that_end_while_others_are_looked_for_end_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread would not come again: nothing would be marked any more."""

    class Ending(dict[str, Any]):
        """Loads of which each ends between a look and what follows, or another does."""

        def copy(self) -> dict[str, Any]:
            found = dict(self)
            self.clear()
            return found

        def items(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

    loads = cache._runtime._slow_loads
    monkeypatch.setattr(slow_loads, "IDLE_FOR", 0.0)
    monkeypatch.setattr(loads, "_loads", Ending())
    loads.begin(CALL, TOKEN, 60)

    wait_until(lambda: loads._thread is None)


def test_one_that_ends_in_time_is_not_marked(cache: Cache, store: Any) -> None:
    """Another that lasts is, after it."""
    loads = cache._runtime._slow_loads
    for call, token in ((CALL, TOKEN), ("price[2]", OTHER)):
        assert isinstance(store.claim(call, token, lease_for=60).run(), Claimed)
        loads.begin(call, token, 60)
    loads.end(TOKEN)

    wait_until(lambda: store.lease("price[2]").run().get("fence") == OTHER)

    assert "fence" not in store.lease(CALL).run()


def test_its_thread_ends_when_there_are_no_loads_and_another_begins(
    cache: Cache, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_loads, "IDLE_FOR", 0.0)
    loads = cache._runtime._slow_loads
    loads.begin(CALL, TOKEN, 60)
    loads.end(TOKEN)
    wait_until(lambda: loads._thread is None)

    store.claim(CALL, TOKEN, lease_for=60).run()
    loads.begin(CALL, TOKEN, 60)

    wait_until(lambda: store.lease(CALL).run().get("fence") == TOKEN)


def test_a_store_that_is_away_ends_nothing(cache: Cache, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    loads = cache._runtime._slow_loads
    monkeypatch.setattr(store, "mark_begun", lambda claims: away(failed))
    loads.begin(CALL, TOKEN, 60)
    assert failed.wait(20)
    monkeypatch.undo()

    store.claim(CALL, TOKEN, lease_for=60).run()
    loads.begin(CALL, TOKEN, 60)

    wait_until(lambda: store.lease(CALL).run().get("fence") == TOKEN)


def test_a_fork_s_child_has_none(cache: Cache) -> None:
    loads = cache._runtime._slow_loads
    loads.begin(CALL, TOKEN, 60)

    loads.reset()

    assert not loads._loads and loads._thread is None


def test_where_no_thread_can_be_started_the_next_load_tries_again(
    cache: Cache, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    loads = cache._runtime._slow_loads
    monkeypatch.setattr(slow_loads.ProcessThread, "start", refuse)
    loads.begin(CALL, TOKEN, 60.0)
    monkeypatch.undo()

    store.claim(CALL, TOKEN, lease_for=60).run()
    loads.begin(CALL, TOKEN, 60.0)

    wait_until(lambda: store.lease(CALL).run().get("fence") == TOKEN)


def test_a_write_that_fails_is_left_to_its_load_and_others_are_marked(cache: Cache, store: Any) -> None:
    tried = threading.Event()
    loads = cache._runtime._slow_loads
    store.claim(CALL, TOKEN, lease_for=60).run()
    loads.begin(CALL, TOKEN, 60)
    assert loads.may_wait(TOKEN, SimpleNamespace(run=lambda: away(tried)))  # type: ignore[arg-type]

    wait_until(lambda: store.lease(CALL).run().get("fence") == TOKEN)

    assert tried.is_set()
    assert not loads.may_wait(TOKEN, SimpleNamespace())  # type: ignore[arg-type]
