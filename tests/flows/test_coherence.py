"""L1 against pushes: in every order, memory holds nothing older than what it has received, or should have.

Once a push has been processed, or the loss of the link has been noticed, or `l1_for` has passed, no answer from memory
is older than what had been acknowledged.  Small scenes are gone through in full; longer ones at random.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
import scenes
from scenes import SCENES, Scene, play, play_some
from stepped import ENTRIES, L1_FOR, Processes, Reading, hold

from cacheworkers import Cache
from cacheworkers.core.envelope import is_life_of
from cacheworkers.flows import invalidate as invalidating
from cacheworkers.local.coherence import Coherence
from cacheworkers.local.l1 import L1
from cacheworkers.store.tracking.invalidation_messages import InvalidationMessages
from cacheworkers.store.tracking.listener import Listener
from cacheworkers.store.tracking.tracking_connection import TrackingConnection
from cacheworkers.testing import Stepper

MakeProcesses = Callable[[], Processes]


@pytest.fixture
def make_processes(make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch) -> MakeProcesses:
    options = {"l1_for": L1_FOR, "l1_entries": ENTRIES, "revalidate_rate": 1e6, "access_report_interval": 0.0}
    return lambda: Processes(make_cache(**options), make_cache(**options), monkeypatch)


@pytest.fixture
def processes(make_processes: MakeProcesses) -> Processes:
    return make_processes()


#: Scenes whose orders take seconds; what they are there for is looked for in some of them below, by removed parts.
LONG = (
    scenes.a_change_made_here_while_the_link_dies,
    scenes.a_change_of_what_is_evicted,
    scenes.a_change_of_what_is_kept_while_the_link_dies,
    scenes.a_change_of_what_the_store_has_lost,
    scenes.a_change_that_a_dead_link_never_reports,
    scenes.a_change_of_two_loaders,
    scenes.a_change_while_the_link_dies,
    scenes.a_change_before_a_ping,
)


@pytest.mark.parametrize(
    "scene",
    [pytest.param(scene, marks=pytest.mark.heavy) if scene in LONG else scene for scene in SCENES],
    ids=lambda scene: scene.__name__,
)
def test_in_every_order_memory_is_no_older_than_what_it_has_received(processes: Processes, scene: Scene) -> None:
    assert play(processes, scene) >= 10


@pytest.mark.parametrize("scene", LONG, ids=lambda scene: scene.__name__)
def test_in_some_orders_of_a_long_scene(processes: Processes, scene: Scene) -> None:
    play_some(processes, scene, 100, seed=0)


@pytest.mark.parametrize("scene", [scenes.a_change_and_a_read, scenes.a_change_of_a_stale_entry])
def test_reads_on_an_event_loop_keep_the_same_order(processes: Processes, scene: Scene) -> None:
    assert play(processes, scene, "async") >= 10


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(4))
def test_in_many_orders_of_two_reads_and_two_changes(processes: Processes, seed: int) -> None:
    """There are about 200,000, a quarter of an hour of them."""
    play_some(processes, scenes.two_reads_and_two_changes, 3_000, seed)


# -- each part removed


def checks_no_guard(patch: pytest.MonkeyPatch) -> None:
    fill, guard = L1.fill, L1.guard
    patch.setattr(L1, "fill", lambda l1, call, **entry: fill(l1, call, **{**entry, "guard": guard(l1, call)}))


def takes_the_guard_after_the_get(patch: pytest.MonkeyPatch) -> None:
    fill, guard = L1.fill, L1.guard

    def late(l1: L1, call: str, **entry: Any) -> Any:
        mark = guard(l1, call)
        hold("keep")
        return fill(l1, call, **{**entry, "guard": mark})

    patch.setattr(L1, "fill", late)


def receives_only_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    drop = L1.drop
    patch.setattr(L1, "drop", lambda l1, call: drop(l1, call) if call in l1.slots else None)


def drops_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(L1, "drop", lambda l1, call: l1.bump_all())


def refuses_no_fill_after_a_loss(patch: pytest.MonkeyPatch) -> None:
    clear = L1.clear

    def keeps_the_epoch(l1: L1) -> None:
        clear(l1)
        l1._epoch -= 1

    patch.setattr(L1, "clear", keeps_the_epoch)
    patch.setattr(L1, "bump_all", lambda l1: None)


def is_not_emptied_when_the_link_is_back(patch: pytest.MonkeyPatch) -> None:
    connect = Listener._connect

    def keeps_all(listener: Listener) -> None:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(listener.messages, "drop_all", lambda: None)
            connect(listener)

    patch.setattr(Listener, "_connect", keeps_all)


def answers_after_a_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Coherence, "lost", lambda coherence, at: None)


def never_asks_for_proof(patch: pytest.MonkeyPatch) -> None:
    prove = Coherence.prove
    patch.setattr(Coherence, "prove", lambda coherence, at: prove(coherence, float("inf")))


def takes_an_answer_for_news(patch: pytest.MonkeyPatch) -> None:
    answer = TrackingConnection.answer

    def now(connection: TrackingConnection, reply: Any) -> None:
        before = connection.proven_at
        answer(connection, reply)
        if connection.proven_at != before:
            connection.proven_at = time.monotonic()

    patch.setattr(TrackingConnection, "answer", now)


def waits_for_no_push_of_its_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invalidating, "receive_own_push", lambda ports: iter(()))


def takes_the_barrier_for_granted(patch: pytest.MonkeyPatch) -> None:
    def receive_own_push(ports: Any) -> Generator[Any, Any, None]:
        yield ports.listener.barrier(1.0)

    patch.setattr(invalidating, "receive_own_push", receive_own_push)


def tracks_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Listener, "track", lambda listener, call, entry: True)


def tracks_after_the_fill(patch: pytest.MonkeyPatch) -> None:
    track, fill = Listener.track, L1.fill
    kept: list[tuple[Listener, str, Any]] = []

    def noted(listener: Listener, call: str, entry: Any) -> bool:
        kept.append((listener, call, entry))
        return True

    def late(l1: L1, call: str, **entry: Any) -> Any:
        slot = fill(l1, call, **entry)
        hold("ask")
        while kept:
            track(*kept.pop())
        return slot

    patch.setattr(Listener, "track", noted)
    patch.setattr(L1, "fill", late)


def compares_no_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InvalidationMessages, "compare", lambda messages, call, entry, reply: None)


def refuses_no_fill_by_an_answer(patch: pytest.MonkeyPatch) -> None:
    def drops(messages: InvalidationMessages, call: str, entry: Any, reply: Any) -> None:
        if not is_life_of(reply, entry) and call in messages._l1.slots:
            messages._l1.drop(call)

    patch.setattr(InvalidationMessages, "compare", drops)


def refuses_no_fill_by_a_ping(patch: pytest.MonkeyPatch) -> None:
    ping = Listener._ping

    def keeps_guards(listener: Listener, *args: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(listener._l1, "bump_all", lambda: None)
            return ping(listener, *args, **options)

    patch.setattr(Listener, "_ping", keeps_guards)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Scene]] = {
    "a fill does not compare its guard": (checks_no_guard, scenes.a_change_and_a_read),
    "nor that of a stale entry": (checks_no_guard, scenes.a_change_of_a_stale_entry),
    "the guard is taken after the GET": (takes_the_guard_after_the_get, scenes.a_change_and_a_read),
    "a push of what is not kept is ignored": (receives_only_what_is_kept, scenes.a_change_and_a_read),
    "a push drops nothing": (drops_nothing, scenes.a_change_of_what_is_kept),
    "nothing of a push by key": (drops_nothing, scenes.a_change_of_one_call),
    "nothing of a soft change": (drops_nothing, scenes.a_soft_change_of_what_is_kept),
    "a loss refuses no fill that has begun": (refuses_no_fill_after_a_loss, scenes.a_change_while_the_link_dies),
    "memory is not emptied when the link is back": (
        is_not_emptied_when_the_link_is_back,
        scenes.a_change_of_what_is_kept_while_the_link_dies,
    ),
    "a loss leaves the gate open": (answers_after_a_loss, scenes.a_change_of_what_is_kept_while_the_link_dies),
    "a proof does not run out": (never_asks_for_proof, scenes.a_change_that_a_dead_link_never_reports),
    "a ping proves what came after it": (takes_an_answer_for_news, scenes.a_change_while_a_ping_is_answered_late),
    "what is kept is not tracked": (tracks_nothing, scenes.a_change_of_what_is_kept),
    "it is tracked after it is kept": (tracks_after_the_fill, scenes.a_change_made_here_of_what_is_being_read),
    "what was there when its tracking began is not compared": (compares_no_answer, scenes.a_change_and_a_read),
    "... and refuses no fill": (refuses_no_fill_by_an_answer, scenes.a_change_and_a_read),
    "a ping refuses no fill that has begun": (
        refuses_no_fill_by_a_ping,
        scenes.a_change_made_here_of_what_is_being_read,
    ),
    "a change made here waits for no push": (waits_for_no_push_of_its_own, scenes.a_change_made_here),
    "a barrier that fails is no reason to empty memory": (
        takes_the_barrier_for_granted,
        scenes.a_change_made_here_while_the_link_dies,
    ),
}


@pytest.mark.parametrize("part", MUTANTS)
def test_removed_part_is_missed(part: str, make_processes: MakeProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some order of the scene shows what the part is there for; else the scenes would prove nothing."""
    mutate, scene = MUTANTS[part]
    mutate(monkeypatch)

    with pytest.raises(AssertionError, match="was acknowledged"):
        play(make_processes(), scene)


# -- at random


CONCURRENCY, STEPS = 3, 50


class Walk:
    """Steps taken at random on a product of its own, with a few accidents; what was done is noted."""

    def __init__(self, p: Processes, seed: int) -> None:
        self.p, self.random = p, random.Random(seed)
        self.number = p.begin()
        self.accidents = 3
        self.changes: list[tuple[int, str, Stepper[Any]]] = []
        self.readings: list[Reading] = []
        self.done: list[str] = []

    def run(self) -> None:
        try:
            for _ in range(STEPS):
                step = self.random.choice(self._possible())
                self.done.append(step.__name__)
                step()
                self.p.check()
        except AssertionError as error:
            error.add_note("\n".join(self.done))
            raise
        finally:
            self.p.end(self.number)

    def _possible(self) -> list[Callable[[], None]]:
        p, is_luck_left = self.p, self.accidents > 0
        steps = {
            self.a_read_begins: len(self.readings) < CONCURRENCY,
            self.a_read_goes_on: bool(self.readings),
            self.a_change_is_committed: len(self.changes) < CONCURRENCY,
            self.a_change_goes_on: bool(self.changes),
            self.a_worker_loads: True,
            self.pushes_are_processed: p.has_replies,
            self.a_ping: p.is_connected,
            self.the_link_dies: p.is_connected and not p.is_broken and is_luck_left,
            self.its_death_is_noticed: p.is_broken,
            self.the_link_is_back: not p.is_connected,
            self.time_passes: is_luck_left,
            self.memory_is_full: is_luck_left,
        }
        return [step for step, is_possible in steps.items() if is_possible]

    def a_read_begins(self) -> None:
        self.readings.append(self.p.reading(self._name(), self.number))
        self._go_on(len(self.readings) - 1, self.random.randint(0, 2))

    def a_read_goes_on(self) -> None:
        self._go_on(self.random.randrange(len(self.readings)), self.random.randint(1, 3))

    def _go_on(self, at: int, steps: int) -> None:
        reading = self.readings[at]
        for _ in range(steps):
            if reading.at:
                reading.step()
        if not reading.at:
            del self.readings[at]

    def a_change_is_committed(self) -> None:
        mode: Any = self.random.choice(["hard", "soft"])
        by = self.random.choice(["others", "ports"])
        self.p.commit(self.number)
        self.changes.append((self.p.versions[self.number], mode, self.p.invalidation(self.number, mode, by=by)))

    def a_change_goes_on(self) -> None:
        at = self.random.randrange(len(self.changes))
        version, mode, flow = self.changes[at]
        for _ in range(self.random.randint(1, 12)):
            self.p.go_on(flow)
        if not flow.at:
            del self.changes[at]
            self.p.acknowledged(self.number, version, is_soft=mode == "soft")

    def a_worker_loads(self) -> None:
        self.p.load(self._name(), self.number)

    def pushes_are_processed(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            if self.p.has_replies:
                self.p.deliver()

    def a_ping(self) -> None:
        self.p.ping()

    def the_link_dies(self) -> None:
        self.accidents -= 1
        self.p.break_link()

    def its_death_is_noticed(self) -> None:
        self.p.notice()

    def the_link_is_back(self) -> None:
        self.p.reconnect()

    def time_passes(self) -> None:
        self.accidents -= 1
        self.p.pass_time()

    def memory_is_full(self) -> None:
        self.accidents -= 1
        self.p.evict()

    def _name(self) -> str:
        return self.random.choice(["price", "label"])


def test_no_order_of_many_leaves_anything_old_in_memory(processes: Processes) -> None:
    for seed in range(60):
        Walk(processes, seed).run()


@pytest.mark.heavy
def test_no_order_of_very_many_leaves_anything_old_in_memory(processes: Processes) -> None:
    for seed in range(3_000):
        Walk(processes, seed).run()


@pytest.mark.parametrize("mutate", [checks_no_guard, is_not_emptied_when_the_link_is_back])
def test_random_orders_find_a_removed_part(
    mutate: Callable[[pytest.MonkeyPatch], None], make_processes: MakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    processes = make_processes()

    with pytest.raises(AssertionError, match="was acknowledged"):
        for seed in range(3_000):
            Walk(processes, seed).run()
