"""Everything together, at random, step by step through the real flows and scripts: what is read is never too old.

Readers with and without `since`, workers, changes that are invalidated hard, soft or by a reload, sweeps, the outbox
and its drains, memory and its listener; any of them may die at any step, and leases, entries and the sequence may get
lost.  `test_races.py` looks at loads and hard invalidations alone, and closer.

What happens depends on what Hypothesis draws, and on nothing else: see `by_hand.py`.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from by_hand import ByHand
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from mutation import Mutation, python, script
from sqlalchemy import Engine, create_engine, event
from walks import walk

from cacheworkers import Cache, Load
from cacheworkers.core import entry_state, envelope
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.errors import LoadTimeout
from cacheworkers.flows import invalidate as invalidating
from cacheworkers.flows import read as reading
from cacheworkers.flows import write_loaded
from cacheworkers.flows.garbage_collection import collect_garbage
from cacheworkers.flows.invalidate import Invalidation, invalidate_tags
from cacheworkers.flows.keep_warm import reload_tags
from cacheworkers.flows.load import load
from cacheworkers.flows.loader_memory import LoaderMemory
from cacheworkers.flows.ports import Enqueue, LoadRequest, Ports
from cacheworkers.sql.outbox import relay as draining
from cacheworkers.sql.outbox.outbox import TRIGGER
from cacheworkers.store.commands.replies import Claimed
from cacheworkers.store.commands.store import Store
from cacheworkers.testing import Stepper

CONCURRENCY = 3
MODES = ("hard", "soft", "reload")
#: The product that all is about.
NUMBER = 1
#: What rules are given, by name.
CHOICES: dict[str, Sequence[Any]] = {
    "at": range(CONCURRENCY),
    "is_since": (False, True),
    "mode": range(len(MODES)),
    "steps": (1, 1, 2, 3, 4, 20),
    "wait_for": (0.0, 30.0),
    "what": ("lease", "entry", "failures", "seq"),
    "who": ("loads", "readers", "invalidations", "drains", "sweeping"),
}


def reported(*names: str) -> Any:
    """A rule that is given these."""
    return rule(**{name: st.sampled_from(CHOICES[name]) for name in names})


class Asks:
    """A dispatcher that keeps what it is given, for workers to take."""

    def __init__(self, ports: Ports) -> None:
        self.waiting: list[LoadRequest] = []
        self._ports = ports
        self._key = f"{ports.store.keys.namespace}:queue"
        self._numbers = itertools.count()

    def message_of(self, ask: LoadRequest) -> Enqueue | None:
        """Have every other request enqueued with its claim."""
        if next(self._numbers) % 2:
            return None
        head, tail = msgspec.json.encode(msgspec.structs.replace(ask, snapshot="?")).split(b"?")
        return Enqueue(self._key, (head, tail), lambda: None)

    def take_all(self) -> list[LoadRequest]:
        """Take what is waiting, here and in the store's queue."""
        client = self._ports.store.link.client()
        taken, self.waiting[:] = self.waiting[:], []
        while message := client.rpop(self._key):
            taken.append(msgspec.json.decode(message, type=LoadRequest))
        return taken

    def restart(self) -> None:
        """Begin with one that is enqueued."""
        self._numbers = itertools.count()

    def is_waiting(self) -> bool:
        return bool(self.waiting or self._ports.store.link.client().llen(self._key))

    def submit_all(self, asks: Any) -> int:
        self.waiting += asks
        return len(asks)


class World:
    """A cache that listens, prices in no database, and an outbox on SQLite."""

    def __init__(self, cache: Cache, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        self.cache, self.engine, self.outbox = cache, engine, cache.outbox
        self.prices: dict[int, int] = {}
        self.ports = cache._ports
        self.ports.dispatcher = self.asks = Asks(self.ports)
        self.ports.message_of = self.asks.message_of
        cache.outbox.create(engine)

        # Whatever the store or memory measure by real clocks has half an hour.
        life = {"fresh_for": 3600.0, "stale_for": 3600.0, "load_for": 1800.0, "l1_for": 1800.0}

        @cache.loader(tags=("price:{number}",), jitter=0, early=0, **life)
        def price(load: Load, number: int) -> int:
            return self.prices[number]

        self.price, self.spec = price, cache._loaders["price"]
        self.by_hand = ByHand(cache, patch)

    def begin(self) -> None:
        """Begin again: nothing is left of what was."""
        self.prices.clear()
        self.asks.take_all()
        self.asks.restart()
        with self.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM cacheworkers_outbox")
        self.by_hand.begin()


class Reader(msgspec.Struct):
    """A read under way, and what it may not be older than."""

    going: Stepper[Read]
    hard: int
    any: int
    since: int


LOADS = ("somebody_claims_for_a_worker", "a_load_goes_on")
CHANGES = ("a_change_is_committed", "an_invalidation_goes_on")
READERS = ("a_reader_comes", "a_reader_goes_on")


def everything(world: World, only: tuple[str, ...] = (), modes: tuple[str, ...] = MODES) -> type[RuleBasedStateMachine]:
    """Return a state machine; each run begins with nothing.

    Args:
        only: what happens, of all that may; nothing for everything.
    """
    ports, spec, store, outbox = world.ports, world.spec, world.ports.store, world.outbox

    class Everything(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            world.begin()
            self.call, self.tag = f"price[{NUMBER}]", f"price:{NUMBER}"
            world.prices[NUMBER] = self.hard = self.any = 0
            self.reported: list[tuple[int, int]] = []
            self.sweeps, self.accidents = 2, 3
            self.versions: dict[int, int] = {}
            self.loads: list[Stepper[Any]] = []
            self.readers: list[Reader] = []
            self.invalidations: list[tuple[int, int, str, Stepper[Invalidation]]] = []
            self.drains: list[tuple[Any, Stepper[Any]]] = []
            self.sweeping: list[Stepper[Any]] = []
            store.add_accesses("price", [(self.call, 1000)], half_life=3600, most=10_000).run()

        # -- readers and workers

        @precondition(lambda self: len(self.readers) < CONCURRENCY)
        @reported("wait_for", "is_since")
        def a_reader_comes(self, wait_for: float, is_since: bool) -> None:
            n, version = self.reported[-1] if is_since and self.reported else (0, 0)
            view = world.price.since(Invalidation(n, 0))
            call = view._bind((NUMBER,), {})
            options = msgspec.structs.replace(view._memory.options(call, None), wait_for=wait_for)
            going = Stepper(reading.read(ports, spec, call, options))
            self.readers.append(Reader(going, self.hard, self.any, version))

        @precondition(lambda self: self.readers)
        @reported("at", "steps")
        def a_reader_goes_on(self, at: int, steps: int) -> None:
            reader = self.readers[at % len(self.readers)]
            for _ in range(steps):
                if reader.going.at == "wait":
                    reader.going._step.timeout = 0.0
                if reader.going.at:
                    reader.going.step()
            if not reader.going.at:
                self.readers.remove(reader)
                if reader.going.error is None:
                    self.check_read(reader.going.finish(), reader)
                else:
                    assert isinstance(reader.going.error, LoadTimeout), reader.going.error

        @reported("who", "at")
        def a_reply_is_late(self, who: str, at: int) -> None:
            """The store has done it; who asked has not received the reply yet."""
            group = getattr(self, who)
            if group:
                going = self.going(group[at % len(group)])
                if going.at not in ("wait", ""):
                    going.send()

        @precondition(lambda self: store.get(self.call).run() is not None)
        @reported("is_since")
        def somebody_reads_immediately(self, is_since: bool) -> None:
            """By the quick way, and from memory."""
            n, version = self.reported[-1] if is_since and self.reported else (0, 0)
            entry = envelope.unpack(store.get(self.call).run())
            if entry.seq >= n:
                found = world.price.since(Invalidation(n, 0)).read(NUMBER)
                self.check_read(found, Reader(None, self.hard, self.any, version))  # type: ignore[arg-type]

        @precondition(lambda self: len(self.loads) < CONCURRENCY)
        @reported()
        def somebody_claims_for_a_worker(self) -> None:
            token = secrets.token_hex(8)
            seen = envelope.version_of(store.get(self.call).run())
            if isinstance(store.claim(self.call, token, lease_for=30, seen=seen).run(), Claimed):
                ask = LoadRequest("price", self.call, token, seen.hex(), "miss")
                self.loads.append(Stepper(load(ports, spec, [ask], ports.worker)))

        @precondition(lambda self: len(self.loads) < CONCURRENCY)
        @reported()
        def somebody_claims_to_warm(self) -> None:
            """Until that load begins, readers and revalidations may take its lease."""
            token = secrets.token_hex(8)
            seen = envelope.version_of(store.get(self.call).run())
            [claim] = store.claim_many([(self.call, token, seen)], lease_for=30, warms=True).run()
            if isinstance(claim, Claimed):
                ask = LoadRequest("price", self.call, token, seen.hex(), "warm")
                self.loads.append(Stepper(load(ports, spec, [ask], ports.worker)))

        @precondition(lambda self: world.asks.is_waiting() and len(self.loads) < CONCURRENCY)
        @reported()
        def a_worker_takes_an_ask(self) -> None:
            for ask in world.asks.take_all():
                if ask.call == self.call:
                    self.loads.append(Stepper(load(ports, spec, [ask], ports.worker)))

        @precondition(lambda self: self.loads)
        @reported("at", "steps")
        def a_load_goes_on(self, at: int, steps: int) -> None:
            going = self.loads[at % len(self.loads)]
            for _ in range(steps):
                if going.at:
                    going.step()
            if not going.at:
                assert going.error is None, going.error
                self.loads.remove(going)

        # -- changes

        @precondition(lambda self: len(self.invalidations) < CONCURRENCY)
        @reported("mode")
        def a_change_is_committed(self, mode: int) -> None:
            """With its outbox row, whose tags the drain invalidates hard."""
            how = modes[mode % len(modes)]
            world.prices[NUMBER] += 1
            version = world.prices[NUMBER]
            with world.engine.begin() as connection:
                row = outbox.write(connection, [self.tag], TRIGGER)  # which no drain leaves to anybody for a time
            self.versions[row] = version
            flow = (
                reload_tags(ports, {"price": spec}, [self.tag])
                if how == "reload"
                else invalidate_tags(ports, [self.tag], how)  # type: ignore[arg-type]
            )
            self.invalidations.append((row, version, how, Stepper(flow)))

        @precondition(lambda self: self.invalidations)
        @reported("at", "steps")
        def an_invalidation_goes_on(self, at: int, steps: int) -> None:
            row, version, mode, going = self.invalidations[at % len(self.invalidations)]
            for _ in range(steps):
                if going.at:
                    going.step()
            if not going.at:
                done = going.finish()
                self.invalidations.remove((row, version, mode, going))
                self.any = max(self.any, version)
                self.reported.append((done.seq, version))
                if mode == "hard":
                    self.hard = max(self.hard, version)
                    with world.engine.begin() as connection:
                        outbox.delivered(connection, [row])

        @precondition(lambda self: len(self.drains) < 2)
        @reported()
        def a_drain_begins(self) -> None:
            connection = world.engine.connect()
            going = Stepper(draining.deliver(ports, outbox, connection, 0.0))
            self.drains.append((connection, going))

        @precondition(lambda self: self.drains)
        @reported("at", "steps")
        def a_drain_goes_on(self, at: int, steps: int) -> None:
            connection, going = self.drains[at % len(self.drains)]
            for _ in range(steps):
                if going.at:
                    going.step()
            if not going.at:
                self.drains.remove((connection, going))
                self.drained(connection, going)

        # -- upkeep and accidents

        @precondition(lambda self: self.sweeps)
        @reported()
        def a_sweep_begins(self) -> None:
            self.sweeps -= 1
            self.sweeping.append(Stepper(collect_garbage(ports)))

        @precondition(lambda self: self.sweeping)
        @reported("at", "steps")
        def a_sweep_goes_on(self, at: int, steps: int) -> None:
            going = self.sweeping[at % len(self.sweeping)]
            for _ in range(4 * steps):
                if going.at:
                    going.step()
            if not going.at:
                going.finish()
                self.sweeping.remove(going)

        @precondition(lambda self: self.accidents)
        @reported("who", "at")
        def somebody_dies(self, who: str, at: int) -> None:
            group = getattr(self, who)
            if not group:
                return
            self.accidents -= 1
            dead = group.pop(at % len(group))
            self.going(dead).crash()
            if who == "drains":
                dead[0].close()

        @precondition(lambda self: self.accidents)
        @reported("what")
        def a_key_is_lost(self, what: str) -> None:
            """A lease runs out, an entry is evicted, a failover loses increments."""
            self.accidents -= 1
            keys = store.keys
            store.link.client().unlink(keys.seq if what == "seq" else getattr(keys, what)(self.call))

        @staticmethod
        def going(what: Any) -> Stepper[Any]:
            if isinstance(what, tuple):
                what = what[-1]
            found: Stepper[Any] = what.going if isinstance(what, Reader) else what
            return found

        # -- what must hold

        @invariant()
        def nothing_old_is_there(self) -> None:
            world.by_hand.receive_and_go_on()
            raw = store.get(self.call).run()
            if raw is not None:
                self.check_entry(envelope.unpack(raw), "the store")
            slot = ports.l1.get(self.call)
            if slot is not None:
                self.check_entry(slot.entry, "memory")

        def check_entry(self, entry: Entry, where: str) -> None:
            value = int(entry.payload)
            assert value >= self.hard, f"{where} has {value}, {self.hard} was acknowledged"
            if entry.freshness(ports.clock.now()) is Freshness.FRESH:
                assert value >= self.any, f"{where} has {value} as fresh, {self.any} was acknowledged"
            for n, version in self.reported:
                assert entry.seq < n or value >= version, f"{where} has {value} since {n}, {version} was acknowledged"

        def check_read(self, found: Read, reader: Reader) -> None:
            assert found.value >= reader.hard, f"{found.value} was read, {reader.hard} was acknowledged"
            assert found.value >= reader.since, f"{found.value} was read since, {reader.since} was acknowledged"
            if found.freshness is Freshness.FRESH:
                assert found.value >= reader.any, f"{found.value} was read as fresh, {reader.any} was acknowledged"

        def drained(self, connection: Any, going: Stepper[Any]) -> None:
            delivery = going.finish()
            connection.commit()
            connection.close()
            if delivery is not None:
                version = max((self.versions[row] for row in delivery.ids if row in self.versions), default=0)
                self.hard, self.any = max(self.hard, version), max(self.any, version)
                self.nothing_old_is_there()

        def teardown(self) -> None:
            """Once the outbox is empty, every committed change has been invalidated, whoever died."""
            for each in (*self.loads, *self.readers, *self.invalidations, *self.sweeping, *self.drains):
                self.going(each).crash()
            for connection, _ in self.drains:
                connection.close()
            connection = world.engine.connect()
            self.drained(connection, Stepper(draining.deliver(ports, outbox, connection, 0.0)))
            raw = store.get(self.call).run()
            committed = world.prices[NUMBER]
            if raw is not None:
                value = int(envelope.unpack(raw).payload)
                assert value == committed, f"the store has {value}, {committed} was acknowledged by the drain"

    for name in [name for name, each in vars(Everything).items() if hasattr(each, "hypothesis_stateful_rule")]:
        if only and name not in only:
            delattr(Everything, name)
    return Everything


@pytest.fixture
def world(make_cache: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    engine = create_engine(f"sqlite:///{tmp_path / 'outbox.db'}")

    @event.listens_for(engine, "connect")
    def forget_the_disk(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    yield World(make_cache(store_timeout=60.0), engine, monkeypatch)
    engine.dispose()


PLAY = settings(
    deadline=None,
    max_examples=10,
    stateful_step_count=60,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
    derandomize=True,
    database=None,
)

#: Walks of each play, and most that a removed part may take to be found.
FEW_WALKS, WALKS, MOST_WALKS = 5, 20, 500
#: Walks that found removed parts when they were last looked for: they are tried first.
FINDERS = (24, 28, 44)

#: All together, which leaves few steps to each; and some of it, closer.
PLAYS: dict[str, tuple[str, ...]] = {
    "everything": (),
    "loads and changes": (*LOADS, *CHANGES),
    "readers": (*LOADS, *CHANGES, *READERS, "a_worker_takes_an_ask", "a_reply_is_late", "somebody_reads_immediately"),
    "warming": (*LOADS, *CHANGES, *READERS, "somebody_claims_to_warm", "a_worker_takes_an_ask", "a_key_is_lost"),
    "accidents": (*LOADS, *CHANGES, "somebody_dies", "a_key_is_lost", "a_sweep_begins", "a_sweep_goes_on"),
    "drains": (*LOADS, *CHANGES, "somebody_dies", "a_drain_begins", "a_drain_goes_on"),
}


def play_once(machine: type[RuleBasedStateMachine], seed: int) -> None:
    walk(machine, seed, PLAY.stateful_step_count, CHOICES)


@pytest.mark.parametrize("examples", [PLAY.max_examples, pytest.param(40, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("play", PLAYS)
def test_no_interleaving_reads_what_is_too_old(world: World, play: str, examples: int) -> None:
    run_state_machine_as_test(everything(world, PLAYS[play]), settings=settings(PLAY, max_examples=examples))


@pytest.mark.parametrize("play", PLAYS)
def test_no_walk_reads_what_is_too_old(world: World, play: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a load's steps apart, and joined."""
    for seed in range(WALKS):
        monkeypatch.setattr(Store, "joins_steps", seed % 2 == 1)
        play_once(everything(world, PLAYS[play]), seed)


@pytest.mark.heavy
@pytest.mark.parametrize("play", PLAYS)
def test_no_interleaving_of_many_reads_what_is_too_old(world: World, play: str) -> None:
    for seed in range(1000):
        play_once(everything(world, PLAYS[play]), seed)


def nothing(store: Store, tags: Any, n: int) -> Any:
    """Mark no tag: any step will do."""
    return store.tag_size(tags[0])


#: What was removed -> how, what is played to find it, and in which modes.
MUTANTS: dict[str, tuple[Mutation, tuple[str, ...], tuple[str, ...]]] = {
    "a soft invalidation leaves no mark": (
        lambda patch: patch.setattr(Store, "mark_tags", nothing),
        (*LOADS, *CHANGES),
        ("soft",),
    ),
    "a soft invalidation leaves the lease": (
        script("SOFTEN", 'redis.call("DEL", lease, failures)', 'redis.call("DEL", failures)'),
        (*LOADS, *CHANGES),
        ("soft",),
    ),
    "a soft invalidation softens nothing": (
        script("SOFTEN", 'redis.call("SETRANGE"', 'redis.call("STRLEN", entry) --'),
        (),
        MODES,
    ),
    "a hard invalidation deletes nothing": (
        python(invalidating, "drain", "dropped = (yield ports.store.drop(calls)) if calls else 0", "dropped = 0"),
        (),
        MODES,
    ),
    "a hard invalidation deletes entries first": (
        python(
            Store,
            "drop",
            "for keys in (leases[part] + failures[part], entries[part]):",
            "for keys in (entries[part], leases[part] + failures[part]):",
        ),
        (*LOADS, *CHANGES),
        ("hard",),
    ),
    "a conflict is not seen": (
        python(write_loaded, "write", "found.newest > snapshot.seq", "False"),
        (*LOADS, *CHANGES),
        MODES,
    ),
    "a read heeds no since": (
        python(entry_state, "entry_state", "entry.seq < since or ", ""),
        (*LOADS, *CHANGES, *READERS),
        ("soft",),
    ),
    "what is kept is not tracked": (
        python(LoaderMemory, "keep", "if not self._ports.listener.track(entry.call, entry):", "if False:"),
        (*LOADS, *CHANGES, *READERS, "a_reply_is_late"),
        ("hard",),
    ),
    "a drain marks first": (
        python(
            draining,
            "deliver",
            "    legal = legal_tags(",
            "    outbox.delivered(connection, claimed.ids, claimed.sources)\n"
            "    connection.commit()\n    legal = legal_tags(",
        ),
        (),
        MODES,
    ),
}


#: Found by few of many orders; the model (tests/model) shows in the main lane that the order is needed.
RARE = {"a hard invalidation deletes entries first"}


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.heavy) if part in RARE else part for part in MUTANTS]
)
def test_it_finds_a_library_without_a_part(world: World, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would prove nothing."""
    mutate, only, modes = MUTANTS[part]
    mutate(monkeypatch)

    with pytest.raises(AssertionError, match="was acknowledged"):
        for seed in (*FINDERS, *range(MOST_WALKS)):
            play_once(everything(world, only, modes), seed)


def test_the_same_choices_make_the_same_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which steps there are depends on nothing but what is drawn: else Hypothesis could repeat nothing."""
    advance, steps = Stepper._advance, list[str]()

    def noted(going: Stepper[Any], go: Any) -> None:
        advance(going, go)
        steps.append(going.at)

    monkeypatch.setattr(Stepper, "_advance", noted)
    plays = []
    for _ in range(2):
        run_state_machine_as_test(everything(world), settings=settings(PLAY, max_examples=5))
        for seed in range(FEW_WALKS):
            play_once(everything(world), seed)
        plays.append(steps[:])
        steps.clear()

    assert len(plays[0]) > FEW_WALKS
    assert plays[0] == plays[1]
