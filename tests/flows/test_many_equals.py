"""Reads of many find, ask for and leave behind what as many reads of one do, whatever there is; and in any order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many_shop import Shop, late, whole
from mutation import Mutation, python

from cacheworkers import Cache, LoadErrors, LoadTimeout
from cacheworkers.core import envelope
from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.invalidate import Invalidation, invalidate_tags
from cacheworkers.flows.load import load
from cacheworkers.local.waiters import Waiter, Waiters
from cacheworkers.local.wakeup import NamedWaker
from cacheworkers.testing import Stepper

Outcome = tuple[str, Any]

#: What may be in the store of a key, and of its lease.
ENTRIES = ("fresh", "stale", "lapsed", "missing", "foreign", "another's")
LEASES = ("free", "free", "free", "held", "begun", "failing")
WAIT_FOR = 0.5


class Case(msgspec.Struct, frozen=True):
    """One world: what there is of each key, and what the others do."""

    keys: tuple[tuple[str, str], ...]
    do_workers_come: bool
    room: int
    is_since: bool

    def prepare(self, shop: Shop) -> None:
        """Make it so."""
        shop.by_hand.begin()
        shop.asks.room = 10_000
        shop.asks.rounds.clear()
        there = [key for key, (entry, _) in enumerate(self.keys) if entry != "missing"]
        if there:
            shop.fill(there)
        for key, (entry, lease) in enumerate(self.keys):
            self._put(shop, key, entry)
            self._hold(shop, key, lease)
        shop.by_hand.receive_and_go_on()
        shop.ports.l1.clear()
        shop.asks.rounds.clear()
        shop.batches.clear()
        shop.asks.room = self.room

    def _put(self, shop: Shop, key: int, what: str) -> None:
        store, call = shop.ports.store, f"prices[{key}]"
        if what in ("missing", "fresh"):
            return
        entry = envelope.unpack(store.get(call).run())
        past = entry.created - 10.0
        changed = {
            "stale": lambda: envelope.pack(msgspec.structs.replace(entry, fresh_until=past)),
            "lapsed": lambda: envelope.pack(msgspec.structs.replace(entry, fresh_until=past, stale_until=past)),
            "another's": lambda: envelope.pack(msgspec.structs.replace(entry, call="prices[999]")),
            "foreign": lambda: b"what is this?",
        }[what]()
        store.link.client().set(store.keys.entry(call), changed)

    def _hold(self, shop: Shop, key: int, what: str) -> None:
        store, call, token, fence = shop.ports.store, f"prices[{key}]", "ab" * 8, "cd" * 8
        if what == "free":
            return
        seen = envelope.version_of(store.get(call).run())
        store.claim(call, token, lease_for=1000.0, seen=seen).run()
        if what != "held":
            store.begin([(call, token, fence, seen)], load_for=1000.0).run()
        if what == "failing":
            store.fail([(call, fence, "ValueError", "down")], first_for=1000.0, most_for=1000.0).run()


cases = st.builds(
    Case,
    st.lists(st.tuples(st.sampled_from(ENTRIES), st.sampled_from(LEASES)), min_size=1, max_size=6).map(tuple),
    st.booleans(),
    st.sampled_from((10_000, 10_000, 0)),
    st.sampled_from((False, False, True)),
)


def see_through(shop: Shop, going: Sequence[Stepper[Any]], case: Case) -> None:
    """Let reads go on side by side; when all wait, workers come, then time is up."""
    for state in itertools.count():
        assert state < 20, [each.at for each in going]
        for each in going:
            while each.at not in ("wait", ""):
                each.step()
        waiting = [each for each in going if each.at]
        if not waiting:
            return
        if case.do_workers_come and shop.asks.rounds and not state:
            reported = shop.asks.rounds[:]
            shop.work()
            shop.asks.rounds[:] = reported
        else:
            shop.by_hand._time._clock.now_ms += (
                2_000_000  # beyond every wait and lease; entries are not looked at again
            )
            shop.by_hand.go_on()
        for each in waiting:
            step: Any = each._step
            step.timeout = 0.0
            each.step()


def reported(error: BaseException) -> Outcome:
    kept = getattr(error, "kind", "")
    return type(error).__name__, kept


def left(shop: Shop) -> tuple[Any, ...]:
    """What is asked for, loaded and left behind."""
    asks = sorted((ask.call, ask.queue, bool(ask.seen)) for asks in shop.asks.rounds for ask in asks)
    loaded = sorted(key for batch in shop.batches for key in batch)
    return asks, loaded, shop.leases(), sorted(shop.ports.l1.slots), len(shop.ports.waiters)


def by_many(shop: Shop, case: Case) -> dict[int, Outcome]:
    case.prepare(shop)
    going = shop.many(range(len(case.keys)), of=view_of(shop, case))
    see_through(shop, [going], case)
    found: dict[int, Outcome] = {}
    values: dict[int, Any] = going.result or {}
    if going.error is not None:
        assert isinstance(going.error, LoadErrors), going.error
        values = going.error.values
        found.update({key: reported(error) for key, error in going.error.errors.items()})
    else:
        assert list(values) == list(range(len(case.keys)))
    found.update({key: ("value", value) for key, value in values.items()})
    return dict(sorted(found.items()))


def by_ones(shop: Shop, case: Case) -> dict[int, Outcome]:
    case.prepare(shop)
    view = view_of(shop, case)
    going = [shop.one(key, of=view) for key in range(len(case.keys))]
    see_through(shop, going, case)
    found: dict[int, Outcome] = {}
    for key, each in enumerate(going):
        assert each.error is None or isinstance(each.error, CacheworkersError), each.error
        found[key] = ("value", each.finish().value) if each.error is None else reported(each.error)
    return found


def view_of(shop: Shop, case: Case) -> Any:
    if not case.is_since:
        return shop.prices
    return shop.prices.since(Invalidation(shop.ports.store.next_seq().run(), 0))


@pytest.mark.parametrize("examples", [15, pytest.param(40, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("on_timeout", ["load", "raise"])
def test_many_find_ask_for_and_leave_what_reads_of_one_do(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, on_timeout: str, examples: int
) -> None:
    shop = Shop(make_cache(store_timeout=60.0), monkeypatch, wait_for=WAIT_FOR, on_timeout=on_timeout)

    @settings(
        deadline=None,
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def equal(case: Case) -> None:
        many, of_many = by_many(shop, case), left(shop)
        ones, of_ones = by_ones(shop, case), left(shop)

        assert many == ones
        assert of_many == of_ones

    equal()


# -- in any order


class Walk:
    """Readers of one and of many, workers and changes; each step is of whom chance says.

    Attributes:
        versions: the database.
        known: key -> the version whose invalidation was acknowledged last.
        going: reads under way, with what was known when they began, and their keys.
    """

    KEYS = (1, 2, 3, 4)

    def __init__(self, shop: Shop, versions: dict[int, int], seed: int) -> None:
        self.shop, self.chance, self.versions = shop, random.Random(seed), versions
        shop.by_hand.begin()
        shop.asks.rounds.clear()
        shop.batches.clear()
        versions.update(dict.fromkeys(self.KEYS, 0))
        self.known = dict(versions)
        self.going: list[tuple[Stepper[Any], dict[int, int], list[int] | int]] = []
        self.loads: list[Stepper[Any]] = []
        self.changes: list[tuple[int, int, Stepper[Any]]] = []
        self.ended = self.slept = 0

    def step(self) -> None:
        readers = (self.begin_many, self.begin_one, self.read_on, self.read_on, self.read_on, self.be_late)
        others = (self.begin_load, self.work_on, self.work_on, self.change, self.change_on, self.cancel)
        self.chance.choice((*readers, *others))()
        self.shop.by_hand.receive_and_go_on()
        self.check_sleepers()

    def check_sleepers(self) -> None:
        """Nobody sleeps whose value is there, once all pushes were received."""
        flights = self.shop.ports.waiters.flights.values()
        calls = [
            flight.call for flight in flights if any(isinstance(sleeper, NamedWaker) for sleeper in flight.threads)
        ]
        if calls:
            found = self.shop.ports.store.get_many(calls).run()
            assert found == [None] * len(calls), f"slept through the push of one of {calls}"
            self.slept += len(calls)

    def begin_many(self) -> None:
        if len(self.going) < 4:
            keys = self.chance.sample(self.KEYS, self.chance.randint(1, 4))
            self.going.append((self.shop.many(keys), dict(self.known), keys))

    def begin_one(self) -> None:
        if len(self.going) < 4:
            key = self.chance.choice(self.KEYS)
            self.going.append((self.shop.one(key), dict(self.known), key))

    def read_on(self) -> None:
        if self.going:
            at = self.chance.randrange(len(self.going))
            reading, known, keys = self.going[at]
            if reading.at == "wait":
                step: Any = reading._step
                step.timeout = 0.0
            self.go_on(reading)
            if not reading.at:
                self.going.pop(at)
                self.check(reading, known, keys)

    def go_on(self, going: Stepper[Any]) -> None:
        """Perform a step, or as much of it as goes immediately."""
        if self.chance.random() < 0.7:
            whole(going)
        elif going.at:
            going.step()

    def be_late(self) -> None:
        if self.going:
            reading = self.chance.choice(self.going)[0]
            if reading.at not in ("wait", ""):
                late(reading)

    def cancel(self) -> None:
        if self.going and self.chance.random() < 0.3:
            reading, _, _ = self.going.pop(self.chance.randrange(len(self.going)))
            reading._flow.close()

    def begin_load(self) -> None:
        shop = self.shop
        rounds, shop.asks.rounds[:] = shop.asks.rounds[:], []
        spec = shop.cache._loaders["prices"]
        self.loads += [Stepper(load(shop.ports, spec, asks, shop.ports.worker)) for asks in rounds if asks]

    def work_on(self) -> None:
        if self.loads:
            going = self.chance.choice(self.loads)
            self.go_on(going)
            if not going.at:
                going.finish()
                self.loads.remove(going)

    def change(self) -> None:
        if len(self.changes) < 2:
            key = self.chance.choice(self.KEYS)
            self.versions[key] += 1
            flow = invalidate_tags(self.shop.ports, [f"p:{key}"], "hard")
            self.changes.append((key, self.versions[key], Stepper(flow)))

    def change_on(self) -> None:
        if self.changes:
            change = self.chance.choice(self.changes)
            key, version, going = change
            if going.at:
                going.step()
            if not going.at:
                going.finish()
                self.changes.remove(change)
                self.known[key] = max(self.known[key], version)

    def check(self, reading: Stepper[Any], known: dict[int, int], keys: list[int] | int) -> None:
        self.ended += 1
        if isinstance(keys, int):
            assert reading.error is None or isinstance(reading.error, LoadTimeout), reading.error
            values = {} if reading.error is not None else {keys: reading.finish().value}
        elif reading.error is not None:
            assert isinstance(reading.error, LoadErrors), reading.error
            assert {type(error) for error in reading.error.errors.values()} == {LoadTimeout}
            assert sorted([*reading.error.errors, *reading.error.values]) == sorted(keys)
            values = reading.error.values
        else:
            values = reading.finish()
            assert list(values) == keys
        for key, value in values.items():
            assert value >= known[key], f"{value} of {key} was read, {known[key]} was acknowledged"

    def end(self) -> None:
        """Nobody waits for ever: workers and time bring every read to its end."""
        for state in itertools.count():
            assert state < 500, [each.at for each, _, _ in self.going]
            if not self.going:
                break
            self.begin_load()
            for going in self.loads:
                going.finish()
            self.loads.clear()
            self.shop.by_hand.receive()
            if state % 10 == 9:
                self.shop.by_hand._time._clock.now_ms += 40_000
                self.shop.by_hand.go_on()
            self.read_on()
        for going in (*self.loads, *(each for _, _, each in self.changes)):
            going.finish()
        assert self.shop.is_idle()


@pytest.mark.parametrize("walks", [20, pytest.param(60, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("wait_for", [0.0, 30.0])
def test_no_walk_reads_what_is_too_old_or_waits_for_ever(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, wait_for: float, walks: int
) -> None:
    shop = Shop(make_cache(store_timeout=60.0), monkeypatch, wait_for=wait_for)

    ended, slept = walked(shop, [*range(walks), SLEEPER])

    assert ended > walks
    assert slept


#: A walk in which a reader is woken just before it sleeps; among the others that is rare.
SLEEPER = 484
#: What was removed -> how it is removed, and what is found.
MUTANTS: dict[str, tuple[Mutation, str]] = {
    "a wake before the sleep is heeded": (python(Waiter, "register", "if self.woken:", "if False:"), "slept through"),
    "who has read is no waiter": (python(Waiters, "leave", "flight.waiters.discard(waiter)", "pass"), "is_idle"),
}


@pytest.mark.parametrize("part", MUTANTS)
def test_walks_find_a_library_without_a_part(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Else they would prove nothing."""
    mutate, found = MUTANTS[part]
    mutate(monkeypatch)
    shop = Shop(make_cache(store_timeout=60.0), monkeypatch, wait_for=30.0)

    with pytest.raises(AssertionError, match=found):
        walked(shop, [SLEEPER, *range(500)])


def walked(shop: Shop, seeds: Iterable[int]) -> tuple[int, int]:
    """Walk once for each seed; how many reads have ended, and how often somebody was seen asleep."""
    versions: dict[int, int] = {}
    shop.value_of = lambda key: versions[key]
    ended = slept = 0
    for seed in seeds:
        walk = Walk(shop, versions, seed)
        for _ in range(80):
            walk.step()
        walk.end()
        ended += walk.ended
        slept += walk.slept
    return ended, slept
