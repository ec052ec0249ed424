"""Random interleavings of the real flows and scripts: no read is older than an acknowledged invalidation.

What the model explores in full, small, is driven here at random through the code itself: loads, invalidations that may
die at any step, leases that run out, evictions, sweeps.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mutation import Mutation, script
from walks import walk

from cacheworkers import Cache, Load
from cacheworkers.core import envelope
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.flows.read import read
from cacheworkers.flows.read_state import ReadOptions, StoreResult
from cacheworkers.store.commands.replies import Claimed, Registered, Snapshot
from cacheworkers.store.commands.store import Store
from cacheworkers.testing import Stepper

CONCURRENCY = 3
_ids = itertools.count(1)
some = st.integers(1, 4)
one_of_them = st.integers(0, CONCURRENCY - 1)
#: The same for walks.
CHOICES: dict[str, Sequence[Any]] = {
    "at": range(CONCURRENCY),
    "steps": range(1, 5),
    "what": ("lease", "entry"),
    "looks": (True, False),
}


def races(cache: Cache, prices: dict[int, int]) -> type[RuleBasedStateMachine]:
    """Return a state machine on a cache; each run has a product of its own."""
    ports, spec = cache._ports, cache._loaders["price"]
    store = ports.store

    class Races(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.number = next(_ids)
            self.call = f"price[{self.number}]"
            prices[self.number] = self.acknowledged = 0
            self.sweeps, self.accidents = 2, 3
            self.loads: list[Stepper[Any]] = []
            self.invalidations: list[tuple[int, Stepper[Any]]] = []

        @precondition(lambda self: len(self.loads) < CONCURRENCY)
        @rule(looks=st.booleans())
        def a_reader_claims(self, looks: bool) -> None:
            """A crowd claims before its leader's look is answered, as if it had found nothing."""
            token = secrets.token_hex(8)
            seen = envelope.version_of(store.get(self.call).run()) if looks else b""
            claim = store.claim(self.call, token, lease_for=30, seen=seen).run()
            if isinstance(claim, Claimed):
                ask = LoadRequest("price", self.call, token, seen.hex(), "miss", snapshot=claim.snapshot)
                self.loads.append(Stepper(load(ports, spec, [ask], ports.worker)))

        @precondition(lambda self: self.loads)
        @rule(at=one_of_them, steps=some)
        def a_load_goes_on(self, at: int, steps: int) -> None:
            going = self.loads[at % len(self.loads)]
            for _ in range(steps):
                if going.at:
                    going.step()
            if not going.at:
                assert going.error is None, going.error
                self.loads.remove(going)

        @precondition(lambda self: self.loads and self.accidents)
        @rule(at=one_of_them)
        def a_worker_dies(self, at: int) -> None:
            self.accidents -= 1
            self.loads.pop(at % len(self.loads)).crash()

        @precondition(lambda self: len(self.invalidations) < CONCURRENCY)
        @rule()
        def a_change_is_committed(self) -> None:
            prices[self.number] += 1
            flow = invalidate_tags(ports, [f"price:{self.number}"], "hard")
            self.invalidations.append((prices[self.number], Stepper(flow)))

        @precondition(lambda self: self.invalidations)
        @rule(at=one_of_them, steps=some)
        def an_invalidation_goes_on(self, at: int, steps: int) -> None:
            version, going = self.invalidations[at % len(self.invalidations)]
            for _ in range(2 * steps):
                if going.at:
                    going.step()
            if not going.at:
                assert going.error is None, going.error
                self.acknowledged = max(self.acknowledged, version)
                self.invalidations.remove((version, going))

        @precondition(lambda self: self.invalidations and self.accidents)
        @rule(at=one_of_them)
        def an_invalidator_dies(self, at: int) -> None:
            self.accidents -= 1
            self.invalidations.pop(at % len(self.invalidations))[1].crash()

        @precondition(lambda self: self.accidents)
        @rule(what=st.sampled_from(["lease", "entry"]))
        def a_key_is_lost(self, what: str) -> None:
            self.accidents -= 1
            store.link.client().unlink(getattr(store.keys, what)(self.call))

        @precondition(lambda self: self.sweeps)
        @rule()
        def a_sweep(self) -> None:
            self.sweeps -= 1
            cache.collect_garbage()

        def teardown(self) -> None:
            client = store.link.client()
            for key in client.keys(f"{store.keys.namespace}:*{self.number}*"):
                client.unlink(key)

        @invariant()
        def nothing_old_is_read(self) -> None:
            raw = store.get(self.call).run()
            if raw is not None:
                value = int(envelope.unpack(raw).payload)
                assert value >= self.acknowledged, f"{self.call} is {value}, {self.acknowledged} was acknowledged"

    return Races


@pytest.fixture
def prices(cache: Cache) -> dict[int, int]:
    found: dict[int, int] = {}

    @cache.loader(tags=("price:{number}",), fresh_for=300, jitter=0.0)
    def price(load: Load, number: int) -> int:
        return found[number]

    return found


#: Steps of one walk.
STEPS = 60


def test_no_interleaving_reads_what_was_invalidated(cache: Cache, prices: dict[int, int], joined: bool) -> None:
    for seed in range(100):
        walk(races(cache, prices), seed, STEPS, CHOICES)


@pytest.mark.heavy
def test_no_interleaving_of_many_reads_what_was_invalidated(cache: Cache, prices: dict[int, int]) -> None:
    for seed in range(5000):
        walk(races(cache, prices), seed, STEPS, CHOICES)


@pytest.mark.parametrize("part", ["compare", "snapshot"])
def test_it_finds_a_protocol_without_a_part(
    cache: Cache, prices: dict[int, int], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would prove nothing."""
    store = cache._ports.store
    if part == "compare":
        register = store.register

        def blind(*args: Any, **options: Any) -> Any:
            step = register(*args, **options)
            parse = step._parse
            step._parse = lambda replies: [Registered(0, each.now) for each in parse(replies)]
            return step

        monkeypatch.setattr(store, "register", blind)
    else:
        snapshot = store.snapshot

        def late() -> Any:
            step = snapshot()
            parse = step._parse
            step._parse = lambda replies: Snapshot(10**15, parse(replies).now)
            return step

        monkeypatch.setattr(store, "snapshot", late)

    with pytest.raises(AssertionError, match="was acknowledged"):
        for seed in range(1000):
            walk(races(cache, prices), seed, STEPS, CHOICES)


@pytest.mark.parametrize(
    "mutate",
    [
        script("REGISTER_WRITE", "if newest > seq then", "if false then"),
        script("REGISTER_WRITE", 'redis.call("ZADD", KEYS[at], "GT", score, call)', ""),
        script("DETACH", "n = math.max(", "n = number_of(redis.call('GET', seq)) -- "),
        script("REMOVE_DRAINED", 'entries = redis.call("UNLINK", unpack(KEYS, 3 + leases))', ""),
    ],
    ids=["compare", "register", "draw a number", "delete entries"],
)
def test_it_finds_a_joined_script_without_a_part(
    cache: Cache, prices: dict[int, int], mutate: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "joins_steps", True)
    mutate(monkeypatch)

    with pytest.raises(AssertionError, match="was acknowledged"):
        for seed in range(1000):
            walk(races(cache, prices), seed, STEPS, CHOICES)


def test_a_look_before_registering_is_checked_by_the_claim(cache: Cache, prices: dict[int, int]) -> None:
    """The reader found nothing; before it registered, the value was written and its push gone by: it looks again."""
    ports, spec = cache._ports, cache._loaders["price"]
    prices[900] = 5
    call = spec.signature.bind((900,), {})
    token = secrets.token_hex(8)
    store = ports.store
    assert store.get(call.text).run() is None
    store.claim(call.text, token, lease_for=30).run()
    ask = LoadRequest("price", call.text, token, "", "miss")
    Stepper(load(ports, spec, [ask], ports.worker)).finish()

    reader = Stepper(read(ports, spec, call, ReadOptions(spec.codec.decode, 0, 5.0), is_known_missing=True))

    assert reader.at == "claim"
    assert reader.step() == "get"
    assert reader.finish().value == 5


@pytest.mark.parametrize("when", ["before the reply arrives", "before it sleeps", "while it sleeps"])
@pytest.mark.parametrize("begun", [0, 2])
def test_a_reader_whose_claim_is_denied_sleeps_without_another_look(
    cache: Cache, prices: dict[int, int], when: str, begun: int
) -> None:
    """The claim has compared what the reader saw, and the end of the load is reported, whenever it comes."""
    ports, spec = cache._ports, cache._loaders["price"]
    number, token = next(_ids), secrets.token_hex(8)
    prices[number] = 5
    call = spec.signature.bind((number,), {})
    ports.store.claim(call.text, token, lease_for=600).run()
    loading = Stepper(load(ports, spec, [LoadRequest("price", call.text, token, "", "miss")], ports.worker))
    for _ in range(begun):
        loading.step()
    reader = Stepper(read(ports, spec, call, ReadOptions(spec.codec.decode, 0, 600.0), found=StoreResult(None)))
    assert reader.at == "claim"

    reader.send()
    if when == "before the reply arrives":
        loading.finish()
    assert reader.step() == "wait"
    if when == "before it sleeps":
        loading.finish()
    ends = threading.Thread(target=loading.finish)
    ends.start()

    assert reader.step() == "get"  # not woken, it would sleep for five minutes
    ends.join()
    assert reader.finish().value == 5
