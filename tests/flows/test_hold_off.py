"""`hold_off_for`: loads that read a lagging replica never leave an old value fresh, in whatever order things happen."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mutation import python
from walks import walk

from cacheworkers import Cache, Load
from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.flows import load as loading
from cacheworkers.flows import write_loaded
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.store.commands.store import Store
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until

#: The replica is at most this far behind; the store's clock is turned forward by as much, never waited for.
LAG = 100.0
STALE_FOR = 30.0
_ids = itertools.count(1)


class Replicated:
    """A database with a replica that lags, and a store whose clock can be turned forward."""

    def __init__(self, cache: Cache, monkeypatch: pytest.MonkeyPatch, **policy: Any) -> None:
        self.now = 0.0
        self.primary: dict[int, int] = {}
        self.replica: dict[int, int] = {}
        self.ports = cache._ports
        options = {"fresh_for": 300, "stale_for": STALE_FOR, "jitter": 0, "early": 0, "hold_off_for": LAG, **policy}

        @cache.loader(tags=("price:{n}",), **options)
        def price(load: Load, n: int) -> int:
            return self.replica[n]

        self.price, self.spec = price, cache._loaders["price"]
        self._turn(monkeypatch)

    def _turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the store say a later time wherever a load or an invalidation asks for it."""
        snapshot, register, next_seq = Store.snapshot, Store.register, Store.next_seq

        def later_snapshot(store: Store) -> Any:
            return _reshaped(snapshot(store), lambda s: msgspec.structs.replace(s, now=s.now + self.now))

        def later_register(store: Store, *args: Any, **options: Any) -> Any:
            shift = lambda each: msgspec.structs.replace(each, now=each.now + self.now)  # noqa: E731
            return _reshaped(register(store, *args, **options), lambda found: [shift(each) for each in found])

        def later_seq(store: Store) -> Any:
            return _reshaped(next_seq(store), lambda n: store.raise_seq(n + int(self.now * 1000)).run())

        monkeypatch.setattr(Store, "snapshot", later_snapshot)
        monkeypatch.setattr(Store, "register", later_register)
        monkeypatch.setattr(Store, "next_seq", later_seq)

    def commit(self, n: int, value: int) -> None:
        """Change a price; the replica has it later."""
        self.primary[n] = value
        self.replica.setdefault(n, value)

    def invalidation(self, n: int) -> Stepper[Any]:
        return Stepper(invalidate_tags(self.ports, [f"price:{n}"], "hard"))

    def load(self, n: int) -> Stepper[Any] | None:
        """A worker with a claim; None if somebody else has it."""
        call, token = f"price[{n}]", secrets.token_hex(8)
        seen = envelope.version_of(self.ports.store.get(call).run())
        if type(self.ports.store.claim(call, token, lease_for=30, seen=seen).run()).__name__ != "Claimed":
            return None
        ask = LoadRequest("price", call, token, seen.hex(), "revalidate")
        return Stepper(loading.load(self.ports, self.spec, [ask], self.ports.worker))

    def pass_time(self) -> None:
        """As long as the replica may lag, and a little: then it has caught up."""
        self.now += LAG + 1.0
        self.replica = dict(self.primary)

    def entry(self, n: int) -> Entry | None:
        raw = self.ports.store.get(f"price[{n}]").run()
        return None if raw is None else envelope.unpack(raw)


def _reshaped(step: Any, change: Any) -> Any:
    parse = step._parse
    step._parse = lambda replies: change(parse(replies))
    return step


@pytest.fixture
def shop(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Replicated:
    made = Replicated(cache, monkeypatch)
    made.commit(1, 1)
    made.load(1).finish()  # type: ignore[union-attr]
    return made


def finish_load(shop: Replicated, n: int = 1) -> Entry:
    load = shop.load(n)
    assert load is not None
    load.finish()
    entry = shop.entry(n)
    assert entry is not None
    return entry


def test_what_is_loaded_within_the_lag_is_stored_stale(shop: Replicated) -> None:
    """And for no longer than a soft invalidation leaves an entry."""
    shop.commit(1, 2)
    shop.invalidation(1).finish()

    entry = finish_load(shop)

    assert entry.payload == b"1"
    assert entry.fresh_until < entry.created
    assert entry.stale_until == pytest.approx(entry.created + STALE_FOR)


def test_what_is_loaded_after_it_is_fresh(shop: Replicated) -> None:
    shop.commit(1, 2)
    shop.invalidation(1).finish()
    shop.pass_time()

    entry = finish_load(shop)

    assert (entry.payload, entry.fresh_until - entry.created) == (b"2", pytest.approx(300))


def test_a_slow_load_is_judged_by_its_beginning(shop: Replicated) -> None:
    """It may have read immediately, and have taken longer than the lag for the rest."""
    shop.commit(1, 2)
    shop.invalidation(1).finish()
    load = shop.load(1)
    assert load is not None
    load.until("register")
    shop.pass_time()

    load.finish()

    entry = shop.entry(1)
    assert entry is not None
    assert (entry.payload, entry.fresh_until < entry.created) == (b"1", True)


def test_a_first_load_is_not_held_off(shop: Replicated) -> None:
    """Nothing was invalidated."""
    shop.commit(2, 5)

    entry = finish_load(shop, 2)

    assert entry.fresh_until > entry.created


def test_each_read_asks_until_the_replica_has_caught_up(make_cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole library: a reader is served the old value as stale, and in the end the new one as fresh."""
    shop = Replicated(make_cache(), monkeypatch, l1_for=60.0)
    shop.commit(1, 1)
    assert shop.price.get(1) == 1
    wait_until(lambda: shop.price.read(1).tier == "l1")
    shop.commit(1, 2)
    shop.invalidation(1).finish()
    wait_until(lambda: shop.ports.l1.get("price[1]") is None)

    assert (shop.price.read(1).value, shop.price.read(1).freshness.value) == (1, "stale")
    shop.pass_time()

    wait_until(lambda: shop.price.read(1).value == 2 and shop.price.read(1).freshness.value == "fresh")


def test_without_a_stale_period_who_waited_has_it_and_the_next_read_loads(
    make_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Replicated(make_cache(), monkeypatch, stale_for=0.0, l1_for=60.0)
    shop.commit(1, 1)
    shop.price.get(1)
    wait_until(lambda: shop.price.read(1).tier == "l1")
    shop.commit(1, 2)
    shop.invalidation(1).finish()
    wait_until(lambda: shop.ports.l1.get("price[1]") is None)

    assert shop.price.get(1) == 1  # within the lag nobody can have the new one
    shop.pass_time()

    assert shop.price.get(1) == 2


# -- in any order


def lagging(shop: Replicated) -> type[RuleBasedStateMachine]:
    """Return a state machine; each run has a price of its own."""

    class Lagging(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.n = next(_ids) + 1000
            shop.commit(self.n, 0)
            shop.pass_time()
            self.acknowledged = 0
            self.loads: list[Stepper[Any]] = []
            self.invalidations: list[tuple[int, Stepper[Any]]] = []

        @precondition(lambda self: len(self.loads) < 2)
        @rule()
        def a_load_begins(self) -> None:
            load = shop.load(self.n)
            if load is not None:
                self.loads.append(load)

        @precondition(lambda self: self.loads)
        @rule(steps=st.integers(1, 4))
        def a_load_goes_on(self, steps: int) -> None:
            going = self.loads[0]
            for _ in range(steps):
                if going.at:
                    going.step()
            self.loads = [*self.loads[1:], going] if going.at else self.loads[1:]

        @precondition(lambda self: len(self.invalidations) < 2)
        @rule()
        def a_change_is_committed(self) -> None:
            shop.commit(self.n, shop.primary[self.n] + 1)
            self.invalidations.append((shop.primary[self.n], shop.invalidation(self.n)))

        @precondition(lambda self: self.invalidations)
        @rule(steps=st.integers(2, 8))
        def an_invalidation_goes_on(self, steps: int) -> None:
            version, going = self.invalidations[0]
            for _ in range(steps):
                if going.at:
                    going.step()
            if not going.at:
                assert going.error is None, going.error
                self.acknowledged = max(self.acknowledged, version)
                self.invalidations.pop(0)

        @rule()
        def the_replica_gets_some_of_it(self) -> None:
            shop.replica[self.n] = max(shop.replica[self.n], self.acknowledged)

        @rule()
        def time_passes(self) -> None:
            shop.pass_time()

        def teardown(self) -> None:
            client = shop.ports.store.link.client()
            for key in client.keys(f"{shop.ports.store.keys.namespace}:*{self.n}*"):
                client.unlink(key)

        @invariant()
        def nothing_old_is_fresh(self) -> None:
            entry = shop.entry(self.n)
            if entry is None or int(entry.payload) >= self.acknowledged:
                return
            assert entry.fresh_until <= entry.created, f"{entry.call} is {entry.payload!r} and fresh"
            assert entry.stale_until <= entry.created + STALE_FOR, "stale for too long"

    return Lagging


#: Steps of one walk, and how many a rule goes on.
STEPS, CHOICES = 40, {"steps": (1, 2, 3, 4, 8)}


def test_no_interleaving_leaves_an_old_value_fresh(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Replicated(cache, monkeypatch)
    for seed in range(100):
        walk(lagging(shop), seed, STEPS, CHOICES)


def no_hold_off(entry: Entry) -> Entry:
    return entry


def fresh_life(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, fresh_until=entry.created)


@pytest.mark.parametrize("part", ["hold off", "end of staleness"])
def test_it_finds_a_protocol_without_a_part(cache: Cache, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Else it would prove nothing."""
    shop = Replicated(cache, monkeypatch)
    monkeypatch.setattr(Entry, "held_off", no_hold_off if part == "hold off" else fresh_life)

    with pytest.raises(AssertionError, match="fresh" if part == "hold off" else "too long"):
        for seed in range(2000):
            walk(lagging(shop), seed, STEPS, CHOICES)


@pytest.mark.parametrize(
    ("old", "new", "race"),
    [
        ("if hold_off_for else math.inf", "if False else math.inf", test_what_is_loaded_within_the_lag_is_stored_stale),
        (
            "snapshot.now - hold_off_for",
            "registered[0].now - hold_off_for",
            test_a_slow_load_is_judged_by_its_beginning,
        ),
        ("entry = entry.held_off()", "pass", test_what_is_loaded_within_the_lag_is_stored_stale),
    ],
)
def test_removed_part_is_missed(
    shop: Replicated, monkeypatch: pytest.MonkeyPatch, old: str, new: str, race: Any
) -> None:
    python(write_loaded, "write", old, new)(monkeypatch)

    with pytest.raises(AssertionError):
        race(shop)
