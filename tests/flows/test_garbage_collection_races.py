"""Sweeps interleaved with everything else, and dying anywhere: nothing invalidated is served, and nothing is left over.

Two products share a tag.  Loads, hard and soft invalidations and sweeps go on one step at a time in any order, and each
may die between two steps.  Now and then an hour passes: what ends by itself has ended, and what sweeps wait for is old.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from walks import walk

from cacheworkers import Cache, Config, Load
from cacheworkers.core import envelope
from cacheworkers.core.entry import Freshness
from cacheworkers.flows.garbage_collection import collect_garbage
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.store.commands.replies import Claimed
from cacheworkers.testing import Stepper, Valkey

CONCURRENCY = 3
PRODUCTS = (0, 1)
#: One of each product, and one that they share.
TAGS = ("price:0", "price:1", "all")
#: The tags that one invalidation takes: one, or several in each of its exchanges, which any accident may cut.
TOGETHER = ((0,), (1,), (2,), (0, 1), (1, 2), (2, 0, 1))
#: A rule's argument -> what it may be.
CHOICES: dict[str, Sequence[Any]] = {
    "at": range(CONCURRENCY),
    "mode": ("hard", "hard", "soft"),
    "product": PRODUCTS,
    "steps": (1, 2, 3, 4, 12),
    "what": ("lease", "entry"),
    "which": TOGETHER,
    "within": (0.0, 3600.0),
}
#: Steps of one walk.
STEPS = 60


def given(*names: str) -> Any:
    """A rule that is given these."""
    return rule(**{name: st.sampled_from(CHOICES[name]) for name in names})


def sweeps(cache: Cache, prices: dict[int, int]) -> type[RuleBasedStateMachine]:
    """Return a state machine on a cache whose store is its own; each run leaves it empty."""
    ports, spec = cache._ports, cache._loaders["price"]
    store = ports.store
    client: Any = store.link.client()

    def keys(pattern: str = "*") -> set[str]:
        return {key.decode() for key in client.scan_iter(f"{store.keys.namespace}:{pattern}", 1000)}

    class Sweeps(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.calls = [f"price[{product}]" for product in PRODUCTS]
            prices.update(dict.fromkeys(PRODUCTS, 0))
            self.acknowledged: dict[str, list[int]] = {"hard": [0, 0], "soft": [0, 0]}
            self.accidents, self.hours = 4, 2
            self.loads: list[Stepper[Any]] = []
            self.sweeps: list[Stepper[Any]] = []
            self.invalidations: list[tuple[Literal["hard", "soft"], list[int], Stepper[Any]]] = []

        # -- loads

        @precondition(lambda self: len(self.loads) < CONCURRENCY)
        @given("product")
        def a_reader_claims(self, product: int) -> None:
            call, token = self.calls[product], secrets.token_hex(8)
            raw = store.get(call).run()
            seen = envelope.version_of(raw)
            if isinstance(store.claim(call, token, lease_for=30, seen=seen).run(), Claimed):
                ask = LoadRequest("price", call, token, seen.hex(), "miss")
                self.loads.append(Stepper(load(ports, spec, [ask], ports.worker)))

        @precondition(lambda self: self.loads)
        @given("at", "steps")
        def a_load_goes_on(self, at: int, steps: int) -> None:
            self.go_on(self.loads, self.loads[at % len(self.loads)], steps)

        @precondition(lambda self: self.loads and self.accidents)
        @given("at")
        def a_worker_dies(self, at: int) -> None:
            self.accidents -= 1
            self.loads.pop(at % len(self.loads)).crash()

        # -- invalidations

        @precondition(lambda self: len(self.invalidations) < CONCURRENCY)
        @given("which", "mode")
        def a_change_is_committed(self, which: tuple[int, ...], mode: Literal["hard", "soft"]) -> None:
            changed = [product in which or 2 in which for product in PRODUCTS]
            for product in itertools.compress(PRODUCTS, changed):
                prices[product] += 1
            versions = [prices[product] if changed[product] else 0 for product in PRODUCTS]
            tags = [TAGS[each] for each in which]
            self.invalidations.append((mode, versions, Stepper(invalidate_tags(ports, tags, mode))))

        @precondition(lambda self: self.invalidations)
        @given("at", "steps")
        def an_invalidation_goes_on(self, at: int, steps: int) -> None:
            one = self.invalidations[at % len(self.invalidations)]
            mode, versions, going = one
            for _ in range(2 * steps):
                if going.at:
                    going.step()
            if not going.at:
                assert going.error is None, going.error
                known = self.acknowledged[mode]
                for product, version in enumerate(versions):
                    known[product] = max(known[product], version)
                self.invalidations.remove(one)

        @precondition(lambda self: self.invalidations and self.accidents)
        @given("at")
        def an_invalidator_dies(self, at: int) -> None:
            self.accidents -= 1
            self.invalidations.pop(at % len(self.invalidations))[2].crash()

        # -- sweeps

        @precondition(lambda self: len(self.sweeps) < 2)
        @given("within")
        def beat_has_it_swept(self, within: float) -> None:
            self.sweeps.append(Stepper(collect_garbage(ports, within)))

        @precondition(lambda self: self.sweeps)
        @given("at", "steps")
        def a_sweep_goes_on(self, at: int, steps: int) -> None:
            self.go_on(self.sweeps, self.sweeps[at % len(self.sweeps)], steps)

        @precondition(lambda self: self.sweeps and self.accidents)
        @given("at")
        def a_sweeper_dies(self, at: int) -> None:
            self.accidents -= 1
            self.sweeps.pop(at % len(self.sweeps)).crash()

        # -- the store

        @precondition(lambda self: self.accidents)
        @given("what", "product")
        def a_key_is_lost(self, what: str, product: int) -> None:
            self.accidents -= 1
            client.unlink(getattr(store.keys, what)(self.calls[product]))

        @precondition(lambda self: self.hours)
        @rule()
        def an_hour_passes(self) -> None:
            self.hours -= 1
            self.an_hour_has_passed()

        # -- what must hold

        @invariant()
        def nothing_old_is_served(self) -> None:
            for product, call in enumerate(self.calls):
                entry = self.entry(call)
                if entry is None:
                    continue
                value, hard, soft = int(entry.payload), *(self.acknowledged[mode][product] for mode in ("hard", "soft"))
                assert value >= hard, f"{call} is {value}, {hard} was acknowledged"
                is_fresh = entry.freshness(ports.clock.now()) is Freshness.FRESH
                assert value >= soft or not is_fresh, f"{call} is {value} and fresh, {soft} was acknowledged"

        @invariant()
        def what_is_alive_can_be_found(self) -> None:
            """Each entry is in each of its tags' sets, or in a detached one."""
            for call in self.calls:
                entry = self.entry(call)
                for tag in entry.tags if entry is not None else ():
                    sets = [store.keys.tag_set(tag), *(detached.name for detached in store.detached_sets([tag]).run())]
                    assert any(client.zscore(each, call) is not None for each in sets), f"{call} is lost to {tag}"

        def teardown(self) -> None:
            """Everybody dies, an hour passes, and one pass leaves the sequence and nothing else."""
            for going in (*self.loads, *self.sweeps, *(each for _, _, each in self.invalidations)):
                going.crash()
            client.delete(store.keys.gc_position)
            self.an_hour_has_passed()
            assert cache.collect_garbage().is_whole
            left = keys() - {store.keys.seq}
            client.unlink(store.keys.seq, *left)
            assert not left, f"one pass leaves {sorted(left)}"

        # -- helpers

        def go_on(self, of: list[Stepper[Any]], going: Stepper[Any], steps: int) -> None:
            for _ in range(steps):
                if going.at:
                    going.step()
            if not going.at:
                assert going.error is None, going.error
                of.remove(going)

        def entry(self, call: str) -> Any:
            raw = store.get(call).run()
            return None if raw is None else envelope.unpack(raw)

        def an_hour_has_passed(self) -> None:
            for key in keys():
                if client.pttl(key) > 0 and key != store.keys.gc_position:
                    client.unlink(key)
            for key in keys("t:*"):
                client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1), 1))
            for key in keys("v:*"):
                client.set(key, 1)

    return Sweeps


@pytest.fixture
def cache() -> Iterator[Cache]:
    """A cache with a store of its own: how many steps a sweep takes must not depend on what others have there."""
    with Valkey() as server:
        found = Cache(Config(redis_url=server.url, store_timeout=5.0))
        yield found
        found.close()


@pytest.fixture
def prices(cache: Cache) -> dict[int, int]:
    found: dict[int, int] = {}

    @cache.loader(fresh_for=300, jitter=0.0, tags=("price:{number}",))
    def price(load: Load, number: int) -> int:
        load.tag("all")
        return found[number]

    return found


@pytest.mark.parametrize("step", [500, 1])
def test_no_interleaving_of_sweeps_serves_what_was_invalidated(
    cache: Cache, prices: dict[int, int], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps of one member, a sweep without time stops in the middle of a tag set, and of a detached one."""
    monkeypatch.setattr("cacheworkers.flows.garbage_collection.STEP", step)
    monkeypatch.setattr("cacheworkers.store.commands.tag_sets.CHUNK", step)
    for seed in range(50):
        walk(sweeps(cache, prices), seed, STEPS, CHOICES)


@pytest.mark.heavy
def test_no_interleaving_of_many_sweeps_serves_what_was_invalidated(cache: Cache, prices: dict[int, int]) -> None:
    for seed in range(5000):
        walk(sweeps(cache, prices), seed, STEPS, CHOICES)


class Careless:
    """A step: trim a tag set as one might think, of what has no entry; then as it should be."""

    def __init__(self, store: Any, key: str, as_it_should_be: Any) -> None:
        self._store = store
        self._key = key
        self._as_it_should_be = as_it_should_be

    def run(self) -> Any:
        client = self._store.link.client()
        members = [member.decode() for member in client.zrange(self._key, 0, -1)]
        gone = [call for call in members if not client.exists(self._store.keys.entry(call))]
        if gone:
            client.zrem(self._key, *gone)
        return self._as_it_should_be.run()


@pytest.mark.parametrize(
    ("part", "finding"),
    [
        ("by score", "is lost to|was acknowledged"),
        ("marks are kept", "was acknowledged"),
        ("finish", "one pass leaves"),
    ],
)
def test_it_finds_a_sweep_without_a_part(
    cache: Cache, prices: dict[int, int], part: str, finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would prove nothing."""
    store = cache._ports.store
    if part == "by score":
        trim = store.trim_tag
        monkeypatch.setattr(
            store, "trim_tag", lambda key, last, **bounds: Careless(store, key, trim(key, last, **bounds))
        )
    elif part == "marks are kept":
        monkeypatch.setattr("cacheworkers.flows.garbage_collection.MAX_LOAD_FOR", -1.0)
    else:

        def nothing(job: Any, key: str, tag: str, shard: int) -> Any:
            yield from ()
            return True

        monkeypatch.setattr("cacheworkers.flows.garbage_collection._finish", nothing)

    with pytest.raises(AssertionError, match=finding):
        for seed in range(4000):
            walk(sweeps(cache, prices), seed, STEPS, CHOICES)
